"""Involution whose kernels are generated in registers, and its gradients, which generate them
again.

Kernels of a tile of P positions come from one matrix product for each row of T taps,

    kernel_u[P, G T] = hidden[P, R] @ weight_u[R, G T] + bias_u[G T],

for a block of groups, whose channels are multiplied at once; towards the map, where each tap
belongs to another output, from one for each tap. The gradients of kernels are made for a row of
taps at a time too, and enter the products with the generator's weight and with the hidden features:

    grad_hidden[P, R] = sum over rows u of  grad_kernels_u[P, G T] @ weight_u[G T, R]
    grad_weight_u[G T, R] = sum over tiles of  grad_kernels_u[P, G T]^T @ hidden[P, R]

Sums over tiles are taken in a fixed order: one partial sum for each program, added up afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import involution as plain
from .._torch import empty_in_layout_of
from .tiles import (
    dot_precision,
    dot_type,
    index_type,
    inside,
    launch,
    layout,
    neighbour,
    on_map,
    positions,
    start,
    strides,
    tiles,
    viewer,
)

# what registers hold: more channels of a group or hidden features, or wider windows, are left to
# the composition
MOST_CHANNELS, MOST_HIDDEN, MOST_COLUMNS = 128, 256, 32
# bytes of a factor of a matrix product: with both of them, and what is made of them, a kernel stays
# within the 99 KB of shared memory that every chip since Ampere has
MOST_FACTOR = 1 << 15
# programs that share the sum over tiles of the gradient of the generator's weight
PROGRAMS = 1024
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
    'splits',
    'count',
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
def _kernels(
    seen_features,
    weight,
    bias,
    tap,
    group,
    groups,
    features: tl.constexpr,
    weight_row,
    weight_column,
    TAPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the kernels [P, G] of one tap."""
    feature = tl.arange(0, BLOCK_R)
    line = group * TAPS + tap
    mask = (feature < features)[:, None] & (group < groups)[None, :]
    w = tl.load(
        weight + line.to(tl.int64)[None, :] * weight_row + feature[:, None] * weight_column,
        mask=mask,
        other=0.0,
    )
    made = tl.dot(seen_features.to(DOT), w.to(DOT), input_precision=PRECISION)
    if bias is not None:
        made += tl.load(bias + line, mask=group < groups, other=0.0).to(tl.float32)[None, :]
    return made


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


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def value_kernel(
    grad,
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
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """grad_value[d, m] = sum over j of kernel_j[i] grad[d, i], with the output i that sees m
    through tap j
    """
    TAPS: tl.constexpr = WINDOW[0] * WINDOW[1]
    group, rest = _block(tl.program_id(0), groups, BLOCK_G, INDEX)
    count = tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W)
    batch = rest // count
    row, column = positions(rest % count, width, TILE_H, TILE_W, INDEX)
    real = on_map(row, column, height, width)
    channel = tl.arange(0, BLOCK_D).to(INDEX)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_G, BLOCK_D), tl.float32)
    for tap in range(TAPS):
        y, x, seen = viewer(
            row, column, tap // WINDOW[1], tap % WINDOW[1], out_height, out_width, WINDOW
        )
        seen = seen & real
        found = _features(
            hidden, hidden_strides, batch, y, x, seen, features, HIDDEN, BLOCK_R, INDEX
        )
        made = _kernels(
            found,
            weight,
            bias,
            tap,
            group,
            groups,
            features,
            weight_row,
            weight_column,
            TAPS,
            BLOCK_R,
            DOT,
            PRECISION,
        )
        above = _load(
            grad, value_strides, batch, group, channel, y, x, groups, channels, seen, VALUE
        )
        total += tl.where(seen[:, None], made, 0.0)[:, :, None] * above.to(tl.float32)
    place, there = _places(
        result_strides, batch, group, channel, row, column, groups, channels, real, RESULT
    )
    tl.store(result + place, total, mask=there)


@triton.jit
def _kernel_gradients(
    above,
    value,
    strides,
    batch,
    group,
    channel,
    row,
    column,
    real,
    u,
    groups,
    channels: tl.constexpr,
    height,
    width,
    WINDOW: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return [P, G * T], the gradients of the kernels for the taps of row u, zero for T taps beyond
    them.
    """
    place = tl.arange(0, BLOCK_T)[None, None, :]
    gradients = tl.zeros((TILE, BLOCK_G, BLOCK_T), tl.float32)
    for v in range(WINDOW[1]):
        y, x = neighbour(row, column, u, v, WINDOW)
        seen = real & on_map(y, x, height, width)
        near = _load(value, strides, batch, group, channel, y, x, groups, channels, seen, VALUE)
        gradients = tl.where(
            place == v, tl.sum(above * near.to(tl.float32), 2)[:, :, None], gradients
        )
    return tl.reshape(gradients, (TILE, BLOCK_G * BLOCK_T))


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def hidden_kernel(
    grad,
    value,
    weight,
    result,
    grad_strides,
    value_strides,
    hidden_strides,
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
    GRAD: tl.constexpr,
    VALUE: tl.constexpr,
    HIDDEN: tl.constexpr,
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
    """grad_hidden[r, i] = sum over g and j of grad_kernel_gj[i] weight[g K + j, r]"""
    count = tl.cdiv(out_height, TILE_H) * tl.cdiv(out_width, TILE_W)
    batch = tl.program_id(0) // count
    row, column = positions(tl.program_id(0) % count, out_width, TILE_H, TILE_W, INDEX)
    real = on_map(row, column, out_height, out_width)
    channel = tl.arange(0, BLOCK_D).to(INDEX)
    feature = tl.arange(0, BLOCK_R)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_R), tl.float32)
    for first in range(0, groups, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G)
        above = _load(
            grad, grad_strides, batch, group, channel, row, column, groups, channels, real, GRAD
        ).to(tl.float32)
        for u in range(WINDOW[0]):
            made = _kernel_gradients(
                above,
                value,
                value_strides,
                batch,
                group,
                channel,
                row,
                column,
                real,
                u,
                groups,
                channels,
                height,
                width,
                WINDOW,
                VALUE,
                BLOCK_G,
                BLOCK_T,
                TILE_H * TILE_W,
            )
            line, there = _lines(group, groups, u, WINDOW, BLOCK_G, BLOCK_T)
            w = tl.load(
                weight + line.to(tl.int64)[:, None] * weight_row + feature[None, :] * weight_column,
                mask=there[:, None] & (feature < features)[None, :],
                other=0.0,
            )
            total += tl.dot(made.to(DOT), w.to(DOT), input_precision=PRECISION)
    at = inside(hidden_strides, feature.to(INDEX)[None, :], row[:, None], column[:, None], HIDDEN)
    base = start(hidden_strides, batch, tl.zeros_like(batch), HIDDEN)
    tl.store(result + base + at, total, mask=real[:, None] & (feature < features)[None, :])


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def weight_kernel(
    grad,
    value,
    hidden,
    weight_parts,
    bias_parts,
    grad_strides,
    value_strides,
    hidden_strides,
    groups,
    channels: tl.constexpr,
    features: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    splits,
    count,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    VALUE: tl.constexpr,
    HIDDEN: tl.constexpr,
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
    """grad_weight[g K + j, r] = sum over i of grad_kernel_gj[i] hidden[r, i], for the tiles of one
    split
    """
    group, rest = _block(tl.program_id(0), groups, BLOCK_G, INDEX)
    u, split = rest % WINDOW[0], rest // WINDOW[0]
    channel = tl.arange(0, BLOCK_D).to(INDEX)
    feature = tl.arange(0, BLOCK_R)
    across = tl.cdiv(out_height, TILE_H) * tl.cdiv(out_width, TILE_W)
    weights = tl.zeros((BLOCK_G * BLOCK_T, BLOCK_R), tl.float32)
    biases = tl.zeros((BLOCK_G * BLOCK_T,), tl.float32)
    for tile in range(split, count, splits):
        batch = tile // across
        row, column = positions(tile % across, out_width, TILE_H, TILE_W, INDEX)
        real = on_map(row, column, out_height, out_width)
        above = _load(
            grad, grad_strides, batch, group, channel, row, column, groups, channels, real, GRAD
        ).to(tl.float32)
        made = _kernel_gradients(
            above,
            value,
            value_strides,
            batch,
            group,
            channel,
            row,
            column,
            real,
            u,
            groups,
            channels,
            height,
            width,
            WINDOW,
            VALUE,
            BLOCK_G,
            BLOCK_T,
            TILE_H * TILE_W,
        )
        found = _features(
            hidden, hidden_strides, batch, row, column, real, features, HIDDEN, BLOCK_R, INDEX
        )
        weights += tl.dot(tl.trans(made.to(DOT)), found.to(DOT), input_precision=PRECISION)
        biases += tl.sum(made, 0)
    line, there = _lines(group, groups, u, WINDOW, BLOCK_G, BLOCK_T)
    at = split.to(tl.int64) * groups * (WINDOW[0] * WINDOW[1]) + line
    tl.store(
        weight_parts + at[:, None] * features + feature[None, :],
        weights,
        mask=there[:, None] & (feature < features)[None, :],
    )
    tl.store(bias_parts + at, biases, mask=there)


def _features_block(hidden: Tensor) -> int:
    return max(16, triton.next_power_of_2(hidden.shape[1]))


def _most_lines(hidden: Tensor, weight: Tensor) -> int:
    """Return how many positions, or lines of the generator's weight, a factor [lines, R] may
    have."""
    dtype = dot_type(hidden, weight)
    return MOST_FACTOR // (dtype.primitive_bitwidth // 8 * _features_block(hidden))


def fits(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> bool:
    """Say whether the fused kernels take these tensors; the composition takes all."""
    wide = any(
        tensor is not None and tensor.dtype == torch.float64
        for tensor in (value, hidden, weight, bias)
    )
    small = value.shape[2] <= MOST_CHANNELS and hidden.shape[1] <= MOST_HIDDEN
    return not wide and small and window[1] <= min(MOST_COLUMNS, _most_lines(hidden, weight))


def _grouped(hidden: Tensor) -> Tensor:
    """Return hidden features (B, R, H, W) as the one group of their images."""
    return hidden.unsqueeze(1)


def _blocks(value: Tensor, hidden: Tensor, weight: Tensor, taps: int = 1) -> dict[str, Any]:
    """Return the sizes of a program's blocks: up to 128 channels, or gradients of kernels, of a
    position together.
    """
    channels = triton.next_power_of_2(value.shape[2])
    widest = max(channels, triton.next_power_of_2(taps))
    most = _most_lines(hidden, weight)
    groups = min(
        triton.next_power_of_2(value.shape[1]),
        max(1, 128 // widest),
        max(1, most // triton.next_power_of_2(taps)),
    )
    place = min(64, most, max(16, 4096 // (groups * widest)))
    return dict(
        BLOCK_G=groups,
        BLOCK_D=channels,
        BLOCK_R=_features_block(hidden),
        TILE_H=place // 16,
        TILE_W=16,
        DOT=dot_type(hidden, weight),
        PRECISION=dot_precision(),
        num_stages=1,
    )


def _row_blocks(
    value: Tensor, hidden: Tensor, weight: Tensor, window: Sequence[int]
) -> dict[str, Any]:
    """Return the sizes of a program's blocks where a row of taps is made at once."""
    blocks = _blocks(value, hidden, weight, window[1])
    return blocks | dict(
        BLOCK_T=max(triton.next_power_of_2(window[1]), triton.cdiv(16, blocks['BLOCK_G']))
    )


def involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """See :func:`mmrednet.ops.local_involution`."""
    if not fits(value, hidden, weight, bias, window):
        return plain.definition(value, hidden, weight, bias, window)
    result = empty_in_layout_of(value, (*value.shape[:3], *hidden.shape[-2:]), value.dtype)
    blocks = _row_blocks(value, hidden, weight, window)
    _generate_and_add(
        involution_kernel, value, hidden, weight, bias, result, value.shape[-2:], window, blocks
    )
    return result


def _generate_and_add(
    kernel: Any,
    source: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    result: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    blocks: dict[str, Any],
) -> None:
    """Launch one of the two kernels that add what they read times generated kernels: forward, or to
    the map.
    """
    features = _grouped(hidden)
    programs = tiles(result.shape[-2:], (blocks['TILE_H'], blocks['TILE_W'])) * len(result)
    launch(
        kernel,
        programs * triton.cdiv(source.shape[1], blocks['BLOCK_G']),
        source.device,
        source,
        hidden,
        weight,
        bias,
        result,
        strides(source),
        strides(features),
        strides(result),
        *weight.stride(),
        *source.shape[1:3],
        hidden.shape[1],
        *size,
        *hidden.shape[-2:],
        WINDOW=tuple(window),
        VALUE=layout(source),
        HIDDEN=layout(features),
        RESULT=layout(result),
        INDEX=index_type(source, features, result),
        **blocks,
    )


def involution_backward(
    grad: Tensor,
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`mmrednet.ops.involution.gradients`."""
    if not fits(value, hidden, weight, bias, window) or grad.dtype == torch.float64:
        return plain.dense_gradients(grad, value, hidden, weight, bias, window)
    grad_value = empty_in_layout_of(grad, value.shape, value.dtype)
    _generate_and_add(
        value_kernel,
        grad,
        hidden,
        weight,
        bias,
        grad_value,
        value.shape[-2:],
        window,
        _blocks(grad, hidden, weight),
    )
    grad_hidden, features = empty_in_layout_of(hidden, hidden.shape, hidden.dtype), _grouped(hidden)
    blocks = _row_blocks(value, hidden, weight, window)
    sizes = (*value.shape[1:3], hidden.shape[1], *value.shape[-2:], *hidden.shape[-2:])
    blocks |= dict(
        num_warps=8,
        WINDOW=tuple(window),
        GRAD=layout(grad),
        VALUE=layout(value),
        INDEX=index_type(grad, value, features),
    )
    count = tiles(hidden.shape[-2:], (blocks['TILE_H'], blocks['TILE_W'])) * len(hidden)
    made = _grouped(grad_hidden)
    launch(
        hidden_kernel,
        count,
        grad.device,
        grad,
        value,
        weight,
        grad_hidden,
        strides(grad),
        strides(value),
        strides(made),
        *weight.stride(),
        *sizes,
        HIDDEN=layout(made),
        **blocks,
    )
    lines = window[0] * triton.cdiv(value.shape[1], blocks['BLOCK_G'])
    splits = max(1, min(count, PROGRAMS // lines))
    weight_parts, bias_parts = (
        weight.new_empty((splits, *shape), dtype=torch.float32)
        for shape in (weight.shape, weight.shape[:1])
    )
    launch(
        weight_kernel,
        splits * lines,
        grad.device,
        grad,
        value,
        hidden,
        weight_parts,
        bias_parts,
        strides(grad),
        strides(value),
        strides(features),
        *sizes,
        splits,
        count,
        HIDDEN=layout(features),
        **blocks,
    )
    grad_bias = weight.new_empty(0) if bias is None else bias_parts.sum(0).to(bias.dtype)
    return grad_value, grad_hidden, weight_parts.sum(0).to(weight.dtype), grad_bias
