"""Aggregate, correlate and scatter: one program for a tile of positions of some channels of one
group of one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import (
    cdiv,
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
    sum_type,
    tiles,
    viewer,
    warps,
)

# rows and columns of a program's positions
TILE = (2, 16)
# elements of a tile that a thread holds, as measured on an H200
ELEMENTS_OF_A_THREAD = 8
RUN_TIME = [
    'value_strides',
    'weight_strides',
    'result_strides',
    'query_strides',
    'key_strides',
    'grad_strides',
    'groups',
    'height',
    'width',
    'out_height',
    'out_width',
]


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
    program = tl.program_id(0)
    chunks = tl.cdiv(channels, BLOCK_D)
    count = tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W)
    rest = program // chunks
    return program % chunks, rest % groups, rest // groups % count, rest // groups // count


@triton.jit(do_not_specialize=[name for name in RUN_TIME if name[:3] not in ('que', 'key', 'gra')])
def aggregate_kernel(
    value,
    weight,
    result,
    value_strides,
    weight_strides,
    result_strides,
    groups,
    channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    VALUE: tl.constexpr,
    WEIGHT: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[d, i] = sum over j of weight[j, i] value[d, i + j]"""
    chunk, group, tile, batch = _split(
        groups, channels, out_height, out_width, BLOCK_D, TILE_H, TILE_W
    )
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    channel = (chunk * BLOCK_D + tl.arange(0, BLOCK_D)).to(INDEX)[None, :]
    real = on_map(row, column, out_height, out_width)
    value += start(value_strides, batch, group, VALUE)
    weight += start(weight_strides, batch, group, WEIGHT)
    result += start(result_strides, batch, group, RESULT)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_D), SUM)
    KERNEL_W: tl.constexpr = WINDOW[1]
    for u in range(WINDOW[0]):
        for v in tl.static_range(KERNEL_W):
            y, x = neighbour(row, column, u, v, WINDOW)
            seen = real & on_map(y, x, height, width)
            tap = tl.full((1,), u * KERNEL_W + v, INDEX)
            w = tl.load(
                weight + inside(weight_strides, tap, row, column, WEIGHT), mask=seen, other=0.0
            )
            at = inside(value_strides, channel, y[:, None], x[:, None], VALUE)
            k = tl.load(value + at, mask=seen[:, None] & (channel < channels), other=0.0)
            total += w.to(SUM)[:, None] * k.to(SUM)
    at = inside(result_strides, channel, row[:, None], column[:, None], RESULT)
    tl.store(result + at, total, mask=real[:, None] & (channel < channels))


@triton.jit(do_not_specialize=[name for name in RUN_TIME if name[:3] not in ('val', 'wei', 'gra')])
def correlate_kernel(
    query,
    key,
    result,
    query_strides,
    key_strides,
    result_strides,
    groups,
    channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[j, i] = sum over d of query[d, i] key[d, i + j]"""
    KERNEL_W: tl.constexpr = WINDOW[1]
    _, group, tile, batch = _split(groups, 1, out_height, out_width, 1, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    real = on_map(row, column, out_height, out_width)
    query += start(query_strides, batch, group, QUERY)
    key += start(key_strides, batch, group, KEY)
    result += start(result_strides, batch, group, RESULT)
    column_tap = tl.arange(0, BLOCK_T).to(INDEX)[None, :]
    for u in range(WINDOW[0]):
        # the products of one row of taps, [P, T], so that neighbouring taps are stored together
        products = tl.zeros((TILE_H * TILE_W, BLOCK_T), SUM)
        for first in range(0, channels, BLOCK_D):
            channel = (first + tl.arange(0, BLOCK_D)).to(INDEX)[None, :]
            q_offset = inside(query_strides, channel, row[:, None], column[:, None], QUERY)
            q_mask = real[:, None] & (channel < channels)
            q = tl.load(query + q_offset, mask=q_mask, other=0.0).to(SUM)
            for v in tl.static_range(KERNEL_W):
                y, x = neighbour(row, column, u, v, WINDOW)
                k_offset = inside(key_strides, channel, y[:, None], x[:, None], KEY)
                k_mask = q_mask & on_map(y, x, height, width)[:, None]
                k = tl.load(key + k_offset, mask=k_mask, other=0.0).to(SUM)
                product = tl.sum(q * k, 1)
                products += tl.where(column_tap == v, product[:, None], 0.0)
        tap = u * KERNEL_W + column_tap
        offset = inside(result_strides, tap, row[:, None], column[:, None], RESULT)
        tl.store(result + offset, products, mask=real[:, None] & (column_tap < KERNEL_W))


@triton.jit(do_not_specialize=[name for name in RUN_TIME if name[:3] not in ('val', 'que', 'key')])
def scatter_kernel(
    grad,
    weight,
    result,
    grad_strides,
    weight_strides,
    result_strides,
    groups,
    channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    WEIGHT: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    SUM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """result[d, m] = sum over j of weight[j, i] grad[d, i], with the output i that sees m through
    tap j
    """
    chunk, group, tile, batch = _split(groups, channels, height, width, BLOCK_D, TILE_H, TILE_W)
    row, column = positions(tile, width, TILE_H, TILE_W, INDEX)
    channel = (chunk * BLOCK_D + tl.arange(0, BLOCK_D)).to(INDEX)[None, :]
    real = on_map(row, column, height, width)
    grad += start(grad_strides, batch, group, GRAD)
    weight += start(weight_strides, batch, group, WEIGHT)
    result += start(result_strides, batch, group, RESULT)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_D), SUM)
    KERNEL_W: tl.constexpr = WINDOW[1]
    for u in range(WINDOW[0]):
        for v in tl.static_range(KERNEL_W):
            y, x, seen = viewer(row, column, u, v, out_height, out_width, WINDOW)
            seen = seen & real
            tap = tl.full((1,), u * KERNEL_W + v, INDEX)
            w = tl.load(weight + inside(weight_strides, tap, y, x, WEIGHT), mask=seen, other=0.0)
            at = inside(grad_strides, channel, y[:, None], x[:, None], GRAD)
            g = tl.load(grad + at, mask=seen[:, None] & (channel < channels), other=0.0)
            total += w.to(SUM)[:, None] * g.to(SUM)
    at = inside(result_strides, channel, row[:, None], column[:, None], RESULT)
    tl.store(result + at, total, mask=real[:, None] & (channel < channels))


def _block(channels: int) -> int:
    return min(next_power_of_2(max(1, channels)), 32)


def _constants(window: Sequence[int], channels: int, *tensors: Tensor) -> dict:
    block = _block(channels)
    return dict(
        WINDOW=tuple(window),
        BLOCK_D=block,
        TILE_H=TILE[0],
        TILE_W=TILE[1],
        SUM=sum_type(*tensors[:2]),
        INDEX=index_type(*tensors),
        num_warps=warps(TILE[0] * TILE[1] * block, ELEMENTS_OF_A_THREAD),
    )


def aggregate(value: Tensor, weight: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_aggregate`."""
    batch, groups, channels, height, width = value.shape
    out_height, out_width = weight.shape[-2:]
    result = empty_in_layout_of(
        value, (batch, groups, channels, out_height, out_width), value.dtype
    )
    programs = (
        batch * groups * tiles((out_height, out_width), TILE) * cdiv(channels, _block(channels))
    )
    launch(
        aggregate_kernel,
        programs,
        value.device,
        value,
        weight,
        result,
        strides(value),
        strides(weight),
        strides(result),
        groups,
        channels,
        height,
        width,
        out_height,
        out_width,
        VALUE=layout(value),
        WEIGHT=layout(weight),
        RESULT=layout(result),
        **_constants(window, channels, value, weight, result),
    )
    return result


def correlate(query: Tensor, key: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_correlate`."""
    batch, groups, channels, out_height, out_width = query.shape
    height, width = key.shape[-2:]
    result = empty_in_layout_of(
        query, (batch, groups, window[0] * window[1], out_height, out_width), query.dtype
    )
    launch(
        correlate_kernel,
        batch * groups * tiles((out_height, out_width), TILE),
        query.device,
        query,
        key,
        result,
        strides(query),
        strides(key),
        strides(result),
        groups,
        channels,
        height,
        width,
        out_height,
        out_width,
        QUERY=layout(query),
        KEY=layout(key),
        RESULT=layout(result),
        BLOCK_T=next_power_of_2(window[1]),
        **_constants(window, channels, query, key, result),
    )
    return result


def scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_scatter`."""
    batch, groups, channels, out_height, out_width = grad.shape
    height, width = size
    result = empty_in_layout_of(grad, (batch, groups, channels, height, width), grad.dtype)
    programs = batch * groups * tiles(size, TILE) * cdiv(channels, _block(channels))
    launch(
        scatter_kernel,
        programs,
        grad.device,
        grad,
        weight,
        result,
        strides(grad),
        strides(weight),
        strides(result),
        groups,
        channels,
        height,
        width,
        out_height,
        out_width,
        GRAD=layout(grad),
        WEIGHT=layout(weight),
        RESULT=layout(result),
        **_constants(window, channels, grad, weight, result),
    )
    return result
