"""Aggregate, correlate and scatter: the three primitives.

One program computes a tile of positions for some channels of one group of one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import (
    cdiv,
    dilation_reasons,
    index_type,
    inside,
    is_shifted,
    launch,
    layout,
    neighbour_of_window,
    next_power_of_2,
    on_map,
    positions,
    shifted_viewer,
    start,
    strides,
    sum_type,
    tiles,
    viewer,
    viewer_count,
    warps,
)

# rows and columns of a program's tile: columns first, since neighbours in a row share cache lines
TILE = (2, 16)
# elements of a tile per thread: fastest of those measured on an H200
ELEMENTS_OF_A_THREAD = 8
# arguments for whose values Triton must not compile anew
NOT_SPECIALISED = ['result_strides', 'groups', 'height', 'width', 'out_height', 'out_width']


@triton.jit
def _split(
    groups,
    channels: tl.constexpr,
    height,
    width,
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Return the chunk of channels, the group, the tile and the image of this program."""
    # channels and groups run fastest, so that programs that run together share a channels-last tile
    program = tl.program_id(0)
    chunks = tl.cdiv(channels, BLOCK_D)
    tile_count = tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W)
    group_index = program // chunks
    tile_index = group_index // groups
    return (
        program % chunks,
        group_index % groups,
        tile_index % tile_count,
        tile_index // tile_count,
    )


@triton.jit(do_not_specialize=['value_strides', 'weight_strides', *NOT_SPECIALISED])
def aggregate_kernel(
    value,
    weight,
    result,
    # (batch, group, channel or tap, row, column), coded as odd numbers
    value_strides,
    weight_strides,
    result_strides,
    # sizes; that of the channels is a constant
    groups,
    channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding; whether windows at the border are moved inwards
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    # layouts
    VALUE: tl.constexpr,
    WEIGHT: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    # types of sums and of offsets
    SUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[d, i] = sum over j of weight[j, i] value[d, i + j]"""
    chunk, group, tile, batch = _split(
        groups, channels, out_height, out_width, BLOCK_D, TILE_H, TILE_W
    )
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    channel = (chunk * BLOCK_D + tl.arange(0, BLOCK_D)).to(INDEX)[None, :]
    inside_map = on_map(row, column, out_height, out_width)
    value += start(value_strides, batch, group, VALUE)
    weight += start(weight_strides, batch, group, WEIGHT)
    result += start(result_strides, batch, group, RESULT)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_D), SUM)
    KERNEL_W: tl.constexpr = WINDOW[1]
    for u in range(WINDOW[0]):
        for v in tl.static_range(KERNEL_W):
            y, x = neighbour_of_window(row, column, u, v, height, width, WINDOW, SHIFTED)
            valid = inside_map & on_map(y, x, height, width)
            # a tensor, because its product with a stride needs the type INDEX
            tap = tl.full((1,), u * KERNEL_W + v, INDEX)
            w_offset = inside(weight_strides, tap, row, column, WEIGHT)
            w = tl.load(weight + w_offset, mask=valid, other=0.0)
            v_offset = inside(value_strides, channel, y[:, None], x[:, None], VALUE)
            v_mask = valid[:, None] & (channel < channels)
            neighbour_values = tl.load(value + v_offset, mask=v_mask, other=0.0)
            total += w.to(SUM)[:, None] * neighbour_values.to(SUM)
    offset = inside(result_strides, channel, row[:, None], column[:, None], RESULT)
    tl.store(result + offset, total, mask=inside_map[:, None] & (channel < channels))


@triton.jit(do_not_specialize=['query_strides', 'key_strides', *NOT_SPECIALISED])
def correlate_kernel(
    query,
    key,
    result,
    # (batch, group, channel or tap, row, column), coded as odd numbers
    query_strides,
    key_strides,
    result_strides,
    # sizes; that of the channels is a constant
    groups,
    channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding; whether windows at the border are moved inwards
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    # layouts
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    # types of sums and of offsets
    SUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[j, i] = sum over d of query[d, i] key[d, i + j]"""
    KERNEL_W: tl.constexpr = WINDOW[1]
    _, group, tile, batch = _split(groups, 1, out_height, out_width, 1, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    inside_map = on_map(row, column, out_height, out_width)
    query += start(query_strides, batch, group, QUERY)
    key += start(key_strides, batch, group, KEY)
    result += start(result_strides, batch, group, RESULT)
    # the taps of a row, filled up to a power of two
    column_tap = tl.arange(0, BLOCK_T).to(INDEX)[None, :]
    for u in range(WINDOW[0]):
        # the products of one row of taps, [P, T]: neighbouring taps are then stored together
        products = tl.zeros((TILE_H * TILE_W, BLOCK_T), SUM)
        for first in range(0, channels, BLOCK_D):
            channel = (first + tl.arange(0, BLOCK_D)).to(INDEX)[None, :]
            q_offset = inside(query_strides, channel, row[:, None], column[:, None], QUERY)
            q_mask = inside_map[:, None] & (channel < channels)
            q = tl.load(query + q_offset, mask=q_mask, other=0.0).to(SUM)
            # the query stays in registers for all taps of the row
            for v in tl.static_range(KERNEL_W):
                y, x = neighbour_of_window(row, column, u, v, height, width, WINDOW, SHIFTED)
                k_offset = inside(key_strides, channel, y[:, None], x[:, None], KEY)
                k_mask = q_mask & on_map(y, x, height, width)[:, None]
                k = tl.load(key + k_offset, mask=k_mask, other=0.0).to(SUM)
                product = tl.sum(q * k, 1)
                # registers cannot be indexed: add to the column of this tap by a mask
                products += tl.where(column_tap == v, product[:, None], 0.0)
        tap = u * KERNEL_W + column_tap
        offset = inside(result_strides, tap, row[:, None], column[:, None], RESULT)
        tl.store(result + offset, products, mask=inside_map[:, None] & (column_tap < KERNEL_W))


@triton.jit(do_not_specialize=['grad_strides', 'weight_strides', *NOT_SPECIALISED])
def scatter_kernel(
    grad,
    weight,
    result,
    # (batch, group, channel or tap, row, column), coded as odd numbers
    grad_strides,
    weight_strides,
    result_strides,
    # sizes; that of the channels is a constant
    groups,
    channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding; whether windows at the border are moved inwards
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    # layouts
    GRAD: tl.constexpr,
    WEIGHT: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    # types of sums and of offsets
    SUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[d, m] = sum over j of weight[j, i] grad[d, i], where output i sees m through tap j"""
    # a program gathers for input positions: results are written once, without atomic additions
    chunk, group, tile, batch = _split(groups, channels, height, width, BLOCK_D, TILE_H, TILE_W)
    row, column = positions(tile, width, TILE_H, TILE_W, INDEX)
    channel = (chunk * BLOCK_D + tl.arange(0, BLOCK_D)).to(INDEX)[None, :]
    inside_map = on_map(row, column, height, width)
    grad += start(grad_strides, batch, group, GRAD)
    weight += start(weight_strides, batch, group, WEIGHT)
    result += start(result_strides, batch, group, RESULT)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_D), SUM)
    # several outputs at the border may see a position through one tap of their shifted windows, so
    # that outputs are counted instead of taps
    rows = viewer_count(row, height, WINDOW[0]) if SHIFTED else WINDOW[0]
    COLUMNS: tl.constexpr = 2 * WINDOW[1] - 1 if SHIFTED else WINDOW[1]
    for u in range(rows):
        for v in tl.static_range(COLUMNS):
            if SHIFTED:
                y, x, tap, valid = shifted_viewer(row, column, u, v, height, width, WINDOW)
            else:
                y, x, valid = viewer(row, column, u, v, out_height, out_width, WINDOW)
                tap = tl.full((1,), u * COLUMNS + v, INDEX)
            valid = valid & inside_map
            w_offset = inside(weight_strides, tap, y, x, WEIGHT)
            w = tl.load(weight + w_offset, mask=valid, other=0.0)
            g_offset = inside(grad_strides, channel, y[:, None], x[:, None], GRAD)
            g_mask = valid[:, None] & (channel < channels)
            g = tl.load(grad + g_offset, mask=g_mask, other=0.0)
            total += w.to(SUM)[:, None] * g.to(SUM)
    offset = inside(result_strides, channel, row[:, None], column[:, None], RESULT)
    tl.store(result + offset, total, mask=inside_map[:, None] & (channel < channels))


def _block(channels: int) -> int:
    """Return the number of channels of a program."""
    # more than 32 channels are shared by several programs: there are then enough for a small map
    return min(next_power_of_2(max(1, channels)), 32)


def _constants(window: Sequence[int], channels: int, *tensors: Tensor) -> dict:
    """Return the compile-time constants of a launch, except for layouts."""
    block = _block(channels)
    return dict(
        WINDOW=tuple(window[:8]),
        SHIFTED=is_shifted(window),
        BLOCK_D=block,
        TILE_H=TILE[0],
        TILE_W=TILE[1],
        SUM=sum_type(*tensors[:2]),
        INDEX=index_type(*tensors),
        num_warps=warps(TILE[0] * TILE[1] * block, ELEMENTS_OF_A_THREAD),
    )


def reasons_against_aggregate(_: Tensor, __: Tensor, window: Sequence[int]) -> list[str]:
    """Return the reasons why the kernel cannot take this window."""
    return dilation_reasons(window)


reasons_against_correlate = reasons_against_aggregate


def reasons_against_scatter(
    _: Tensor, __: Tensor, size: Sequence[int], window: Sequence[int]
) -> list[str]:
    """Return the reasons why the kernel cannot take this window."""
    return dilation_reasons(window)


def aggregate(value: Tensor, weight: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_aggregate`."""
    batch, groups, channels, *size = value.shape
    out_size = weight.shape[-2:]
    result = empty_in_layout_of(value, (batch, groups, channels, *out_size), value.dtype)
    tensors = (value, weight, result)
    programs = batch * groups * tiles(out_size, TILE) * cdiv(channels, _block(channels))
    launch(
        aggregate_kernel,
        programs,
        value.device,
        *tensors,
        *map(strides, tensors),
        *(groups, channels, *size, *out_size),
        **dict(VALUE=layout(value), WEIGHT=layout(weight), RESULT=layout(result)),
        **_constants(window, channels, *tensors),
    )
    return result


def correlate(query: Tensor, key: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_correlate`."""
    batch, groups, channels, *out_size = query.shape
    taps = window[0] * window[1]
    result = empty_in_layout_of(query, (batch, groups, taps, *out_size), query.dtype)
    tensors = (query, key, result)
    launch(
        correlate_kernel,
        batch * groups * tiles(out_size, TILE),
        query.device,
        *tensors,
        *map(strides, tensors),
        *(groups, channels, *key.shape[-2:], *out_size),
        **dict(QUERY=layout(query), KEY=layout(key), RESULT=layout(result)),
        BLOCK_T=next_power_of_2(window[1]),
        **_constants(window, channels, *tensors),
    )
    return result


def scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_scatter`."""
    batch, groups, channels, *out_size = grad.shape
    result = empty_in_layout_of(grad, (batch, groups, channels, *size), grad.dtype)
    tensors = (grad, weight, result)
    programs = batch * groups * tiles(size, TILE) * cdiv(channels, _block(channels))
    launch(
        scatter_kernel,
        programs,
        grad.device,
        *tensors,
        *map(strides, tensors),
        *(groups, channels, *size, *out_size),
        **dict(GRAD=layout(grad), WEIGHT=layout(weight), RESULT=layout(result)),
        **_constants(window, channels, *tensors),
    )
    return result
