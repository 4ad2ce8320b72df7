"""Adaptive average pooling as products of two matrices, which hold for maps of any size.

torch's decomposition reads the entries of each bin by an index, and so needs the size of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def adaptive_average(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the averages (B, C, S, T) of the bins of a map (B, C, H, W).

    A bin is a rectangle: its average is that of its columns, averaged over its rows.

    Args:
        x: The map.
        size: Numbers S and T of bins.
    """
    if tuple(size) == (1, 1):
        return x.mean((2, 3), keepdim=True)
    rows, columns = (
        bin_averages(bins, length, x) for bins, length in zip(size, x.shape[2:], strict=True)
    )
    return rows @ (x @ columns.mT)


def bin_averages(bins: int, length: int, like: Tensor) -> Tensor:
    """Return the matrix (bins, length) that maps a line to the averages of its bins.

    As in torch, a position is in every bin that it overlaps. Bin i covers the line from
    i length / bins to (i + 1) length / bins.

    Args:
        bins: Number of bins.
        length: Length of the line, which may be symbolic.
        like: Tensor that has dtype and device of the result.
    """
    position = torch.arange(length, device=like.device)
    start = torch.arange(bins, device=like.device)[:, None] * length
    # times the number of bins, which leaves integers without a division
    overlaps = ((position + 1) * bins > start) & (position * bins < start + length)
    members = overlaps.to(like.dtype)
    return members / members.sum(1, keepdim=True)
