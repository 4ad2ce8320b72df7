"""Involution whose kernels are generated in registers.

Kernels of a tile of P positions come from one matrix product for each row of T taps,

    kernel_u[P, G T] = hidden[P, R] @ weight_u[R, G T] + bias_u[G T],

for a block of G groups, whose channels are multiplied at once. The gradients are those of the
definition: with kernels in memory they were measured to be faster than kernels generated again.
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

# what registers hold
MOST_CHANNELS, MOST_HIDDEN, MOST_COLUMNS = 128, 256, 32
# bytes of a factor of a matrix product: with both of them, and the product, the kernel stays within
# the 99 KB of shared memory that every chip since Ampere has
MOST_FACTOR = 1 << 15
# channels, or taps of a row, of a position that a program works on: two groups of RedNet
CHANNELS_OF_A_PROGRAM = 32
# elements of a tile that a thread holds
ELEMENTS_OF_A_THREAD = 32
NOT_SPECIALISED = [
    'value_strides',
    'hidden_strides',
    'weight_row',
    'weight_column',
    'groups',
    'height',
    'width',
    'out_height',
    'out_width',
]


@triton.jit
def _block(program, groups, BLOCK_G: tl.constexpr, INDEX: tl.constexpr):
    """Return the groups [G] of this program's block, and the number of the program among those of
    the block.
    """
    blocks = tl.cdiv(groups, BLOCK_G)
    return program % blocks * BLOCK_G + tl.arange(0, BLOCK_G), program // blocks


@triton.jit
def _places(
    strides,
    batch,
    group,
    channel,
    row,
    column,
    groups,
    channels: tl.constexpr,
    seen,
    LAYOUT: tl.constexpr,
):
    """Return where [P, G, D] of positions [P] lie, and which of them there are."""
    base = start(strides, batch, group, LAYOUT)[None, :, None]
    at = inside(strides, channel[None, None, :], row[:, None, None], column[:, None, None], LAYOUT)
    real = (group < groups)[None, :, None] & (channel < channels)[None, None, :]
    return base + at, seen[:, None, None] & real


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
    seen,
    LAYOUT: tl.constexpr,
):
    """Return [P, G, D] of positions [P], zero where they are not seen."""
    place, there = _places(
        strides, batch, group, channel, row, column, groups, channels, seen, LAYOUT
    )
    return tl.load(tensor + place, mask=there, other=0.0)


@triton.jit
def _features(
    hidden,
    strides,
    batch,
    row,
    column,
    seen,
    features: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Return [P, R] of the hidden features of output positions."""
    feature = tl.arange(0, BLOCK_R).to(INDEX)[None, :]
    at = inside(strides, feature, row[:, None], column[:, None], LAYOUT)
    base = start(strides, batch, tl.zeros_like(batch), LAYOUT)
    return tl.load(hidden + base + at, mask=seen[:, None] & (feature < features), other=0.0)


@triton.jit
def _lines(group, groups, u, WINDOW: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return the rows [G * T] of the generator's weight that make row u of the kernels, and which
    there are.
    """
    place = tl.arange(0, BLOCK_T)[None, :]
    line = group[:, None] * (WINDOW[0] * WINDOW[1]) + u * WINDOW[1] + place
    real = (group < groups)[:, None] & (place < WINDOW[1])
    return tl.reshape(line, (BLOCK_G * BLOCK_T,)), tl.reshape(real, (BLOCK_G * BLOCK_T,))


@triton.jit
def _row_of_kernels(
    found,
    weight,
    bias,
    u,
    group,
    groups,
    features: tl.constexpr,
    weight_row,
    weight_column,
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
    line, there = _lines(group, groups, u, WINDOW, BLOCK_G, BLOCK_T)
    w = tl.load(
        weight + line.to(tl.int64)[None, :] * weight_row + feature[:, None] * weight_column,
        mask=(feature < features)[:, None] & there[None, :],
        other=0.0,
    )
    made = tl.dot(found.to(DOT), w.to(DOT), input_precision=PRECISION)
    if bias is not None:
        made += tl.load(bias + line, mask=there, other=0.0).to(tl.float32)[None, :]
    return tl.reshape(made, (TILE, BLOCK_G, BLOCK_T))


@triton.jit
def _tap(made, v: tl.constexpr, TILE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return [P, G], tap v of [P, G, T]: halves of halves, so that all taps of a row change threads
    at once.
    """
    if BLOCK_T == 1:
        return tl.reshape(made, (TILE, BLOCK_G))
    else:
        halves = tl.permute(tl.reshape(made, (TILE, BLOCK_G, 2, BLOCK_T // 2)), (0, 1, 3, 2))
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
    value_strides,
    hidden_strides,
    result_strides,
    weight_row,
    weight_column,
    groups,
    channels: tl.constexpr,
    features: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    VALUE: tl.constexpr,
    HIDDEN: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[d, i] = sum over j of kernel_j[i] value[d, i + j]"""
    KERNEL_W: tl.constexpr = WINDOW[1]
    group, rest = _block(tl.program_id(0), groups, BLOCK_G, INDEX)
    count = tl.cdiv(out_height, TILE_H) * tl.cdiv(out_width, TILE_W)
    batch = rest // count
    row, column = positions(rest % count, out_width, TILE_H, TILE_W, INDEX)
    real = on_map(row, column, out_height, out_width)
    channel = tl.arange(0, BLOCK_D).to(INDEX)
    found = _features(
        hidden, hidden_strides, batch, row, column, real, features, HIDDEN, BLOCK_R, INDEX
    )
    total = tl.zeros((TILE_H * TILE_W, BLOCK_G, BLOCK_D), tl.float32)
    for u in range(WINDOW[0]):
        made = _row_of_kernels(
            found,
            weight,
            bias,
            u,
            group,
            groups,
            features,
            weight_row,
            weight_column,
            WINDOW,
            BLOCK_G,
            BLOCK_T,
            BLOCK_R,
            TILE_H * TILE_W,
            DOT,
            PRECISION,
        )
        for v in tl.static_range(KERNEL_W):
            y, x = neighbour(row, column, u, v, WINDOW)
            seen = real & on_map(y, x, height, width)
            near = _load(
                value, value_strides, batch, group, channel, y, x, groups, channels, seen, VALUE
            )
            kernel = _tap(made, v, TILE_H * TILE_W, BLOCK_G, BLOCK_T)
            # a neighbour that is not there adds nothing, whatever its weight
            total += tl.where(seen[:, None], kernel, 0.0)[:, :, None] * near.to(tl.float32)
    place, there = _places(
        result_strides, batch, group, channel, row, column, groups, channels, real, RESULT
    )
    tl.store(result + place, total, mask=there)


def _features_block(hidden: Tensor) -> int:
    return max(16, next_power_of_2(hidden.shape[1]))


def _most_rows(hidden: Tensor, weight: Tensor) -> int:
    """Return how many rows a factor [rows, R] of a matrix product may have."""
    element_bytes = dot_type(hidden, weight).primitive_bitwidth // 8
    return MOST_FACTOR // (element_bytes * _features_block(hidden))


def reasons_against_involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> list[str]:
    """Return why the kernel cannot take these tensors: nothing where it can."""
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
    """Return the sizes of a program's blocks for a window of so many columns."""
    channels = next_power_of_2(value.shape[2])
    taps = next_power_of_2(columns)
    most_rows = _most_rows(hidden, weight)
    groups = min(
        next_power_of_2(value.shape[1]),
        max(1, CHANNELS_OF_A_PROGRAM // max(channels, taps)),
        max(1, most_rows // taps),
    )
    # a matrix product has at least 16 rows, and at most what registers hold
    positions_of_a_program = min(64, most_rows, max(16, 4096 // (groups * max(channels, taps))))
    return dict(
        BLOCK_G=groups,
        # and at least 16 columns, [G * T]
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
    # hidden features as the one group of their images
    features = hidden.unsqueeze(1)
    blocks = _blocks(value, hidden, weight, window[1])
    programs = (
        len(value)
        * tiles(size, (blocks['TILE_H'], blocks['TILE_W']))
        * cdiv(value.shape[1], blocks['BLOCK_G'])
    )
    launch(
        involution_kernel,
        programs,
        value.device,
        value,
        hidden,
        weight,
        bias,
        result,
        strides(value),
        strides(features),
        strides(result),
        *weight.stride(),
        *value.shape[1:3],
        hidden.shape[1],
        *value.shape[-2:],
        *size,
        WINDOW=tuple(window),
        VALUE=layout(value),
        HIDDEN=layout(features),
        RESULT=layout(result),
        INDEX=index_type(value, features, result),
        **blocks,
    )
    return result
