"""What the kernels of local attention share: tiles of a head, logits of a tap, and launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .tiles import (
    inside,
    is_shifted,
    next_power_of_2,
    on_map,
    positions,
    warps,
    window_start,
)

# arguments for whose values Triton must not compile anew
NOT_SPECIALISED = [
    *('query_strides', 'key_strides', 'value_strides', 'grad_strides', 'sum_strides'),
    *('heads', 'height', 'width', 'out_height', 'out_width'),
]

# rows and columns of a program's tile
TILE = (2, 16)
# elements of a tile of queries per thread: there are as many of keys, of values and of sums
ELEMENTS_OF_A_THREAD = 32


@triton.jit
def head_tile(
    heads, height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr, INDEX: tl.constexpr
):
    """Return head and image of this program, rows and columns [P] of its tile, and the mask of
    those on the map.
    """
    # heads run fastest: programs that run together share a channels-last tile
    program = tl.program_id(0)
    tile_count = tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W)
    tile = program // heads % tile_count
    row, column = positions(tile, width, TILE_H, TILE_W, INDEX)
    image = program // heads // tile_count
    return program % heads, image, row, column, on_map(row, column, height, width)


@triton.jit
def load_map(tensor, strides, axis, row, column, valid, LAYOUT: tl.constexpr):
    """Return elements [P, D] in float32, zero where positions are not valid.

    ``axis`` has the numbers [D] of the channels, and the mask of those that exist.
    """
    offset = inside(strides, axis[0][None, :], row[:, None], column[:, None], LAYOUT)
    mask = valid[:, None] & axis[1][None, :]
    return tl.load(tensor + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_map(tensor, strides, axis, row, column, valid, elements, LAYOUT: tl.constexpr):
    """Write elements [P, D] of the positions that are valid. See :func:`load_map`."""
    offset = inside(strides, axis[0][None, :], row[:, None], column[:, None], LAYOUT)
    tl.store(tensor + offset, elements, mask=valid[:, None] & axis[1][None, :])


@triton.jit
def position_embedding(
    rows, columns, head, u, v, channel, channels: tl.constexpr, WINDOW: tl.constexpr
):
    """Return the embedding [D] of tap (u, v), of which the first half is that of row u."""
    half = channels // 2
    row_offset = (head * half + channel) * WINDOW[0] + u
    column_offset = (head * half + channel - half) * WINDOW[1] + v
    # each half is zero in the channels of the other, so that their sum joins them
    row = tl.load(rows + row_offset, mask=channel < half, other=0.0).to(tl.float32)
    column_mask = (channel >= half) & (channel < channels)
    return row + tl.load(columns + column_offset, mask=column_mask, other=0.0).to(tl.float32)


@triton.jit
def bias_of_outputs(
    bias,
    head,
    row,
    column,
    valid,
    height,
    width,
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """Return where the bias of the first tap is: for all outputs, or with shifted windows for the
    place [P] of each output in its window.
    """
    TAPS: tl.constexpr = WINDOW[0] * WINDOW[1]
    if SHIFTED:
        place_row = row - window_start(row, height, WINDOW[0])
        place_column = column - window_start(column, width, WINDOW[1])
        # positions beyond the map have no place
        place = tl.where(valid, place_row * WINDOW[1] + place_column, 0)
        return bias + (head * TAPS + place) * TAPS
    else:
        return bias + head * TAPS


@triton.jit
def tap_logits(
    query,
    key,
    rows,
    columns,
    bias,
    head,
    tap,
    channel,
    channels: tl.constexpr,
    valid,
    WINDOW: tl.constexpr,
    DIFFERENCE: tl.constexpr = False,
):
    """Return the logits [P] of one tap, and its keys [P, D] with the position embedding.

    ``bias`` is that of :func:`bias_of_outputs`.
    """
    # q . k + q . r = q . (k + r): one sum over channels
    if rows is not None:
        u, v = tap // WINDOW[1], tap % WINDOW[1]
        embedding = position_embedding(rows, columns, head, u, v, channel, channels, WINDOW)
        key = key + embedding[None, :]
    logits = -tl.sum(tl.abs(query - key), 1) if DIFFERENCE else tl.sum(query * key, 1)
    if bias is not None:
        logits += tl.load(bias + tap).to(tl.float32)
    return tl.where(valid, logits, float('-inf')), key


@triton.jit
def finite(number):
    """Return a number, or zero where it is infinite."""
    # -inf - -inf is NaN: where all logits are -inf, subtract nothing
    return tl.where(tl.abs(number) == float('inf'), 0.0, number)


def constants(window: Sequence[int], query: Tensor, value: Tensor) -> dict[str, Any]:
    """Return the compile-time constants of a launch that depend on sizes."""
    key_block = next_power_of_2(query.shape[2])
    value_block = next_power_of_2(value.shape[2])
    return dict(
        WINDOW=tuple(window[:8]),
        SHIFTED=is_shifted(window),
        BLOCK_D=key_block,
        BLOCK_V=value_block,
        TILE_H=TILE[0],
        TILE_W=TILE[1],
        num_warps=warps(TILE[0] * TILE[1] * max(key_block, value_block), ELEMENTS_OF_A_THREAD),
    )


def dense(table: Tensor | None) -> Tensor | None:
    """Return a contiguous tensor: kernels compute the offsets in tables from their sizes."""
    return None if table is None else table.contiguous()


def sizes_of(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, ...]:
    """Return the sizes that every kernel takes: heads, channels, map and output positions."""
    return (*query.shape[1:3], value.shape[2], *key.shape[-2:], *query.shape[-2:])


def planar(sums: Tensor) -> tuple[int, ...]:
    """Return the coded strides of a contiguous tensor (B, N, 1, Ho, Wo)."""
    # Not tensor.stride(), which is arbitrary for dimensions of size one: the layout of the sums is
    # fixed in the kernels.
    heads, _, height, width = sums.shape[1:]
    size = height * width
    return tuple(2 * step + 3 for step in (heads * size, size, size, width, 1))
