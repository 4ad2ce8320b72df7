"""Gradients of attention along lines without stored logits.

Three kernels walk over the same tiles of BLOCK query positions i and BLOCK key positions m, and
compute logits again. The first gives the gradients of queries and what the others need of the
softmax, the second those of keys and values, the third those of the tables. A tile [i, m] and its
sums over equal distances [i, w] are read from each other along diagonals, as in the forward pass.

Inputs are made contiguous first, so that a line of a channel is a row in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _torch
from .axial import BLOCK, MOST_CHANNELS
from .axial_tiles import (
    Table,
    along_distances,
    masked,
    relative_products,
    relative_sums,
    softmax_step,
    tiles_in_reach,
)
from .tiles import cdiv, dot_precision, dot_type, float64_reasons, launch, next_power_of_2

# lines that share a partial sum of the gradients of the tables
LINE_GROUPS = 32
# arguments for whose values Triton must not compile anew
NOT_SPECIALISED = ['relative_row', 'heads', 'lines_count', 'image_lines', 'length', 'end', 'reach']


class Line(NamedTuple):
    """A line of one head.

    Args:
        lines: First query; keys and values follow.
        grad: First gradient of the result.
        table: Table of relative positions.
        factors: Scales (3, heads) of the terms of the logits.
        heads: Number of heads.
        head: Index of the head.
        pitch: Stride of channels.
        length: Number of positions.
        reach: Largest distance between a query and its keys.
    """

    lines: Any
    grad: Any
    table: Any
    factors: Any
    heads: Any
    head: Any
    pitch: Any
    length: Any
    reach: Any


@triton.jit
def _channels(tensor, pitch, channel, channels: tl.constexpr, index, length):
    """Return channels of positions of a line, zero beyond its ends."""
    mask = (channel < channels) & (index < length)
    return tl.load(tensor + channel * pitch + index, mask=mask, other=0.0)


@triton.jit
def _factor(x, term: tl.constexpr):
    """Return the scale of a term of the logits."""
    return tl.load(x.factors + term * x.heads + x.head)


@triton.jit
def _tile_of_pairs(
    x,
    tile,
    key_tile,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return queries, keys [L, E], both gradients of the result [L, D], the three terms, the logits
    and the gradients of the weights [i, m].
    """
    e, d = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    i, m = tile * BLOCK + tl.arange(0, BLOCK), key_tile * BLOCK + tl.arange(0, BLOCK)
    q = _channels(x.lines, x.pitch, e[None, :], key_channels, i[:, None], x.length).to(DOT)
    keys = x.lines + key_channels * x.pitch
    k = _channels(keys, x.pitch, e[None, :], key_channels, m[:, None], x.length).to(DOT)
    values = x.lines + 2 * key_channels * x.pitch
    v = _channels(values, x.pitch, d[:, None], channels, m[None, :], x.length).to(DOT)
    step = (2 if POSITION else 1) * x.pitch
    content = _channels(x.grad, step, d[None, :], channels, i[:, None], x.length).to(DOT)
    position = content

    between = tile - key_tile
    by_content = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    by_query = relative_products(*(q, x.table, 0, e, key_channels, between, BLOCK, DOT, PRECISION))
    # keys see queries from the other side
    by_key = tl.trans(
        relative_products(
            *(k, x.table, key_channels, e, key_channels, key_tile - tile, BLOCK, DOT, PRECISION)
        )
    )
    logits = by_content * _factor(x, 0) + by_query * _factor(x, 1) + by_key * _factor(x, 2)
    logits = masked(logits, i, m, x.length, x.reach)

    grad_weight = tl.dot(content, v, input_precision=PRECISION)
    if POSITION:
        grad = x.grad + x.pitch
        position = _channels(grad, step, d[None, :], channels, i[:, None], x.length).to(DOT)
        grad_weight += relative_products(
            *(position, x.table, 2 * key_channels, d, channels, between, BLOCK, DOT, PRECISION),
        )
    return q, k, content, position, by_content, by_query, by_key, logits, grad_weight


@triton.jit
def _line_of(
    lines,
    grad,
    relative,
    relative_row,
    end,
    factors,
    line,
    head,
    heads,
    image_lines,
    length,
    reach,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    POSITION: tl.constexpr,
):
    """Return a line of a head, and its offset in all lines."""
    image, row = line // image_lines, line % image_lines
    pitch = image_lines * length
    first = (image.to(tl.int64) * heads + head) * pitch
    offset = first * (2 * key_channels + channels) + row * length
    grad += first * ((2 if POSITION else 1) * channels) + row * length
    table = Table(relative, relative_row, end)
    x = Line(lines + offset, grad, table, factors, heads, head, pitch, length, reach)
    return x, offset


@triton.jit
def _softmax_sums(
    x,
    tile,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the logarithms of the softmax's sums [i], and the sums of weights times gradients."""
    # an online softmax, as in the forward pass
    largest = tl.full((BLOCK,), float('-inf'), tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    product_sum = tl.zeros((BLOCK,), tl.float32)
    first_tile, last_tile = tiles_in_reach(tile, x.reach, x.length, BLOCK)
    for key_tile in range(first_tile, last_tile + 1):
        _, _, _, _, _, _, _, logits, grad_weight = _tile_of_pairs(
            *(x, tile, key_tile, key_channels, channels, POSITION, BLOCK, BLOCK_E, BLOCK_D),
            *(DOT, PRECISION),
        )
        weight, rescale, largest = softmax_step(logits, largest)
        weight_sum = weight_sum * rescale + tl.sum(weight, 1)
        product_sum = product_sum * rescale + tl.sum(weight * grad_weight, 1)
    return largest + tl.log(weight_sum), product_sum / weight_sum


@triton.jit
def _weights(logits, grad_weight, logsumexp, delta, head_index, i, length):
    """Return the weights of the softmax [i, m], and the gradients of its logits."""
    source = head_index.to(tl.int64) * length + i
    total = tl.load(logsumexp + source, mask=i < length, other=0.0)
    product = tl.load(delta + source, mask=i < length, other=0.0)
    weight = tl.exp(logits - total[:, None])
    # rows behind the end of the line
    weight = tl.where((i < length)[:, None], weight, 0.0)
    return weight, weight * (grad_weight - product[:, None])


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def axial_query_kernel(
    lines,
    grad,
    relative,
    factors,
    # outputs: gradients of lines and, by tile, of the scales; logarithm of the softmax's sum and
    # the sum of weights times their gradients, by position
    grad_lines,
    grad_factors,
    logsumexp,
    delta,
    relative_row,
    heads,
    lines_count,
    image_lines,
    length,
    end,
    reach,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of query positions of one head of one line."""
    tile_count = tl.cdiv(length, BLOCK)
    tile, head_index = tl.program_id(0) % tile_count, tl.program_id(0) // tile_count
    line, head = head_index // heads, head_index % heads
    x, offset = _line_of(
        *(lines, grad, relative, relative_row, end, factors, line, head, heads),
        *(image_lines, length, reach, key_channels, channels, POSITION),
    )
    total, product = _softmax_sums(
        *(x, tile, key_channels, channels, POSITION, BLOCK, BLOCK_E, BLOCK_D, DOT, PRECISION)
    )
    grad_query = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    sum_content = tl.zeros((BLOCK,), tl.float32)
    sum_query = tl.zeros((BLOCK,), tl.float32)
    sum_key = tl.zeros((BLOCK,), tl.float32)
    e, i = tl.arange(0, BLOCK_E), tile * BLOCK + tl.arange(0, BLOCK)
    first_tile, last_tile = tiles_in_reach(tile, reach, length, BLOCK)
    for key_tile in range(first_tile, last_tile + 1):
        _, k, _, _, by_content, by_query, by_key, logits, grad_weight = _tile_of_pairs(
            *(x, tile, key_tile, key_channels, channels, POSITION, BLOCK, BLOCK_E, BLOCK_D),
            *(DOT, PRECISION),
        )
        grad_logits = tl.exp(logits - total[:, None]) * (grad_weight - product[:, None])
        # rows behind the end of the line
        grad_logits = tl.where((i < length)[:, None], grad_logits, 0.0)
        by_keys = tl.dot(grad_logits.to(DOT), k, input_precision=PRECISION)
        by_table = relative_sums(
            *(grad_logits, x.table, 0, e, key_channels, tile - key_tile, BLOCK, DOT, PRECISION)
        )
        grad_query += by_keys * _factor(x, 0)
        grad_query += by_table * _factor(x, 1)
        sum_content += tl.sum(grad_logits * by_content, 1)
        sum_query += tl.sum(grad_logits * by_query, 1)
        sum_key += tl.sum(grad_logits * by_key, 1)
    mask = (i < length)[:, None] & (e < key_channels)[None, :]
    tl.store(grad_lines + offset + e[None, :] * x.pitch + i[:, None], grad_query, mask=mask)
    target = head_index.to(tl.int64) * length + i
    tl.store(logsumexp + target, total, mask=i < length)
    tl.store(delta + target, product, mask=i < length)
    grad_factors += tl.program_id(0) * 3
    tl.store(grad_factors, tl.sum(sum_content, 0))
    tl.store(grad_factors + 1, tl.sum(sum_query, 0))
    tl.store(grad_factors + 2, tl.sum(sum_key, 0))


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def axial_key_kernel(
    lines,
    grad,
    relative,
    factors,
    grad_lines,
    logsumexp,
    delta,
    relative_row,
    heads,
    lines_count,
    image_lines,
    length,
    end,
    reach,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of key positions of one head of one line."""
    tile_count = tl.cdiv(length, BLOCK)
    key_tile, head_index = tl.program_id(0) % tile_count, tl.program_id(0) // tile_count
    line, head = head_index // heads, head_index % heads
    x, offset = _line_of(
        *(lines, grad, relative, relative_row, end, factors, line, head, heads),
        *(image_lines, length, reach, key_channels, channels, POSITION),
    )
    grad_key = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    grad_value = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    e, d = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    first_tile, last_tile = tiles_in_reach(key_tile, reach, length, BLOCK)
    for tile in range(first_tile, last_tile + 1):
        q, _, content, _, _, _, _, logits, grad_weight = _tile_of_pairs(
            *(x, tile, key_tile, key_channels, channels, POSITION, BLOCK, BLOCK_E, BLOCK_D),
            *(DOT, PRECISION),
        )
        i = tile * BLOCK + tl.arange(0, BLOCK)
        weight, grad_logits = _weights(
            *(logits, grad_weight, logsumexp, delta, head_index, i, length)
        )
        grad_value += tl.dot(tl.trans(weight).to(DOT), content, input_precision=PRECISION)
        by_key = tl.trans(grad_logits)
        by_queries = tl.dot(by_key.to(DOT), q, input_precision=PRECISION)
        by_table = relative_sums(
            *(by_key, x.table, key_channels, e, key_channels, key_tile - tile),
            *(BLOCK, DOT, PRECISION),
        )
        grad_key += by_queries * _factor(x, 0)
        grad_key += by_table * _factor(x, 2)
    m = key_tile * BLOCK + tl.arange(0, BLOCK)
    grad_lines += offset + key_channels * x.pitch
    mask = (m < length)[:, None] & (e < key_channels)[None, :]
    tl.store(grad_lines + e[None, :] * x.pitch + m[:, None], grad_key, mask=mask)
    grad_lines += key_channels * x.pitch
    mask = (m < length)[:, None] & (d < channels)[None, :]
    tl.store(grad_lines + d[None, :] * x.pitch + m[:, None], grad_value, mask=mask)


@triton.jit(do_not_specialize=[*NOT_SPECIALISED, 'groups', 'offsets'])
def axial_table_kernel(
    lines,
    grad,
    relative,
    factors,
    # output: sums (groups, heads, offsets, 2 BLOCK, channels of lines) for the distances of a tile
    grad_table,
    logsumexp,
    delta,
    # groups of lines, and offsets between tiles of queries and of keys
    groups,
    offsets,
    relative_row,
    heads,
    lines_count,
    image_lines,
    length,
    end,
    reach,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All pairs of tiles at one offset, of one head of a group of lines."""
    tile_count = tl.cdiv(length, BLOCK)
    # tiles between a tile of queries and one of keys
    between = tl.program_id(0) % offsets - offsets // 2
    head = tl.program_id(0) // offsets % heads
    group = tl.program_id(0) // offsets // heads
    by_query = tl.zeros((2 * BLOCK, BLOCK_E), tl.float32)
    by_key = tl.zeros((2 * BLOCK, BLOCK_E), tl.float32)
    by_value = tl.zeros((2 * BLOCK, BLOCK_D), tl.float32)
    first_tile, last_tile = tl.maximum(between, 0), tl.minimum(tile_count, tile_count + between)
    for line in range(group, lines_count, groups):
        x, offset = _line_of(
            *(lines, grad, relative, relative_row, end, factors, line, head, heads),
            *(image_lines, length, reach, key_channels, channels, POSITION),
        )
        for tile in range(first_tile, last_tile):
            q, k, _, position, _, _, _, logits, grad_weight = _tile_of_pairs(
                *(x, tile, tile - between, key_channels, channels, POSITION),
                *(BLOCK, BLOCK_E, BLOCK_D, DOT, PRECISION),
            )
            i = tile * BLOCK + tl.arange(0, BLOCK)
            weight, grad_logits = _weights(
                *(logits, grad_weight, logsumexp, delta, line * heads + head, i, length)
            )
            along = tl.trans(along_distances(grad_logits, BLOCK)).to(DOT)
            by_query += tl.dot(along, q, input_precision=PRECISION)
            along = tl.trans(along_distances(tl.trans(grad_logits), BLOCK)).to(DOT)
            by_key += tl.dot(along, k, input_precision=PRECISION)
            if POSITION:
                along = tl.trans(along_distances(weight, BLOCK)).to(DOT)
                by_value += tl.dot(along, position, input_precision=PRECISION)
    w, e, d = tl.arange(0, 2 * BLOCK), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    line_channels: tl.constexpr = 2 * key_channels + channels
    grad_table += (tl.program_id(0).to(tl.int64) * 2 * BLOCK + w[:, None]) * line_channels
    tl.store(grad_table + e[None, :], by_query, mask=(e < key_channels)[None, :])
    tl.store(grad_table + key_channels + e[None, :], by_key, mask=(e < key_channels)[None, :])
    tl.store(grad_table + 2 * key_channels + d[None, :], by_value, mask=(d < channels)[None, :])


def reasons_against_attention_backward(
    grad: Tensor, lines: Tensor, relative: Tensor, scale: Tensor, key_channels: int, *_: Any
) -> list[str]:
    """Return the reasons why the kernels cannot take these tensors."""
    reasons = float64_reasons(grad=grad, lines=lines, relative=relative)
    channels = max(key_channels, lines.shape[2] - 2 * key_channels)
    if channels > MOST_CHANNELS:
        reasons.append(f'more than {MOST_CHANNELS} channels of a head, {channels}')
    return reasons


def attention_backward(
    grad: Tensor,
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmrednet.ops.axial.gradients`."""
    images, heads, line_channels, image_lines, length = lines.shape
    channels, count = line_channels - 2 * key_channels, images * image_lines
    device, tiles = lines.device, cdiv(length, BLOCK)
    reach = span // 2 if span else length
    # terms that are not asked for have a scale of zero
    factors = scale.new_zeros(3, heads, dtype=torch.float32)
    factors[list(terms)] = scale.float()
    inputs = (lines.contiguous(), grad.contiguous(), relative.contiguous(), factors)
    grad_lines = torch.empty_like(inputs[0])
    grad_factors = factors.new_empty(count, heads, tiles, 3)
    logsumexp, delta = factors.new_empty(2, count, heads, length)
    sizes = (relative.shape[1], heads, count, image_lines, length, relative.shape[1] // 2, reach)
    options: dict[str, Any] = dict(
        key_channels=key_channels,
        channels=channels,
        POSITION=value_position,
        BLOCK=BLOCK,
        BLOCK_E=max(16, next_power_of_2(key_channels)),
        BLOCK_D=max(16, next_power_of_2(channels)),
        DOT=dot_type(grad, lines, relative),
        PRECISION=dot_precision(),
        num_warps=1,
    )
    programs = count * heads * tiles
    sums = (logsumexp, delta)
    launch(
        axial_query_kernel,
        programs,
        device,
        *inputs,
        grad_lines,
        grad_factors,
        *sums,
        *sizes,
        **options,
    )
    launch(axial_key_kernel, programs, device, *inputs, grad_lines, *sums, *sizes, **options)
    # a tile reaches keys in so many tiles on each side
    side = min(tiles - 1, cdiv(reach, BLOCK))
    groups, offsets = min(LINE_GROUPS, count), 2 * side + 1
    grad_table = factors.new_zeros(groups, heads, offsets, 2 * BLOCK, line_channels)
    launch(
        axial_table_kernel,
        groups * heads * offsets,
        device,
        *(*inputs, grad_table, *sums, groups, offsets, *sizes),
        **options,
    )
    by_term = torch.ones(heads, line_channels, device=device)
    by_term[:, :key_channels] = factors[1, :, None]
    by_term[:, key_channels : 2 * key_channels] = factors[2, :, None]
    table = torch.einsum('ghowc,hc->owc', grad_table, by_term)
    grad_relative = _table_gradient(table, key_channels, side, relative.shape[1])
    grad_scale = grad_factors.sum((0, 2)).t()[list(terms)]
    return (
        _torch.in_layout_of(lines, grad_lines),
        grad_relative.to(relative.dtype),
        grad_scale.to(scale.dtype).contiguous(),
    )


def _table_gradient(table: Tensor, key_channels: int, side: int, size: int) -> Tensor:
    """Return the gradient (channels, size) of the tables.

    Args:
        table: Sums (offsets, 2 BLOCK, channels) of the distances of pairs of tiles.
        key_channels: Number of channels of a query.
        side: Largest offset between tiles.
        size: Number of distances in a table.
    """
    offset = torch.arange(-side, side + 1, device=table.device)[:, None] * BLOCK
    column = torch.arange(1 - BLOCK, BLOCK + 1, device=table.device)
    end = size // 2
    # the distance of keys is that of queries from the other side
    distances = [(sign * offset + column).clamp(-end, end) + end for sign in (1, -1)]
    # a product with rows of the identity: adding by index would not be deterministic on a GPU
    identity = torch.eye(size, device=table.device, dtype=torch.float64)
    by_query, by_key = (identity[distance].flatten(0, 1) for distance in distances)
    sums = table.double().flatten(0, 1).t()
    result = sums @ by_query
    keys = slice(key_channels, 2 * key_channels)
    result[keys] = sums[keys] @ by_key
    return result
