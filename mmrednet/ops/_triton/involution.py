"""Involution whose kernels are generated in registers.

One matrix product for each row u of T taps gives the kernels of a tile of P positions,

    kernel_u[P, G T] = hidden[P, R] @ weight_u[R, G T] + bias_u[G T],

for a block of G groups. The gradients are those of the definition. With stored kernels they were
measured to be faster than with kernels that are generated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import (
    cdiv,
    dot_precision,
    dot_type,
    float64_reasons,
    index_type,
    inside,
    launch,
    layout,
    neighbour,
    next_power_of_2,
    on_map,
    positions,
    start,
    strides,
    tiles,
    warps,
)

# what registers hold: channels of a group, hidden features, and columns of a window
MOST_CHANNELS, MOST_HIDDEN, MOST_COLUMNS = 128, 256, 32
# bytes of a factor of a matrix product: both factors and the product then fit into the 99 KB of
# shared memory that every chip since Ampere has
MOST_FACTOR = 1 << 15
# channels, or taps of a row, of a position in a program: those of two groups of RedNet
CHANNELS_OF_A_PROGRAM = 32
# elements of a tile per thread
ELEMENTS_OF_A_THREAD = 32
# arguments for whose values Triton must not compile anew
NOT_SPECIALISED = [
    *('value_strides', 'hidden_strides', 'weight_row', 'weight_column'),
    *('groups', 'height', 'width', 'out_height', 'out_width'),
]


@triton.jit
def _block(program, groups, BLOCK_G: tl.constexpr, INDEX: tl.constexpr):
    """Return the groups [G] of this program's block, and its number among the programs of the
    block.
    """
    # blocks run fastest: programs that run together read the same hidden features
    blocks = tl.cdiv(groups, BLOCK_G)
    return program % blocks * BLOCK_G + tl.arange(0, BLOCK_G), program // blocks


@triton.jit
def _offsets(
    strides,
    batch,
    group,
    channel,
    row,
    column,
    groups,
    channels: tl.constexpr,
    valid,
    LAYOUT: tl.constexpr,
):
    """Return the offsets [P, G, D] of positions [P], and their mask."""
    base = start(strides, batch, group, LAYOUT)[None, :, None]
    offset = inside(
        strides, channel[None, None, :], row[:, None, None], column[:, None, None], LAYOUT
    )
    # blocks are powers of two: the last group and the last channel may lie before their ends
    in_block = (group < groups)[None, :, None] & (channel < channels)[None, None, :]
    return base + offset, valid[:, None, None] & in_block


@triton.jit
def _load(
    tensor,
    strides,
    batch,
    group,
    channel,
    row,
    column,
    groups,
    channels: tl.constexpr,
    valid,
    LAYOUT: tl.constexpr,
):
    """Return elements [P, G, D] of positions [P], zero where they are not valid."""
    offset, mask = _offsets(
        strides, batch, group, channel, row, column, groups, channels, valid, LAYOUT
    )
    return tl.load(tensor + offset, mask=mask, other=0.0)


@triton.jit
def _features(
    hidden,
    strides,
    batch,
    row,
    column,
    valid,
    features: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Return the hidden features [P, R] of output positions."""
    feature = tl.arange(0, BLOCK_R).to(INDEX)[None, :]
    offset = inside(strides, feature, row[:, None], column[:, None], LAYOUT)
    base = start(strides, batch, tl.zeros_like(batch), LAYOUT)
    mask = valid[:, None] & (feature < features)
    return tl.load(hidden + base + offset, mask=mask, other=0.0)


@triton.jit
def _weight_rows(
    group, groups, u, WINDOW: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Return the rows [G * T] of the generator's weight for row u of kernels, and their mask."""
    tap = tl.arange(0, BLOCK_T)[None, :]
    weight_row = group[:, None] * (WINDOW[0] * WINDOW[1]) + u * WINDOW[1] + tap
    mask = (group < groups)[:, None] & (tap < WINDOW[1])
    return tl.reshape(weight_row, (BLOCK_G * BLOCK_T,)), tl.reshape(mask, (BLOCK_G * BLOCK_T,))


@triton.jit
def _row_of_kernels(
    hidden_features,
    weight,
    bias,
    u,
    group,
    groups,
    features: tl.constexpr,
    row_stride,
    column_stride,
    WINDOW: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the kernels [P, G, T] of row u of the taps."""
    feature = tl.arange(0, BLOCK_R)
    weight_row, row_mask = _weight_rows(group, groups, u, WINDOW, BLOCK_G, BLOCK_T)
    # read as its transpose [R, G T]
    w = tl.load(
        weight + weight_row.to(tl.int64)[None, :] * row_stride + feature[:, None] * column_stride,
        mask=(feature < features)[:, None] & row_mask[None, :],
        other=0.0,
    )
    kernels = tl.dot(hidden_features.to(DOT), w.to(DOT), input_precision=PRECISION)
    if bias is not None:
        kernels += tl.load(bias + weight_row, mask=row_mask, other=0.0).to(tl.float32)[None, :]
    return tl.reshape(kernels, (TILE, BLOCK_G, BLOCK_T))


@triton.jit
def _tap(
    kernels, v: tl.constexpr, TILE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Return tap v [P, G] of a row of kernels [P, G, T]."""
    # Registers cannot be indexed. Halves of halves need one exchange between threads for all taps
    # of a row, where a masked sum would need one for each tap.
    if BLOCK_T == 1:
        return tl.reshape(kernels, (TILE, BLOCK_G))
    else:
        halves = tl.permute(tl.reshape(kernels, (TILE, BLOCK_G, 2, BLOCK_T // 2)), (0, 1, 3, 2))
        first, second = tl.split(halves)
        if v < BLOCK_T // 2:
            return _tap(first, v, TILE, BLOCK_G, BLOCK_T // 2)
        else:
            return _tap(second, v - BLOCK_T // 2, TILE, BLOCK_G, BLOCK_T // 2)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def involution_kernel(
    value,
    hidden,
    weight,
    bias,
    result,
    # (batch, group, channel, row, column), coded as odd numbers
    value_strides,
    hidden_strides,
    result_strides,
    # strides of the generator's weight
    weight_row,
    weight_column,
    # sizes; those of channels and features are constants
    groups,
    channels: tl.constexpr,
    features: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding
    WINDOW: tl.constexpr,
    # layouts
    VALUE: tl.constexpr,
    HIDDEN: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile: groups, taps of a row, channels, features, rows and columns
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    # types of factors, precision of products, type of offsets
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[d, i] = sum over j of kernel_j[i] value[d, i + j]"""
    KERNEL_W: tl.constexpr = WINDOW[1]
    group, tile = _block(tl.program_id(0), groups, BLOCK_G, INDEX)
    tile_count = tl.cdiv(out_height, TILE_H) * tl.cdiv(out_width, TILE_W)
    batch = tile // tile_count
    row, column = positions(tile % tile_count, out_width, TILE_H, TILE_W, INDEX)
    inside_map = on_map(row, column, out_height, out_width)
    channel = tl.arange(0, BLOCK_D).to(INDEX)
    # read once: the features generate the kernels of all rows of taps
    hidden_features = _features(
        hidden, hidden_strides, batch, row, column, inside_map, features, HIDDEN, BLOCK_R, INDEX
    )
    total = tl.zeros((TILE_H * TILE_W, BLOCK_G, BLOCK_D), tl.float32)
    for u in range(WINDOW[0]):
        # one row of taps at a time: all kernels at once would not fit into registers
        kernels = _row_of_kernels(
            *(hidden_features, weight, bias, u, group, groups, features),
            *(weight_row, weight_column, WINDOW, BLOCK_G, BLOCK_T, BLOCK_R),
            *(TILE_H * TILE_W, DOT, PRECISION),
        )
        for v in tl.static_range(KERNEL_W):
            y, x = neighbour(row, column, u, v, WINDOW)
            valid = inside_map & on_map(y, x, height, width)
            neighbour_values = _load(
                value, value_strides, batch, group, channel, y, x, groups, channels, valid, VALUE
            )
            kernel = _tap(kernels, v, TILE_H * TILE_W, BLOCK_G, BLOCK_T)
            # a neighbour outside the map adds nothing, even if its weight is not finite
            kernel = tl.where(valid[:, None], kernel, 0.0)
            total += kernel[:, :, None] * neighbour_values.to(tl.float32)
    offset, mask = _offsets(
        result_strides, batch, group, channel, row, column, groups, channels, inside_map, RESULT
    )
    tl.store(result + offset, total, mask=mask)


def _features_block(hidden: Tensor) -> int:
    """Return the size of a block of hidden features."""
    # a matrix product sums over at least 16
    return max(16, next_power_of_2(hidden.shape[1]))


def _most_rows(hidden: Tensor, weight: Tensor) -> int:
    """Return the largest number of rows of a factor [rows, R] of a matrix product."""
    element_bytes = dot_type(hidden, weight).primitive_bitwidth // 8
    return MOST_FACTOR // (element_bytes * _features_block(hidden))


def reasons_against_involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> list[str]:
    """Return the reasons why the kernel cannot take these tensors."""
    reasons = float64_reasons(value=value, hidden=hidden, weight=weight, bias=bias)
    if value.shape[2] > MOST_CHANNELS:
        reasons.append(f'more than {MOST_CHANNELS} channels of a group, {value.shape[2]}')
    if hidden.shape[1] > MOST_HIDDEN:
        reasons.append(f'more than {MOST_HIDDEN} hidden features, {hidden.shape[1]}')
    most_columns = min(MOST_COLUMNS, _most_rows(hidden, weight))
    if window[1] > most_columns:
        reasons.append(f'a window of more than {most_columns} columns, {window[1]}')
    return reasons


def _blocks(value: Tensor, hidden: Tensor, weight: Tensor, columns: int) -> dict[str, Any]:
    """Return the constants of a launch that depend on sizes, for a window of so many columns."""
    channels = next_power_of_2(value.shape[2])
    taps = next_power_of_2(columns)
    most_rows = _most_rows(hidden, weight)
    groups = min(
        next_power_of_2(value.shape[1]),
        max(1, CHANNELS_OF_A_PROGRAM // max(channels, taps)),
        max(1, most_rows // taps),
    )
    # at least 16, as a matrix product asks; at most what registers and shared memory hold
    positions_of_a_program = min(64, most_rows, max(16, 4096 // (groups * max(channels, taps))))
    return dict(
        BLOCK_G=groups,
        # a matrix product has at least 16 columns [G * T]
        BLOCK_T=max(taps, cdiv(16, groups)),
        BLOCK_D=channels,
        BLOCK_R=_features_block(hidden),
        TILE_H=positions_of_a_program // 16,
        TILE_W=16,
        DOT=dot_type(hidden, weight),
        PRECISION=dot_precision(),
        num_warps=warps(positions_of_a_program * groups * channels, ELEMENTS_OF_A_THREAD),
        num_stages=1,
    )


def involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """See :func:`mmrednet.ops.local_involution`."""
    size = hidden.shape[-2:]
    result = empty_in_layout_of(value, (*value.shape[:3], *size), value.dtype)
    # hidden features are the single group of their images
    features = hidden.unsqueeze(1)
    blocks = _blocks(value, hidden, weight, window[1])
    tile_count = tiles(size, (blocks['TILE_H'], blocks['TILE_W']))
    group_blocks = cdiv(value.shape[1], blocks['BLOCK_G'])
    groups, channels, *value_size = value.shape[1:]
    views = (value, features, result)
    launch(
        involution_kernel,
        len(value) * tile_count * group_blocks,
        value.device,
        *(value, hidden, weight, bias, result),
        *map(strides, views),
        *weight.stride(),
        *(groups, channels, hidden.shape[1], *value_size, *size),
        **dict(VALUE=layout(value), HIDDEN=layout(features), RESULT=layout(result)),
        **blocks,
        WINDOW=tuple(window),
        INDEX=index_type(*views),
    )
    return result
