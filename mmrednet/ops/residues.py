"""Shifted windows with a dilation as shifted windows without one, on smaller maps.

With dilation d, an output sees only positions whose distance from it is a multiple of d. A feature
map therefore consists of d x d smaller ones that do not interact, and kernels need no dilation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .window import Window


class Part(NamedTuple):
    """Small maps of one size: those of the residues [begin, end) of each axis.

    Args:
        rows: Residues of the rows, and the number of rows of a small map.
        columns: Residues of the columns, and the number of columns of a small map.
    """

    rows: tuple[int, int, int]
    columns: tuple[int, int, int]


def has_residues(window: Window) -> bool:
    """Return whether a window is shifted and has a dilation."""
    return window.border == 'shift' and window.dilation != (1, 1)


def over_residues(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], window: Window
) -> Tensor:
    """Compute a function of shifted windows on the small maps of all residues.

    Args:
        function: Takes one tensor (B', ..., h, w) per tensor, the size (h, w) of the small maps and
            a window without dilation, and returns a tensor (B', ..., h, w).
        tensors: Tensors (B, ..., H, W) of five dimensions.
        window: Shifted window.

    Returns:
        (B, ..., H, W).
    """
    height, width = tensors[0].shape[-2:]
    plain = Window(window.kernel, border='shift')
    padded = [_padded(tensor, window.dilation) for tensor in tensors]
    rows = []
    for row_part in _axis_parts(height, window.dilation[0]):
        row = []
        for column_part in _axis_parts(width, window.dilation[1]):
            part = Part(row_part, column_part)
            small = [_small_maps(tensor, part) for tensor in padded]
            result = function(*small, (row_part[2], column_part[2]), plain)
            row.append(_cells(result, part, len(tensors[0]), padded[0].shape))
        rows.append(torch.cat(row, 6))
    cells = torch.cat(rows, 4)
    return cells.flatten(5, 6).flatten(3, 4)[..., :height, :width]


def _axis_parts(length: int, dilation: int) -> list[tuple[int, int, int]]:
    """Return (first residue, last residue + 1, positions of each) for both numbers of positions."""
    longer = length % dilation
    parts = [(0, longer, length // dilation + 1), (longer, dilation, length // dilation)]
    return [part for part in parts if part[0] < part[1]]


def _padded(x: Tensor, dilation: tuple[int, int]) -> Tensor:
    """Return cells (B, G, D, h, d, w, d) of a map that is padded to whole cells of d x d."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % dilation[1], 0, -height % dilation[0]))
    return padded.unflatten(4, (-1, dilation[1])).unflatten(3, (-1, dilation[0]))


def _small_maps(cells: Tensor, part: Part) -> Tensor:
    """Return the small maps (B * residues, G, D, h, w) of a part.

    The channels of a position stay neighbours in memory if they are so in the map.
    """
    (top, bottom, height), (left, right, width) = part
    inner = cells[:, :, :, :height, top:bottom, :width, left:right]
    if cells.stride(2) == 1:
        return inner.permute(0, 4, 6, 3, 5, 1, 2).flatten(0, 2).permute(0, 3, 4, 1, 2)
    return inner.permute(0, 4, 6, 1, 2, 3, 5).flatten(0, 2)


def _cells(maps: Tensor, part: Part, batch: int, shape: Sequence[int]) -> Tensor:
    """Undo ``_small_maps``: return (B, G, D, h, residues, w, residues), padded to all cells."""
    (top, bottom, height), (left, right, width) = part
    inner = maps.unflatten(0, (batch, bottom - top, right - left)).permute(0, 3, 4, 5, 1, 6, 2)
    return F.pad(inner, (0, 0, 0, shape[5] - width, 0, 0, 0, shape[3] - height))
