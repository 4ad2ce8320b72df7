"""Embeddings and priors of relative and absolute positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.attention import relative_logits


class RelativeEmbedding(nn.Module):
    r"""Learned embeddings of the row and of the column of a neighbour.

    Each of them has half of the channels of a head.

    .. math:: l_{ij} = q_i^T r_{j - i}, \qquad r_{(u, v)} = [\mathrm{row}_u, \mathrm{column}_v]

    Args:
        num_heads: Number of heads N.
        channels: Number of channels D of a head, an even number.
        kernel: Rows and columns of the window.

    Raises:
        ValueError: The channels of a head are odd.
    """

    def __init__(self, num_heads: int, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(
                'channels / num_heads must be even, half for rows and half for columns, got '
                f'{channels}.'
            )
        half, std = channels // 2, channels**-0.5
        self.rows = nn.Parameter(torch.randn(num_heads, half, kernel[0]) * std)
        self.columns = nn.Parameter(torch.randn(num_heads, half, kernel[1]) * std)

    def forward(self, query: Tensor) -> Tensor:
        """Map the queries (B, N, D, H, W) to logits (B, N, K, H, W)."""
        return relative_logits(query, self.rows, self.columns)


def absolute_embedding(x: Tensor) -> Tensor:
    """Return sines and cosines (C, H, W) of the position of every pixel of (B, C, H, W).

    The first half of the channels encodes rows, the second half columns. Wavelengths grow
    geometrically from 2 pi to 10000 * 2 pi pixels (Vaswani et al., NeurIPS 2017, section 3.5).
    """
    channels, height, width = x.shape[1:]
    half = channels // 2
    rows = _sinusoids(half, height, x.device)[:, :, None].expand(-1, -1, width)
    columns = _sinusoids(channels - half, width, x.device)[:, None].expand(-1, height, -1)
    return torch.cat([rows, columns]).to(x.dtype)


def _sinusoids(count: int, length: int, device: torch.device) -> Tensor:
    """Return (count, length): sine and cosine of one wavelength after the other."""
    exponent = torch.arange(0, count, 2, device=device, dtype=torch.float32) / count
    # angles of a long axis need float32, whatever the dtype of the network
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angle = 10000.0 ** (-exponent[:, None]) * positions
    return torch.stack([angle.sin(), angle.cos()], 1).flatten(0, 1)[:count]


class GeometryPrior(nn.Module):
    """Logits of relative positions: a network of two linear layers over (dx, dy), in taps.

    Args:
        groups: Number of groups G.
        hidden: Number of hidden features.
        kernel: Rows and columns of the window.
    """

    def __init__(self, groups: int, hidden: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, groups))
        self.kernel = kernel

    def forward(self) -> Tensor:
        """Return logits (G, K)."""
        parameter = next(self.layers.parameters())
        options: dict[str, Any] = dict(device=parameter.device, dtype=parameter.dtype)
        axes = [torch.arange(size, **options) - (size - 1) / 2 for size in self.kernel]
        # (dx, dy), as in the paper
        rows, columns = torch.meshgrid(*axes, indexing='ij')
        return self.layers(torch.stack([columns, rows], -1).flatten(0, 1)).T
