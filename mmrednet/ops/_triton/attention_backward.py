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
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .attention_tiles import (
    NOT_SPECIALISED,
    TILE,
    bias_of_outputs,
    constants,
    dense,
    head_tile,
    load_map,
    planar,
    sizes_of,
    store_map,
    tap_logits,
)
from .tiles import (
    cdiv,
    index_type,
    inside,
    is_shifted,
    launch,
    layout,
    neighbour_of_window,
    next_power_of_2,
    on_map,
    start,
    strides,
    tiles,
    viewer_of_window,
    viewers_of_window,
    window_start,
)

# gradient of the result, query, key and value
Maps = tuple[Tensor, Tensor, Tensor, Tensor]


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


@triton.jit
def _store_bias_part(
    bias_parts,
    grad_logits,
    tap,
    column,
    width,
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the sum of the gradients [P] of the logits of a tap over a tile of outputs.

    With shifted windows there is one sum for each row of the tile, whose outputs have their windows
    in the same rows, and for each place of an output in the columns of its window.
    """
    part = tl.program_id(0).to(tl.int64) * (WINDOW[0] * WINDOW[1]) + tap
    if SHIFTED:
        POSITIONS: tl.constexpr = grad_logits.shape[0]
        CELLS: tl.constexpr = POSITIONS // TILE_W * WINDOW[1]
        place = column - window_start(column, width, WINDOW[1])
        cell = tl.arange(0, POSITIONS) // TILE_W * WINDOW[1] + place
        cells = tl.arange(0, BLOCK_C)
        # registers cannot be indexed: select by a mask
        by_cell = tl.where(cell[:, None] == cells[None, :], grad_logits[:, None], 0.0)
        tl.store(bias_parts + part * CELLS + cells, tl.sum(by_cell, 0), mask=cells < CELLS)
    else:
        tl.store(bias_parts + part, tl.sum(grad_logits, 0))


@triton.jit
def _store_embedding_parts(
    row_parts,
    column_parts,
    by_row,
    by_column,
    q,
    channel,
    channels: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Write the sum over a tile of query times gradient of each row and column of taps."""
    tap_row, tap_column = tl.arange(0, by_row.shape[1]), tl.arange(0, by_column.shape[1])
    half = channels // 2
    part = tl.program_id(0).to(tl.int64) * half
    for u in range(WINDOW[0]):
        grad_of_row = tl.sum(tl.where(tap_row[None, :] == u, by_row, 0.0), 1)
        tl.store(
            row_parts + (part + channel) * WINDOW[0] + u,
            tl.sum(grad_of_row[:, None] * q, 0),
            mask=channel < half,
        )
    for v in range(WINDOW[1]):
        grad_of_column = tl.sum(tl.where(tap_column[None, :] == v, by_column, 0.0), 1)
        tl.store(
            column_parts + (part + channel - half) * WINDOW[1] + v,
            tl.sum(grad_of_column[:, None] * q, 0),
            mask=(channel >= half) & (channel < channels),
        )


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
    # kernel, stride, dilation and padding; whether windows at the border are moved inwards
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
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
    BLOCK_C: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """D, the gradient of queries, and parts of the gradients of rows, columns and bias."""
    head, batch, row, column, inside_map = head_tile(
        heads, out_height, out_width, TILE_H, TILE_W, INDEX
    )
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    axis = (channel, channel < channels)
    value_axis = (value_channel, value_channel < value_channels)
    key += start(key_strides, batch, head, KEY)
    value += start(value_strides, batch, head, VALUE)
    query += start(query_strides, batch, head, QUERY)
    q = load_map(query, query_strides, axis, row, column, inside_map, QUERY)
    grad += start(grad_strides, batch, head, GRAD)
    g = load_map(grad, grad_strides, value_axis, row, column, inside_map, GRAD)
    sum_offset = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, row, column, -1)
    sums = tl.load(logsumexp + sum_offset, mask=inside_map, other=0.0)
    if bias is not None:
        bias = bias_of_outputs(bias, head, row, column, inside_map, height, width, WINDOW, SHIFTED)
    # First pass over the taps: D, which dS of every tap needs. Registers cannot be indexed by tap,
    # so the second pass computes weights and their gradients again.
    product = tl.zeros((TILE_H * TILE_W,), tl.float32)
    neighbour_count = tl.zeros((TILE_H * TILE_W,), tl.int32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour_of_window(
            row, column, tap // WINDOW[1], tap % WINDOW[1], height, width, WINDOW, SHIFTED
        )
        valid = inside_map & on_map(y, x, height, width)
        neighbour_count += valid.to(tl.int32)
        k = load_map(key, key_strides, axis, y, x, valid, KEY)
        v = load_map(value, value_strides, value_axis, y, x, valid, VALUE)
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
    for tap in range(WINDOW[0] * WINDOW[1]):
        tap_row, tap_column = tap // WINDOW[1], tap % WINDOW[1]
        y, x = neighbour_of_window(row, column, tap_row, tap_column, height, width, WINDOW, SHIFTED)
        valid = inside_map & on_map(y, x, height, width)
        k = load_map(key, key_strides, axis, y, x, valid, KEY)
        v = load_map(value, value_strides, value_axis, y, x, valid, VALUE)
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
            _store_bias_part(
                bias_parts, grad_logits, tap, column, width, WINDOW, SHIFTED, TILE_W, BLOCK_C
            )
    grad_query += start(result_strides, batch, head, RESULT)
    store_map(grad_query, result_strides, axis, row, column, inside_map, total, RESULT)
    if rows is not None:
        _store_embedding_parts(
            row_parts, column_parts, by_row, by_column, q, channel, channels, WINDOW
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
    grad_key_strides,
    grad_value_strides,
    # sizes; those of channels are constants
    heads,
    channels: tl.constexpr,
    value_channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding; whether windows at the border are moved inwards
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    # layouts
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    GRAD_KEY: tl.constexpr,
    GRAD_VALUE: tl.constexpr,
    # sizes of a program's tile
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """grad_value[m] = sum over j of P_j grad[i],  grad_key[m] = sum over j of dS_j query[i]"""
    head, batch, row, column, inside_map = head_tile(heads, height, width, TILE_H, TILE_W, INDEX)
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    axis = (channel, channel < channels)
    value_axis = (value_channel, value_channel < value_channels)
    query += start(query_strides, batch, head, QUERY)
    grad += start(grad_strides, batch, head, GRAD)
    key += start(key_strides, batch, head, KEY)
    k = load_map(key, key_strides, axis, row, column, inside_map, KEY)
    value += start(value_strides, batch, head, VALUE)
    v = load_map(value, value_strides, value_axis, row, column, inside_map, VALUE)
    # taps in reverse: the output positions i that see this input position through tap j
    key_total = tl.zeros((TILE_H * TILE_W, BLOCK_D), tl.float32)
    value_total = tl.zeros((TILE_H * TILE_W, BLOCK_V), tl.float32)
    viewer_rows, viewer_columns = viewers_of_window(row, column, height, width, WINDOW, SHIFTED)
    for viewer_index in range(viewer_rows * viewer_columns):
        a, b = viewer_index // viewer_columns, viewer_index % viewer_columns
        y, x, tap, valid = viewer_of_window(
            row, column, a, b, height, width, out_height, out_width, WINDOW, SHIFTED
        )
        valid = valid & inside_map
        q = load_map(query, query_strides, axis, y, x, valid, QUERY)
        g = load_map(grad, grad_strides, value_axis, y, x, valid, GRAD)
        sum_offset = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, y, x, -1)
        sums = tl.load(logsumexp + sum_offset, mask=valid, other=0.0)
        product = tl.load(products + sum_offset, mask=valid, other=0.0)
        taps_bias = bias
        if bias is not None:
            taps_bias = bias_of_outputs(bias, head, y, x, valid, height, width, WINDOW, SHIFTED)
        weight, grad_weight, _ = _weight(
            q, k, g, v, rows, columns, taps_bias, sums, head, tap, channel, channels, valid, WINDOW
        )
        # outputs that do not exist take no part
        weight = tl.where(valid, weight, 0.0)
        value_total += weight[:, None] * g
        key_total += (weight * (grad_weight - product))[:, None] * q
    grad_key += start(grad_key_strides, batch, head, GRAD_KEY)
    store_map(grad_key, grad_key_strides, axis, row, column, inside_map, key_total, GRAD_KEY)
    grad_value += start(grad_value_strides, batch, head, GRAD_VALUE)
    store_map(
        grad_value, grad_value_strides, value_axis, row, column, inside_map, value_total, GRAD_VALUE
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
    sums = logsumexp.contiguous().unsqueeze(2)
    maps = (grad, query, key, value)
    tables = tuple(dense(table) for table in (rows, columns, bias))
    grad_query, products, parts = _query_gradients(sums, maps, tables, window)
    grad_key, grad_value = _key_gradients(sums, products, maps, tables, window)
    grad_rows, grad_columns = (
        _sum_parts(query, table, part) for table, part in zip(tables[:2], parts[:2], strict=True)
    )
    if is_shifted(window):
        grad_bias = _sum_places(query, tables[2], parts[2], window)
    else:
        grad_bias = _sum_parts(query, tables[2], parts[2])
    return grad_query, grad_key, grad_value, grad_rows, grad_columns, grad_bias


def _query_gradients(
    sums: Tensor, maps: Maps, tables: Sequence[Tensor | None], window: Sequence[int]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Return the gradient of queries, D, and parts of the gradients of rows, columns and bias."""
    query = maps[1]
    grad_query, products = (
        empty_in_layout_of(query, query.shape, query.dtype),
        torch.empty_like(sums),
    )
    programs = query.shape[0] * query.shape[1] * tiles(query.shape[-2:], TILE)
    parts = [_partial_sums(table, programs) for table in tables[:2]]
    parts.append(_bias_parts(tables[2], programs, window))
    launch(
        query_kernel,
        programs,
        query.device,
        *(maps[0], sums, *maps[1:], *tables, grad_query, products, *parts),
        *(*_strides(maps, sums), strides(grad_query)),
        *sizes_of(*maps[1:]),
        RESULT=layout(grad_query),
        BLOCK_U=next_power_of_2(window[0]),
        BLOCK_T=next_power_of_2(window[1]),
        BLOCK_C=next_power_of_2(TILE[0] * window[1]),
        **_options(maps, (grad_query,), window),
    )
    return grad_query, products, parts


def _key_gradients(
    sums: Tensor,
    products: Tensor,
    maps: Maps,
    tables: Sequence[Tensor | None],
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of keys and values."""
    key, value = maps[2:]
    grad_key = empty_in_layout_of(key, key.shape, key.dtype)
    grad_value = empty_in_layout_of(value, value.shape, value.dtype)
    launch(
        key_kernel,
        key.shape[0] * key.shape[1] * tiles(key.shape[-2:], TILE),
        key.device,
        *(maps[0], sums, products, *maps[1:], *tables, grad_key, grad_value),
        *(*_strides(maps, sums), strides(grad_key), strides(grad_value)),
        *sizes_of(*maps[1:]),
        GRAD_KEY=layout(grad_key),
        GRAD_VALUE=layout(grad_value),
        **_options(maps, (grad_key, grad_value), window),
    )
    return grad_key, grad_value


def _strides(maps: Maps, sums: Tensor) -> tuple[tuple[int, ...], ...]:
    """Return the coded strides that both kernels take."""
    grad, *inputs = map(strides, maps)
    return (grad, planar(sums), *inputs)


def _options(maps: Maps, results: Sequence[Tensor], window: Sequence[int]) -> dict[str, Any]:
    """Return the compile-time constants of both kernels."""
    layouts = dict(zip(('GRAD', 'QUERY', 'KEY', 'VALUE'), map(layout, maps), strict=True))
    return dict(INDEX=index_type(*maps, *results), **layouts, **constants(window, maps[1], maps[3]))


def _partial_sums(table: Tensor | None, programs: int) -> Tensor | None:
    """Return an uninitialised tensor for the gradient of a table (N, ...), one part per program."""
    if table is None:
        return None
    return table.new_empty((programs, *table.shape[1:]), dtype=torch.float32)


def _bias_parts(bias: Tensor | None, programs: int, window: Sequence[int]) -> Tensor | None:
    """Return an uninitialised tensor for the gradient of the bias, one part per program."""
    if bias is None or not is_shifted(window):
        return _partial_sums(bias, programs)
    sums = (window[0] * window[1], TILE[0] * window[1])
    return bias.new_empty((programs, *sums), dtype=torch.float32)


def _sum_parts(query: Tensor, table: Tensor | None, parts: Tensor | None) -> Tensor:
    """Return the gradient of a table; an empty tensor stands for that of None."""
    if table is None or parts is None:
        return query.new_empty(0)
    # heads run fastest among programs
    return parts.unflatten(0, (-1, query.shape[1])).sum(0).to(table.dtype)


def _sum_places(
    query: Tensor, bias: Tensor | None, parts: Tensor | None, window: Sequence[int]
) -> Tensor:
    """Return the gradient (N, places * taps) of the bias of shifted windows; an empty tensor stands
    for that of None.

    Parts are (programs, taps, rows of a tile * places of columns).
    """
    if bias is None or parts is None:
        return query.new_empty(0)
    batch, heads, _, height, width = query.shape
    tile_counts = (cdiv(height, TILE[0]), cdiv(width, TILE[1]))
    by_tile = parts.unflatten(2, (TILE[0], window[1]))
    # programs are heads of tiles of images
    by_tile = by_tile.reshape(batch, *tile_counts, heads, *by_tile.shape[1:]).sum((0, 2))
    by_row = by_tile.movedim(3, 1).flatten(0, 1)[:height]
    # every place has one row of the map, but the centre has all rows away from the border
    half = window[0] // 2
    centre = by_row[half : height - half].sum(0, keepdim=True)
    by_place = torch.cat([by_row[:half], centre, by_row[height - half :]])
    # from (places of rows, heads, taps, places of columns)
    return by_place.permute(1, 0, 3, 2).flatten(1).to(bias.dtype)
