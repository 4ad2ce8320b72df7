"""What the kernels of vector attention share: tiles of positions, reflection, reads and writes.

Tiles of maps are [P, C]: positions and channels, in float32. Blocks are filled up with zeros, which
stay zero through norms, ReLUs and products.

Sizes of tiles are plain integers, fields of a constant. They may be in the shape of ``tl.full``,
but not in that of ``tl.zeros``: a compiled function takes no plain integers within a tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import inside, neighbour, on_map, positions, start, strides, viewer


class Map(NamedTuple):
    """A map as kernels take it.

    Args:
        pointer: First element.
        strides: Strides (batch, 1, channel, row, column), coded as odd numbers.
        size: Height and width, coded as odd numbers like strides.
    """

    pointer: Any
    strides: Any
    size: Any


@triton.jit
def size_of(x):
    """Return height and width of a map."""
    return (x.size[0] - 3) >> 1, (x.size[1] - 3) >> 1


@triton.jit
def tile_of(item, x, CONFIG: tl.constexpr):
    """Return rows, columns and mask of the positions of a tile of a map, and its image.

    Tiles are numbered image by image.
    """
    height, width = size_of(x)
    tile_count = tl.cdiv(height, CONFIG.tile_height) * tl.cdiv(width, CONFIG.tile_width)
    row, column = positions(
        item % tile_count, width, CONFIG.tile_height, CONFIG.tile_width, CONFIG.index
    )
    return row, column, on_map(row, column, height, width), item // tile_count


@triton.jit
def image_of(x, batch, LAYOUT: tl.constexpr):
    """Return the map of one image."""
    return Map(x.pointer + start(x.strides, batch, 0 * batch, LAYOUT), x.strides, x.size)


@triton.jit
def reflected(position, length):
    """Return positions on an axis; those beyond its ends are reflected, again and again."""
    # an axis of one position has no period
    period = tl.maximum(2 * length - 2, 1)
    # the first position is a mirror, so that a sign does not matter
    phase = tl.abs(position) % period
    return tl.minimum(phase, period - phase)


@triton.jit
def reflected_position(row, column, x):
    """Return positions on a map from those on it and beyond its border."""
    height, width = size_of(x)
    return reflected(row, height), reflected(column, width)


@triton.jit
def reflected_neighbour(row, column, tap, x, CONFIG: tl.constexpr):
    """Return the positions on a map that output positions see through a tap."""
    WINDOW: tl.constexpr = CONFIG.window
    row, column = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
    return reflected_position(row, column, x)


@triton.jit
def map_position(view_row, view_column, CONFIG: tl.constexpr):
    """Return positions relative to the map from those of all that outputs look at."""
    WINDOW: tl.constexpr = CONFIG.window
    return view_row - WINDOW[6], view_column - WINDOW[7]


@triton.jit
def viewer_of(row, column, valid, tap, outputs, CONFIG: tl.constexpr):
    """Return the outputs that see positions through a tap, and the mask of those that exist."""
    WINDOW: tl.constexpr = CONFIG.window
    out_height, out_width = size_of(outputs)
    out_row, out_column, visible = viewer(
        row, column, tap // WINDOW[1], tap % WINDOW[1], out_height, out_width, WINDOW
    )
    return out_row, out_column, visible & valid


@triton.jit
def read(x, channel, end: tl.constexpr, row, column, valid, LAYOUT: tl.constexpr):
    """Return channels [P, C] of positions of an image, zero where they are not valid."""
    offset = inside(x.strides, channel[None, :], row[:, None], column[:, None], LAYOUT)
    mask = valid[:, None] & (channel < end)[None, :]
    return tl.load(x.pointer + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write(x, channel, end: tl.constexpr, row, column, valid, numbers, LAYOUT: tl.constexpr):
    """Write channels [P, C] of positions of an image."""
    offset = inside(x.strides, channel[None, :], row[:, None], column[:, None], LAYOUT)
    tl.store(x.pointer + offset, numbers, mask=valid[:, None] & (channel < end)[None, :])


@triton.jit
def _group_offsets(x, row, column, valid, LAYOUT: tl.constexpr, CONFIG: tl.constexpr):
    """Return the offsets [P, D, G] of the values of positions, and their mask."""
    d = tl.arange(0, CONFIG.block_depth)[None, :, None]
    g = tl.arange(0, CONFIG.block_groups)[None, None, :]
    # groups are interleaved
    channel = (d * CONFIG.groups + g).to(CONFIG.index)
    offset = inside(x.strides, channel, row[:, None, None], column[:, None, None], LAYOUT)
    return offset, valid[:, None, None] & (d < CONFIG.depth) & (g < CONFIG.groups)


@triton.jit
def read_groups(x, row, column, valid, LAYOUT: tl.constexpr, CONFIG: tl.constexpr):
    """Return the values [P, D, G] of positions of an image, zero where they are not valid."""
    offset, mask = _group_offsets(x, row, column, valid, LAYOUT, CONFIG)
    return tl.load(x.pointer + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write_groups(x, row, column, valid, numbers, LAYOUT: tl.constexpr, CONFIG: tl.constexpr):
    """Write values [P, D, G] of positions of an image."""
    offset, mask = _group_offsets(x, row, column, valid, LAYOUT, CONFIG)
    tl.store(x.pointer + offset, numbers, mask=mask)


@triton.jit
def vector(tensor, index, end: tl.constexpr):
    """Return elements of a dense tensor by their indices, zero from ``end`` on."""
    return tl.load(tensor + index, mask=index < end, other=0.0).to(tl.float32)


@triton.jit
def write_vector(tensor, index, end: tl.constexpr, numbers):
    """Write elements of a dense tensor by their indices."""
    tl.store(tensor + index, numbers, mask=index < end)


@triton.jit
def matrix(
    tensor, row, column, row_stride, column_stride, rows: tl.constexpr, columns: tl.constexpr
):
    """Return elements [row, column] of a matrix by their indices, zero beyond its ends."""
    row, column = row[:, None], column[None, :]
    mask = (row < rows) & (column < columns)
    return tl.load(tensor + row * row_stride + column * column_stride, mask=mask, other=0.0)


@triton.jit
def write_matrix(tensor, row, column, columns_stride, rows, columns, numbers):
    """Write elements [row, column] of a matrix whose columns are dense."""
    row, column = row[:, None], column[None, :]
    mask = (row < rows) & (column < columns)
    tl.store(tensor + row * columns_stride + column, numbers, mask=mask)


def as_group(x: Tensor) -> Tensor:
    """Return a map (B, C, H, W) as the single group of its images."""
    return x.unsqueeze(1)


def as_map(x: Tensor) -> Map:
    """Return what a kernel takes of a map (B, 1, C, H, W)."""
    height, width = x.shape[3:]
    return Map(x, strides(x), (2 * height + 3, 2 * width + 3))


def buffer(batch: int, channels: int, size: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised channels-last map (B, 1, C, H, W) of float32 on a tensor's device."""
    x = torch.empty(batch, *size, channels, dtype=torch.float32, device=like.device)
    return x.permute(0, 3, 1, 2).unsqueeze(1)
