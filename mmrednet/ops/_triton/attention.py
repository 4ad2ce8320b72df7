"""Local attention with an online softmax: logits live for one tap, and the backward pass makes them
again.

With L the logarithm of the softmax's sum, which the forward pass keeps,

    P_j = exp(logits_j - L)        dP_j = grad . value[i + j]        dS_j = P_j (dP_j - D),  D = sum
    over j of P_j dP_j

are the weights and the gradients of weights and of logits. One kernel walks over outputs, for D,
for the gradient of queries and, as one partial sum for each program, for those of rows, columns and
bias; another walks over the map, for the gradients of keys and values, and reads D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import (
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
    viewer,
    warps,
)

# what registers hold: more channels of a head are left to the composition
MOST_CHANNELS = 128
NOT_SPECIALISED = [
    'query_strides',
    'key_strides',
    'value_strides',
    'grad_strides',
    'sum_strides',
    'heads',
    'height',
    'width',
    'out_height',
    'out_width',
    'count',
]


@triton.jit
def _program(heads, height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Return head, tile and image of this program."""
    program = tl.program_id(0)
    count = tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W)
    return program % heads, program // heads % count, program // heads // count


@triton.jit
def _load(
    tensor, strides, channel, channels: tl.constexpr, row, column, seen, LAYOUT: tl.constexpr
):
    """Return [P, D] in float32, zero where positions are not seen."""
    at = inside(strides, channel[None, :], row[:, None], column[:, None], LAYOUT)
    return tl.load(tensor + at, mask=seen[:, None] & (channel < channels)[None, :], other=0.0).to(
        tl.float32
    )


@triton.jit
def _where(rows, columns, head, u, v, channel, channels: tl.constexpr, WINDOW: tl.constexpr):
    """Return [D], what a query meets at a relative position: a row's half and a column's half."""
    half = channels // 2
    upper = (head * half + channel) * WINDOW[0] + u
    lower = (head * half + channel - half) * WINDOW[1] + v
    found = tl.load(rows + upper, mask=channel < half, other=0.0).to(tl.float32)
    return found + tl.load(
        columns + lower, mask=(channel >= half) & (channel < channels), other=0.0
    ).to(tl.float32)


@triton.jit
def _logits(
    query,
    key,
    rows,
    columns,
    bias,
    head,
    tap,
    channel,
    channels: tl.constexpr,
    seen,
    WINDOW: tl.constexpr,
):
    """Return the logits [P] of one tap and what was added to its keys, [D] or None."""
    where = None
    if rows is not None:
        where = _where(
            rows, columns, head, tap // WINDOW[1], tap % WINDOW[1], channel, channels, WINDOW
        )
        key = key + where[None, :]
    logits = tl.sum(query * key, 1)
    if bias is not None:
        logits += tl.load(bias + head * (WINDOW[0] * WINDOW[1]) + tap).to(tl.float32)
    return tl.where(seen, logits, float('-inf')), key


@triton.jit
def _finite(number):
    """Return what can be subtracted from a number without a NaN."""
    return tl.where(tl.abs(number) == float('inf'), 0.0, number)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def attention_kernel(
    query,
    key,
    value,
    rows,
    columns,
    bias,
    result,
    logsumexp,
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    sum_strides,
    heads,
    channels: tl.constexpr,
    value_channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The result and the logarithm of the softmax's sum, tap by tap."""
    head, tile, batch = _program(heads, out_height, out_width, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    real = on_map(row, column, out_height, out_width)
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    key += start(key_strides, batch, head, KEY)
    value += start(value_strides, batch, head, VALUE)
    q = _load(
        query + start(query_strides, batch, head, QUERY),
        query_strides,
        channel,
        channels,
        row,
        column,
        real,
        QUERY,
    )
    largest = tl.full((TILE_H * TILE_W,), float('-inf'), tl.float32)
    weights = tl.zeros((TILE_H * TILE_W,), tl.float32)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_V), tl.float32)
    neighbours = tl.zeros((TILE_H * TILE_W,), tl.int32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        seen = real & on_map(y, x, height, width)
        neighbours += seen.to(tl.int32)
        k = _load(key, key_strides, channel, channels, y, x, seen, KEY)
        logits, _ = _logits(q, k, rows, columns, bias, head, tap, channel, channels, seen, WINDOW)
        above = tl.maximum(largest, logits)
        # where all logits so far are -inf, nothing is subtracted: their weights are zero
        shift = _finite(above)
        scale, weight = tl.exp(largest - shift), tl.exp(logits - shift)
        near = _load(value, value_strides, value_channel, value_channels, y, x, seen, VALUE)
        weights = weights * scale + weight
        total = total * scale[:, None] + weight[:, None] * near
        largest = above
    # without neighbours the result is zero; where all of them are switched off, it is NaN
    total = total / tl.where(neighbours > 0, weights, 1.0)[:, None]
    at = inside(result_strides, value_channel[None, :], row[:, None], column[:, None], RESULT)
    tl.store(
        result + start(result_strides, batch, head, RESULT) + at,
        total,
        mask=real[:, None] & (value_channel < value_channels)[None, :],
    )
    at = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, row, column, -1)
    tl.store(logsumexp + at, _finite(largest) + tl.log(weights), mask=real)


@triton.jit
def _weight(
    query,
    key,
    grad,
    value,
    rows,
    columns,
    bias,
    sums,
    head,
    tap,
    channel,
    channels: tl.constexpr,
    seen,
    WINDOW: tl.constexpr,
):
    """Return [P] weights and their gradients, and what queries meet, for one tap."""
    logits, met = _logits(
        query, key, rows, columns, bias, head, tap, channel, channels, seen, WINDOW
    )
    return tl.exp(logits - sums), tl.sum(grad * value, 1), met


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def query_kernel(
    grad,
    logsumexp,
    query,
    key,
    value,
    rows,
    columns,
    bias,
    grad_query,
    products,
    row_parts,
    column_parts,
    bias_parts,
    grad_strides,
    sum_strides,
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    heads,
    channels: tl.constexpr,
    value_channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """D, the gradient of queries, and this tile's part of the gradients of rows, columns and
    bias."""
    TAPS: tl.constexpr = WINDOW[0] * WINDOW[1]
    head, tile, batch = _program(heads, out_height, out_width, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    real = on_map(row, column, out_height, out_width)
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    key += start(key_strides, batch, head, KEY)
    value += start(value_strides, batch, head, VALUE)
    q = _load(
        query + start(query_strides, batch, head, QUERY),
        query_strides,
        channel,
        channels,
        row,
        column,
        real,
        QUERY,
    )
    g = _load(
        grad + start(grad_strides, batch, head, GRAD),
        grad_strides,
        value_channel,
        value_channels,
        row,
        column,
        real,
        GRAD,
    )
    place = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, row, column, -1)
    sums = tl.load(logsumexp + place, mask=real, other=0.0)
    product = tl.zeros((TILE_H * TILE_W,), tl.float32)
    neighbours = tl.zeros((TILE_H * TILE_W,), tl.int32)
    for tap in range(TAPS):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        seen = real & on_map(y, x, height, width)
        neighbours += seen.to(tl.int32)
        k = _load(key, key_strides, channel, channels, y, x, seen, KEY)
        near = _load(value, value_strides, value_channel, value_channels, y, x, seen, VALUE)
        weight, grad_weight, _ = _weight(
            q, k, g, near, rows, columns, bias, sums, head, tap, channel, channels, seen, WINDOW
        )
        product += weight * grad_weight
    tl.store(products + place, product, mask=real)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_D), tl.float32)
    if rows is not None:
        by_row = tl.zeros((TILE_H * TILE_W, BLOCK_U), tl.float32)
        by_column = tl.zeros((TILE_H * TILE_W, BLOCK_T), tl.float32)
    for tap in range(TAPS):
        u, v = tap // WINDOW[1], tap % WINDOW[1]
        y, x = neighbour(row, column, u, v, WINDOW)
        seen = real & on_map(y, x, height, width)
        k = _load(key, key_strides, channel, channels, y, x, seen, KEY)
        near = _load(value, value_strides, value_channel, value_channels, y, x, seen, VALUE)
        weight, grad_weight, met = _weight(
            q, k, g, near, rows, columns, bias, sums, head, tap, channel, channels, seen, WINDOW
        )
        grad_logits = tl.where(neighbours > 0, weight * (grad_weight - product), 0.0)
        # a key that is not there takes no part, even where all weights are NaN
        total += tl.where(seen, grad_logits, 0.0)[:, None] * k
        if rows is not None:
            total += grad_logits[:, None] * (met - k)
            by_row += tl.where(tl.arange(0, BLOCK_U)[None, :] == u, grad_logits[:, None], 0.0)
            by_column += tl.where(tl.arange(0, BLOCK_T)[None, :] == v, grad_logits[:, None], 0.0)
        if bias is not None:
            tl.store(
                bias_parts + tl.program_id(0).to(tl.int64) * TAPS + tap, tl.sum(grad_logits, 0)
            )
    at = inside(result_strides, channel[None, :], row[:, None], column[:, None], RESULT)
    tl.store(
        grad_query + start(result_strides, batch, head, RESULT) + at,
        total,
        mask=real[:, None] & (channel < channels)[None, :],
    )
    if rows is not None:
        half = channels // 2
        part = tl.program_id(0).to(tl.int64) * half
        for u in range(WINDOW[0]):
            line = tl.sum(tl.where(tl.arange(0, BLOCK_U)[None, :] == u, by_row, 0.0), 1)
            tl.store(
                row_parts + (part + channel) * WINDOW[0] + u,
                tl.sum(line[:, None] * q, 0),
                mask=channel < half,
            )
        for v in range(WINDOW[1]):
            line = tl.sum(tl.where(tl.arange(0, BLOCK_T)[None, :] == v, by_column, 0.0), 1)
            tl.store(
                column_parts + (part + channel - half) * WINDOW[1] + v,
                tl.sum(line[:, None] * q, 0),
                mask=(channel >= half) & (channel < channels),
            )


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def key_kernel(
    grad,
    logsumexp,
    products,
    query,
    key,
    value,
    rows,
    columns,
    bias,
    grad_key,
    grad_value,
    grad_strides,
    sum_strides,
    query_strides,
    key_strides,
    value_strides,
    key_result_strides,
    value_result_strides,
    heads,
    channels: tl.constexpr,
    value_channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    KEY_RESULT: tl.constexpr,
    VALUE_RESULT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """grad_value[m] = sum over j of P_j grad[i],  grad_key[m] = sum over j of dS_j query[i]"""
    head, tile, batch = _program(heads, height, width, TILE_H, TILE_W)
    row, column = positions(tile, width, TILE_H, TILE_W, INDEX)
    real = on_map(row, column, height, width)
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    query += start(query_strides, batch, head, QUERY)
    grad += start(grad_strides, batch, head, GRAD)
    k = _load(
        key + start(key_strides, batch, head, KEY),
        key_strides,
        channel,
        channels,
        row,
        column,
        real,
        KEY,
    )
    near = _load(
        value + start(value_strides, batch, head, VALUE),
        value_strides,
        value_channel,
        value_channels,
        row,
        column,
        real,
        VALUE,
    )
    key_total = tl.zeros((TILE_H * TILE_W, BLOCK_D), tl.float32)
    value_total = tl.zeros((TILE_H * TILE_W, BLOCK_V), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x, seen = viewer(
            row, column, tap // WINDOW[1], tap % WINDOW[1], out_height, out_width, WINDOW
        )
        seen = seen & real
        q = _load(query, query_strides, channel, channels, y, x, seen, QUERY)
        g = _load(grad, grad_strides, value_channel, value_channels, y, x, seen, GRAD)
        place = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, y, x, -1)
        sums = tl.load(logsumexp + place, mask=seen, other=0.0)
        product = tl.load(products + place, mask=seen, other=0.0)
        weight, grad_weight, _ = _weight(
            q, k, g, near, rows, columns, bias, sums, head, tap, channel, channels, seen, WINDOW
        )
        weight = tl.where(seen, weight, 0.0)
        value_total += weight[:, None] * g
        key_total += (weight * (grad_weight - product))[:, None] * q
    at = inside(key_result_strides, channel[None, :], row[:, None], column[:, None], KEY_RESULT)
    tl.store(
        grad_key + start(key_result_strides, batch, head, KEY_RESULT) + at,
        key_total,
        mask=real[:, None] & (channel < channels)[None, :],
    )
    at = inside(
        value_result_strides, value_channel[None, :], row[:, None], column[:, None], VALUE_RESULT
    )
    tl.store(
        grad_value + start(value_result_strides, batch, head, VALUE_RESULT) + at,
        value_total,
        mask=real[:, None] & (value_channel < value_channels)[None, :],
    )


def reasons_against_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> list[str]:
    """Return why the kernel cannot take these tensors: nothing where it can."""
    reasons = float64_reasons(
        query=query, key=key, value=value, rows=rows, columns=columns, bias=bias
    )
    channels = max(query.shape[2], value.shape[2])
    if channels > MOST_CHANNELS:
        reasons.append(f'more than {MOST_CHANNELS} channels of a head, {channels}')
    return reasons


def reasons_against_attention_backward(
    grad: Tensor, logsumexp: Tensor, *arguments: Any
) -> list[str]:
    """Return why the backward kernels cannot take these tensors: nothing where they can."""
    return float64_reasons(grad=grad) or reasons_against_attention(*arguments)


# positions of a program, as two rows of 16
TILE = (2, 16)
# elements of a tile of queries that a thread holds: keys, values and sums are as many each
ELEMENTS_OF_A_THREAD = 32


def _constants(window: Sequence[int], query: Tensor, value: Tensor) -> dict[str, Any]:
    keys, values = (next_power_of_2(tensor.shape[2]) for tensor in (query, value))
    return dict(
        WINDOW=tuple(window),
        BLOCK_D=keys,
        BLOCK_V=values,
        TILE_H=TILE[0],
        TILE_W=TILE[1],
        num_warps=warps(TILE[0] * TILE[1] * max(keys, values), ELEMENTS_OF_A_THREAD),
    )


def _dense(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.contiguous()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See :func:`mmrednet.ops.attention.definition`."""
    size = query.shape[-2:]
    result = empty_in_layout_of(value, (*value.shape[:3], *size), value.dtype)
    sums = query.new_empty((*query.shape[:2], 1, *size), dtype=torch.float32)
    programs = query.shape[0] * query.shape[1] * tiles(size, TILE)
    launch(
        attention_kernel,
        programs,
        query.device,
        query,
        key,
        value,
        _dense(rows),
        _dense(columns),
        _dense(bias),
        result,
        sums,
        strides(query),
        strides(key),
        strides(value),
        strides(result),
        _planar(sums),
        *query.shape[1:3],
        value.shape[2],
        *key.shape[-2:],
        *size,
        QUERY=layout(query),
        KEY=layout(key),
        VALUE=layout(value),
        RESULT=layout(result),
        INDEX=index_type(query, key, value, result),
        **_constants(window, query, value),
    )
    return result, sums.squeeze(2)


def _planar(sums: Tensor) -> tuple[int, ...]:
    """Return the numbers for the strides of a contiguous tensor (B, N, 1, Ho, Wo), whatever its
    sizes are.
    """
    heads, _, height, width = sums.shape[1:]
    return tuple(
        2 * step + 3 for step in (heads * height * width, height * width, height * width, width, 1)
    )


def attention_backward(
    grad: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`mmrednet.ops.attention.gradients`."""
    size, heads = query.shape[-2:], query.shape[1]
    tables = [_dense(table) for table in (rows, columns, bias)]
    grads = [
        empty_in_layout_of(tensor, tensor.shape, tensor.dtype) for tensor in (query, key, value)
    ]
    sums = logsumexp.contiguous().unsqueeze(2)
    products = torch.empty_like(sums)
    programs = len(query) * heads * tiles(size, TILE)
    parts = [
        None
        if table is None
        else table.new_empty((programs, *table.shape[1:]), dtype=torch.float32)
        for table in tables
    ]
    shared = dict(
        GRAD=layout(grad),
        QUERY=layout(query),
        KEY=layout(key),
        VALUE=layout(value),
        INDEX=index_type(grad, query, key, value, *grads),
    ) | _constants(window, query, value)
    numbers = (*query.shape[1:3], value.shape[2], *key.shape[-2:], *size)
    steps = [strides(grad), _planar(sums), *(strides(tensor) for tensor in (query, key, value))]
    launch(
        query_kernel,
        programs,
        query.device,
        grad,
        sums,
        query,
        key,
        value,
        *tables,
        grads[0],
        products,
        *parts,
        *steps,
        strides(grads[0]),
        *numbers,
        RESULT=layout(grads[0]),
        BLOCK_U=next_power_of_2(window[0]),
        BLOCK_T=next_power_of_2(window[1]),
        **shared,
    )
    programs = len(key) * heads * tiles(key.shape[-2:], TILE)
    launch(
        key_kernel,
        programs,
        query.device,
        grad,
        sums,
        products,
        query,
        key,
        value,
        *tables,
        *grads[1:],
        *steps,
        strides(grads[1]),
        strides(grads[2]),
        *numbers,
        KEY_RESULT=layout(grads[1]),
        VALUE_RESULT=layout(grads[2]),
        **shared,
    )
    # programs are numbered with the heads fastest
    summed = [
        query.new_empty(0)
        if table is None or part is None
        else part.unflatten(0, (-1, heads)).sum(0).to(table.dtype)
        for table, part in zip(tables, parts, strict=True)
    ]
    return grads[0], grads[1], grads[2], summed[0], summed[1], summed[2]
