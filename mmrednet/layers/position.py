"""What attention knows of positions: embeddings of where neighbours are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.attention import relative_logits


class RelativeEmbedding(nn.Module):
    r"""Learned embeddings of the row and of the column of a neighbour, each one half of a head's
    channels.

    .. math:: l_{ij} = q_i^T r_{j - i}, \qquad r_{(u, v)} = [\mathrm{row}_u, \mathrm{column}_v]

    Args:
        num_heads: N.
        channels: D of a head.
        kernel: rows and columns of the window.

    Raises:
        ValueError: the channels of a head are odd.
    """

    def __init__(self, num_heads: int, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(
                'channels / num_heads must be even, half for rows and half for columns, got '
                f'{channels}.'
            )
        self.rows = nn.Parameter(torch.randn(num_heads, channels // 2, kernel[0]) * channels**-0.5)
        self.columns = nn.Parameter(
            torch.randn(num_heads, channels // 2, kernel[1]) * channels**-0.5
        )

    def forward(self, query: Tensor) -> Tensor:
        """Map the queries (B, N, D, H, W) to logits (B, N, K, H, W)."""
        return relative_logits(query, self.rows, self.columns)


def absolute_embedding(x: Tensor) -> Tensor:
    """Return sines and cosines (C, H, W) of the rows, in the first half of the channels, and of the
    columns.

    Wavelengths grow geometrically from 2 pi to 10000 * 2 pi pixels (Vaswani et al., NeurIPS 2017,
    section 3.5).
    """
    channels, height, width = x.shape[1:]
    half = channels // 2
    parts = []
    for length, count in ((height, half), (width, channels - half)):
        frequency = 10000.0 ** (
            -torch.arange(0, count, 2, device=x.device, dtype=torch.float32) / count
        )
        angle = frequency[:, None] * torch.arange(length, device=x.device, dtype=torch.float32)
        parts.append(torch.stack([angle.sin(), angle.cos()], 1).flatten(0, 1)[:count])
    rows, columns = parts
    return torch.cat(
        [rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)]
    ).to(x.dtype)


class GeometryPrior(nn.Module):
    """What a relative position alone is worth to each group: a network of two layers over (dx, dy)
    in taps.

    Args:
        groups: G.
        hidden: width of the layer between.
        kernel: rows and columns of the window.
    """

    def __init__(self, groups: int, hidden: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, groups))
        self.kernel = kernel

    def forward(self) -> Tensor:
        """Return logits (G, K)."""
        parameter = next(self.layers.parameters())
        axes = [
            torch.arange(size, device=parameter.device, dtype=parameter.dtype) - (size - 1) / 2
            for size in self.kernel
        ]
        rows, columns = torch.meshgrid(*axes, indexing='ij')
        return self.layers(torch.stack([columns, rows], -1).flatten(0, 1)).T
