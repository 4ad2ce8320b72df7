"""Neighborhood Attention Transformer (Hassani et al., CVPR 2023), and its dilated form (2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Window, attend, local_attention, local_correlate
from ..ops.attention import bias_of_taps
from ..ops.tracing import is_open
from ..ops.window import IntPair
from .attention import TapWeights
from .groups import join_groups
from .safe_module import SafeModule
from .spatial import cell_average, spatial_operator

# channels of a head in all published networks
HEAD_CHANNELS = 32


def pad_end(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return a feature map (B, C, H, W) with rows of zeros below it and columns on its right."""
    # a program for any size always pads: its numbers may be zero or not
    if is_open((rows, columns)) or rows or columns:
        return F.pad(x, (0, columns, 0, rows))
    return x


def begin(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return the first rows and columns of a feature map."""
    if is_open((rows, columns)):
        # a slice would let the program ask whether it is the whole map
        row, column = (torch.arange(count, device=x.device) for count in (rows, columns))
        return x.index_select(-2, row).index_select(-1, column)
    return x[..., :rows, :columns]


@spatial_operator
class NeighborhoodAttention(SafeModule):
    r"""Let every position attend to its k x k nearest neighbours.

    .. math:: y_i = W_O \sum_{j \in \rho_k(i)} \mathrm{softmax}_j\big(q_i^T k_j / \sqrt{D} +
              B_{j-i}\big) \, v_j, \qquad (q, k, v) = W_{QKV} \, x

    (equations 1 to 4 of the paper), for each of N heads. At the border the neighbourhood moves
    inwards, so that every position has k x k neighbours. A feature map that is smaller than the
    neighbourhood is padded with zeros at the bottom and at the right before the projection, as the
    authors' code does. With a stride s the result at every position is averaged over s x s.

    Args:
        channels: Number of channels C of the input and of the output.
        kernel_size: Size k of the neighbourhood, an odd number, or a pair (vertical, horizontal).
        num_heads: Number of heads N; it must divide C. Default: heads of 32 channels, at least one.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps.
        qkv_bias: True if the projection of queries, keys and values has a bias.
        rel_pos_bias: True if each relative position has a bias B, one per head.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: ``num_heads`` does not divide ``channels``, or the kernel is even.
    """

    example: ClassVar[dict] = dict(kernel_size=3, num_heads=2)

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: IntPair = 7,
        num_heads: int | None = None,
        stride: int = 1,
        dilation: IntPair = 1,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_heads is None:
            num_heads = max(1, channels // HEAD_CHANNELS)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'num_heads must divide channels, got {channels=}, {num_heads=}.')
        self.num_heads, self.scale = num_heads, (channels // num_heads) ** -0.5
        # attention at every position; the pool strides
        self.window = Window(kernel_size, 1, dilation, border='shift')
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.rpb: nn.Parameter | None = None
        if rel_pos_bias:
            rows, columns = self.window.kernel
            self.rpb = nn.Parameter(torch.empty(num_heads, 2 * rows - 1, 2 * columns - 1))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.proj = nn.Linear(channels, channels)
        self.pool = cell_average(stride)

    def padded(self, x: Tensor) -> Tensor:
        """Return a feature map with zeros at its end where it is smaller than a neighbourhood."""
        # max() would ask a symbol whether it is positive
        positive = torch.sym_max if is_open(x.shape[2:]) else max
        sizes = zip(self.window.kernel, self.window.dilation, x.shape[2:], strict=True)
        rows, columns = (positive(0, kernel * step - length) for kernel, step, length in sizes)
        return pad_end(x, rows, columns)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values (B, N, D, H, W) of (B, C, H, W)."""
        qkv = self.qkv(x.movedim(1, -1)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(3, 0, 4, 5, 1, 2).unbind(0)
        return query * self.scale, key, value

    def bias(self) -> Tensor | None:
        """Return the bias (N, relative positions), or None."""
        return None if self.rpb is None else self.rpb.flatten(1)

    def attention(self, x: Tensor) -> TapWeights:
        """Return the weights that are applied to the values of (B, C, H, W), before any pool."""
        query, key, _ = self.project(self.padded(x))
        logits = local_correlate(query, key, self.window)
        bias = self.bias()
        if bias is not None:
            logits = logits + bias_of_taps(bias, self.window, key.shape[-2:])
        weight = attend(logits, self.window, key.shape[-2:])
        return TapWeights(weight[..., : x.shape[2], : x.shape[3]], self.window)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        query, key, value = self.project(self.padded(x))
        result = local_attention(query, key, value, self.window, bias=self.bias())
        joined = begin(join_groups(result), *x.shape[2:])
        return self.pool(self.proj(joined.movedim(1, -1)).movedim(-1, 1))
