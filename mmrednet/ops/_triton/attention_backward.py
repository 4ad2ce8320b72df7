"""Gradients of local attention without stored logits.

The forward pass keeps the logarithm L of the softmax's sum for each position. The backward pass
computes the logits of a tap again, and from them the weights and the gradients of weights and of
logits:

    P_j = exp(logits_j - L)
    dP_j = grad . value[i + j]
    dS_j = P_j (dP_j - D)        with  D = sum over j of P_j dP_j

It has two kernels. The first walks over output positions. It computes D and the gradient of
queries, and one partial sum for each program of the gradients of rows, columns and bias. The second
walks over input positions. It reads D and computes the gradients of keys and values. Each result
has one writer, so that no atomic additions are needed and results are the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .attention_tiles import (
    NOT_SPECIALISED,
    TILE,
    constants,
    dense,
    head_tile,
    load_map,
    planar,
    sizes_of,
    tap_logits,
)
from .tiles import (
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
)


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
    valid,
    WINDOW: tl.constexpr,
):
    """Return weights [P] of one tap, their gradients [P], and its keys with position embedding."""
    logits, embedded_key = tap_logits(
        query, key, rows, columns, bias, head, tap, channel, channels, valid, WINDOW
    )
    return tl.exp(logits - sums), tl.sum(grad * value, 1), embedded_key


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
    # sums over a program's tile, in float32
    row_parts,
    column_parts,
    bias_parts,
    # (batch, head, channel, row, column), coded as odd numbers
    grad_strides,
    sum_strides,
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    # sizes; those of channels are constants
    heads,
    channels: tl.constexpr,
    value_channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding
    WINDOW: tl.constexpr,
    # layouts
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """D, the gradient of queries, and parts of the gradients of rows, columns and bias."""
    TAPS: tl.constexpr = WINDOW[0] * WINDOW[1]
    head, tile, batch = head_tile(heads, out_height, out_width, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    inside_map = on_map(row, column, out_height, out_width)
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    key += start(key_strides, batch, head, KEY)
    value += start(value_strides, batch, head, VALUE)
    query += start(query_strides, batch, head, QUERY)
    q = load_map(query, query_strides, channel, channels, row, column, inside_map, QUERY)
    grad += start(grad_strides, batch, head, GRAD)
    g = load_map(grad, grad_strides, value_channel, value_channels, row, column, inside_map, GRAD)
    sum_offset = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, row, column, -1)
    sums = tl.load(logsumexp + sum_offset, mask=inside_map, other=0.0)
    # First pass over the taps: D, which dS of every tap needs. Registers cannot be indexed by tap,
    # so the second pass computes weights and their gradients again.
    product = tl.zeros((TILE_H * TILE_W,), tl.float32)
    neighbour_count = tl.zeros((TILE_H * TILE_W,), tl.int32)
    for tap in range(TAPS):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        valid = inside_map & on_map(y, x, height, width)
        neighbour_count += valid.to(tl.int32)
        k = load_map(key, key_strides, channel, channels, y, x, valid, KEY)
        v = load_map(value, value_strides, value_channel, value_channels, y, x, valid, VALUE)
        weight, grad_weight, _ = _weight(
            q, k, g, v, rows, columns, bias, sums, head, tap, channel, channels, valid, WINDOW
        )
        product += weight * grad_weight
    # for the kernel of keys and values
    tl.store(products + sum_offset, product, mask=inside_map)
    # second pass: the gradients of logits, and what follows from them
    total = tl.zeros((TILE_H * TILE_W, BLOCK_D), tl.float32)
    if rows is not None:
        # gradients of logits, summed over the taps of a row and of a column
        by_row = tl.zeros((TILE_H * TILE_W, BLOCK_U), tl.float32)
        by_column = tl.zeros((TILE_H * TILE_W, BLOCK_T), tl.float32)
    for tap in range(TAPS):
        tap_row, tap_column = tap // WINDOW[1], tap % WINDOW[1]
        y, x = neighbour(row, column, tap_row, tap_column, WINDOW)
        valid = inside_map & on_map(y, x, height, width)
        k = load_map(key, key_strides, channel, channels, y, x, valid, KEY)
        v = load_map(value, value_strides, value_channel, value_channels, y, x, valid, VALUE)
        weight, grad_weight, embedded_key = _weight(
            q, k, g, v, rows, columns, bias, sums, head, tap, channel, channels, valid, WINDOW
        )
        # without neighbours the gradient is zero, and not NaN
        grad_logits = tl.where(neighbour_count > 0, weight * (grad_weight - product), 0.0)
        # a key outside the map takes no part, even where all weights are NaN
        total += tl.where(valid, grad_logits, 0.0)[:, None] * k
        if rows is not None:
            # the embedding alone: it has no part that lies outside the map
            total += grad_logits[:, None] * (embedded_key - k)
            # registers cannot be indexed: add to the column of this tap by a mask
            by_row += tl.where(tl.arange(0, BLOCK_U)[None, :] == tap_row, grad_logits[:, None], 0.0)
            by_column += tl.where(
                tl.arange(0, BLOCK_T)[None, :] == tap_column, grad_logits[:, None], 0.0
            )
        if bias is not None:
            part_offset = tl.program_id(0).to(tl.int64) * TAPS + tap
            tl.store(bias_parts + part_offset, tl.sum(grad_logits, 0))
    offset = inside(result_strides, channel[None, :], row[:, None], column[:, None], RESULT)
    tl.store(
        grad_query + start(result_strides, batch, head, RESULT) + offset,
        total,
        mask=inside_map[:, None] & (channel < channels)[None, :],
    )
    if rows is not None:
        # each row and column of taps: the sum over the tile of its gradient times the query
        half = channels // 2
        part = tl.program_id(0).to(tl.int64) * half
        for u in range(WINDOW[0]):
            grad_of_row = tl.sum(tl.where(tl.arange(0, BLOCK_U)[None, :] == u, by_row, 0.0), 1)
            tl.store(
                row_parts + (part + channel) * WINDOW[0] + u,
                tl.sum(grad_of_row[:, None] * q, 0),
                mask=channel < half,
            )
        for v in range(WINDOW[1]):
            grad_of_column = tl.sum(
                tl.where(tl.arange(0, BLOCK_T)[None, :] == v, by_column, 0.0), 1
            )
            tl.store(
                column_parts + (part + channel - half) * WINDOW[1] + v,
                tl.sum(grad_of_column[:, None] * q, 0),
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
    # (batch, head, channel, row, column), coded as odd numbers
    grad_strides,
    sum_strides,
    query_strides,
    key_strides,
    value_strides,
    key_result_strides,
    value_result_strides,
    # sizes; those of channels are constants
    heads,
    channels: tl.constexpr,
    value_channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding
    WINDOW: tl.constexpr,
    # layouts
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    KEY_RESULT: tl.constexpr,
    VALUE_RESULT: tl.constexpr,
    # sizes of a program's tile
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """grad_value[m] = sum over j of P_j grad[i],  grad_key[m] = sum over j of dS_j query[i]"""
    head, tile, batch = head_tile(heads, height, width, TILE_H, TILE_W)
    row, column = positions(tile, width, TILE_H, TILE_W, INDEX)
    inside_map = on_map(row, column, height, width)
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    query += start(query_strides, batch, head, QUERY)
    grad += start(grad_strides, batch, head, GRAD)
    key += start(key_strides, batch, head, KEY)
    k = load_map(key, key_strides, channel, channels, row, column, inside_map, KEY)
    value += start(value_strides, batch, head, VALUE)
    v = load_map(
        value, value_strides, value_channel, value_channels, row, column, inside_map, VALUE
    )
    # taps in reverse: the output positions i that see this input position through tap j
    key_total = tl.zeros((TILE_H * TILE_W, BLOCK_D), tl.float32)
    value_total = tl.zeros((TILE_H * TILE_W, BLOCK_V), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x, valid = viewer(
            row, column, tap // WINDOW[1], tap % WINDOW[1], out_height, out_width, WINDOW
        )
        valid = valid & inside_map
        q = load_map(query, query_strides, channel, channels, y, x, valid, QUERY)
        g = load_map(grad, grad_strides, value_channel, value_channels, y, x, valid, GRAD)
        sum_offset = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, y, x, -1)
        sums = tl.load(logsumexp + sum_offset, mask=valid, other=0.0)
        product = tl.load(products + sum_offset, mask=valid, other=0.0)
        weight, grad_weight, _ = _weight(
            q, k, g, v, rows, columns, bias, sums, head, tap, channel, channels, valid, WINDOW
        )
        # outputs that do not exist take no part
        weight = tl.where(valid, weight, 0.0)
        value_total += weight[:, None] * g
        key_total += (weight * (grad_weight - product))[:, None] * q
    offset = inside(key_result_strides, channel[None, :], row[:, None], column[:, None], KEY_RESULT)
    tl.store(
        grad_key + start(key_result_strides, batch, head, KEY_RESULT) + offset,
        key_total,
        mask=inside_map[:, None] & (channel < channels)[None, :],
    )
    offset = inside(
        value_result_strides, value_channel[None, :], row[:, None], column[:, None], VALUE_RESULT
    )
    tl.store(
        grad_value + start(value_result_strides, batch, head, VALUE_RESULT) + offset,
        value_total,
        mask=inside_map[:, None] & (value_channel < value_channels)[None, :],
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
    batch, heads = query.shape[:2]
    tables = [dense(table) for table in (rows, columns, bias)]
    grad_query = empty_in_layout_of(query, query.shape, query.dtype)
    grad_key = empty_in_layout_of(key, key.shape, key.dtype)
    grad_value = empty_in_layout_of(value, value.shape, value.dtype)
    sums = logsumexp.contiguous().unsqueeze(2)
    products = torch.empty_like(sums)
    tensors = (grad, query, key, value)
    options = dict(
        **dict(GRAD=layout(grad), QUERY=layout(query), KEY=layout(key), VALUE=layout(value)),
        INDEX=index_type(*tensors, grad_query, grad_key, grad_value),
        **constants(window, query, value),
    )
    sizes = sizes_of(query, key, value)
    coded = (strides(grad), planar(sums), strides(query), strides(key), strides(value))

    # over output positions; it writes ``products``, which the second kernel reads
    programs = batch * heads * tiles(query.shape[-2:], TILE)
    parts = [_partial_sums(table, programs) for table in tables]
    launch(
        query_kernel,
        programs,
        query.device,
        *(grad, sums, query, key, value, *tables, grad_query, products, *parts),
        *(*coded, strides(grad_query)),
        *sizes,
        RESULT=layout(grad_query),
        BLOCK_U=next_power_of_2(window[0]),
        BLOCK_T=next_power_of_2(window[1]),
        **options,
    )

    # over input positions
    launch(
        key_kernel,
        batch * heads * tiles(key.shape[-2:], TILE),
        query.device,
        *(grad, sums, products, query, key, value, *tables, grad_key, grad_value),
        *(*coded, strides(grad_key), strides(grad_value)),
        *sizes,
        KEY_RESULT=layout(grad_key),
        VALUE_RESULT=layout(grad_value),
        **options,
    )
    grad_rows, grad_columns, grad_bias = (
        _sum_parts(query, table, part) for table, part in zip(tables, parts, strict=True)
    )
    return grad_query, grad_key, grad_value, grad_rows, grad_columns, grad_bias


def _partial_sums(table: Tensor | None, programs: int) -> Tensor | None:
    """Return an uninitialised tensor for the gradient of a table (N, ...), one part per program."""
    if table is None:
        return None
    return table.new_empty((programs, *table.shape[1:]), dtype=torch.float32)


def _sum_parts(query: Tensor, table: Tensor | None, parts: Tensor | None) -> Tensor:
    """Return the gradient of a table; an empty tensor stands for that of None."""
    if table is None or parts is None:
        return query.new_empty(0)
    # heads run fastest among programs
    return parts.unflatten(0, (-1, query.shape[1])).sum(0).to(table.dtype)
