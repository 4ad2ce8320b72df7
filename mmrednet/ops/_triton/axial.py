"""Attention along lines without stored logits.

An online softmax runs over tiles of BLOCK query positions i and BLOCK key positions m.
The relative terms of a tile need 2 BLOCK - 1 distances w = i - m. Each term is a matrix product
with this part of a table, read along its diagonals:

    q . rq[i - m] = (q @ rq)[i, w = i - m]
    sum over m of P[i, m] rv[i - m] = sum over w of P[i, m = i - w] rv[w]

A product with the table costs twice that of a tile, but it runs on the matrix unit, and each entry
of the table is read once for a tile instead of once for each pair of positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .. import _torch
from .tiles import (
    cdiv,
    dot_precision,
    dot_type,
    float64_reasons,
    index_type,
    inside,
    launch,
    layout,
    next_power_of_2,
    start,
    strides,
)

# queries and keys of a tile: the smallest size of a matrix product, so that one warp holds a tile
# and reads its diagonals by shuffles
BLOCK = 16
# channels of a head per warp
CHANNELS_OF_A_WARP = 32
# what registers hold: the definition computes heads with more channels
MOST_CHANNELS = 128
# arguments for whose values Triton must not compile anew
NOT_SPECIALISED = [
    *('query_strides', 'key_strides', 'value_strides', 'result_strides'),
    *('relative_row', 'heads', 'image_lines', 'length', 'end', 'span'),
]


@triton.jit
def _lines(
    tensor, strides, channel, channels: tl.constexpr, row, index, length, LAYOUT: tl.constexpr
):
    """Return elements [D, L] of a line, which is a row of an image, zero beyond its ends.

    The shapes of ``channel`` and ``index`` decide whether it is [D, L] or its transpose.
    """
    offset = inside(strides, channel, row, index, LAYOUT)
    return tl.load(tensor + offset, mask=(channel < channels) & (index < length), other=0.0)


@triton.jit
def _table(relative, relative_row, first, channel, channels: tl.constexpr, distance, end):
    """Return entries of the table that begins at row ``first``."""
    # distances beyond the ends of a table take the entry at the end
    column = tl.minimum(tl.maximum(distance, -end), end) + end
    return tl.load(
        relative + (first + channel) * relative_row + column, mask=channel < channels, other=0.0
    )


@triton.jit
def _distances(first, BLOCK: tl.constexpr):
    """Return the distances [W] in a tile, and the index [i, m] into them.

    ``first`` is the distance between the first positions of the tile.
    """
    # 2 BLOCK - 1 of them, and one that fills up to a power of two
    column = tl.arange(0, 2 * BLOCK)
    position = tl.arange(0, BLOCK)
    return first + 1 - BLOCK + column, position[:, None] - position[None, :] + BLOCK - 1


# queries, keys and values begin at any channel of one tensor
@triton.jit(do_not_specialize=['query', 'key', 'value', *NOT_SPECIALISED])
def axial_kernel(
    query,
    key,
    value,
    relative,
    scale,
    shift,
    # factors of the positions of values, which are added to the result; read only if SCALED
    position_scale,
    result,
    # (image, head, channel, line, position), coded as odd numbers
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    # stride of the table's rows
    relative_row,
    # sizes; those of channels are constants
    heads,
    image_lines,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    length,
    # largest distance in the table
    end,
    span,
    # bits: query_key, query_position, key_position
    TERMS: tl.constexpr,
    # whether values have positions
    POSITION: tl.constexpr,
    # whether they are scaled and added
    SCALED: tl.constexpr,
    # layouts
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile: positions, channels of keys and of values
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    # types of factors, precision of products, type of offsets
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """One tile of query positions of one head of one line."""
    tile_count = tl.cdiv(length, BLOCK)
    tile = tl.program_id(0) % tile_count
    head_index = tl.program_id(0) // tile_count
    head, line = head_index % heads, head_index // heads
    image, row = line // image_lines, (line % image_lines).to(INDEX)
    key_channel = tl.arange(0, BLOCK_E).to(INDEX)
    value_channel = tl.arange(0, BLOCK_D).to(INDEX)
    query_index = (tile * BLOCK + tl.arange(0, BLOCK)).to(INDEX)
    key += start(key_strides, image, head, KEY)
    value += start(value_strides, image, head, VALUE)
    query += start(query_strides, image, head, QUERY)
    q = _lines(
        query,
        query_strides,
        key_channel[None, :],
        key_channels,
        row,
        query_index[:, None],
        length,
        QUERY,
    ).to(DOT)
    # Online softmax: the largest logit so far, the sum of weights relative to it, and the sums of
    # weighted values and positions. A larger logit rescales all sums.
    largest = tl.full((BLOCK,), float('-inf'), tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    content = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    position_embedding = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    reach = tl.where(span > 0, span // 2, length)
    # tiles of keys beyond the span have no weight: skip them
    first_tile = tl.maximum(tile * BLOCK - reach, 0) // BLOCK
    last_tile = tl.minimum(tile * BLOCK + BLOCK - 1 + reach, length - 1) // BLOCK
    for key_tile in range(first_tile, last_tile + 1):
        key_index = (key_tile * BLOCK + tl.arange(0, BLOCK)).to(INDEX)
        # keys as [E, L], the second factor of a matrix product; values as [L, D]
        k = _lines(
            key,
            key_strides,
            key_channel[:, None],
            key_channels,
            row,
            key_index[None, :],
            length,
            KEY,
        ).to(DOT)
        v = _lines(
            value,
            value_strides,
            value_channel[None, :],
            channels,
            row,
            key_index[:, None],
            length,
            VALUE,
        ).to(DOT)
        distance, diagonal = _distances((tile - key_tile) * BLOCK, BLOCK)
        logits = tl.zeros((BLOCK, BLOCK), tl.float32)
        # row of scale and shift: terms that are not asked for have none
        term = 0
        if TERMS % 2 == 1:
            by_content = tl.dot(q, k, input_precision=PRECISION)
            logits += by_content * tl.load(scale + head).to(tl.float32)
            logits += tl.load(shift + head).to(tl.float32)
            term += 1
        if TERMS // 2 % 2 == 1:
            table = _table(
                relative,
                relative_row,
                0,
                key_channel[:, None],
                key_channels,
                distance[None, :],
                end,
            )
            by_distance = tl.dot(q, table.to(DOT), input_precision=PRECISION)
            # [i, w] read along the diagonals w = i - m
            by_query = tl.gather(by_distance, diagonal, 1)
            logits += by_query * tl.load(scale + term * heads + head).to(tl.float32)
            logits += tl.load(shift + term * heads + head).to(tl.float32)
            term += 1
        if TERMS // 4 == 1:
            # keys see queries from the other side: distances are m - i, the result is transposed
            key_distance, key_diagonal = _distances((key_tile - tile) * BLOCK, BLOCK)
            table = _table(
                relative,
                relative_row,
                key_channels,
                key_channel[:, None],
                key_channels,
                key_distance[None, :],
                end,
            )
            by_distance = tl.dot(tl.trans(k), table.to(DOT), input_precision=PRECISION)
            by_key = tl.trans(tl.gather(by_distance, key_diagonal, 1))
            logits += by_key * tl.load(scale + term * heads + head).to(tl.float32)
            logits += tl.load(shift + term * heads + head).to(tl.float32)
        difference = query_index[:, None] - key_index[None, :]
        mask = (key_index < length)[None, :] & (difference <= reach) & (difference >= -reach)
        logits = tl.where(mask, logits, float('-inf'))
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        # where all logits so far are -inf, subtract nothing: -inf - -inf is NaN
        base = tl.where(new_largest == float('-inf'), 0.0, new_largest)
        rescale = tl.exp(largest - base)
        weight = tl.exp(logits - base[:, None])
        weight_sum = weight_sum * rescale + tl.sum(weight, 1)
        content = content * rescale[:, None]
        content += tl.dot(weight.to(DOT), v, input_precision=PRECISION)
        if POSITION:
            # The weights by distance: [i, w] is the weight of key m = i - w. The gather clamps keys
            # outside the tile to 0, and the mask removes them.
            key_in_tile = (
                tl.arange(0, BLOCK)[:, None] + BLOCK - 1 - tl.arange(0, 2 * BLOCK)[None, :]
            )
            in_tile = (key_in_tile >= 0) & (key_in_tile < BLOCK)
            gathered = tl.gather(weight, tl.where(in_tile, key_in_tile, 0), 1)
            weight_by_distance = tl.where(in_tile, gathered, 0.0)
            table = _table(
                relative,
                relative_row,
                2 * key_channels,
                value_channel[None, :],
                channels,
                distance[:, None],
                end,
            )
            position_embedding = position_embedding * rescale[:, None]
            position_embedding += tl.dot(
                weight_by_distance.to(DOT), table.to(DOT), input_precision=PRECISION
            )
        largest = new_largest
    result += start(result_strides, image, head, RESULT)
    mask = (query_index < length)[:, None] & (value_channel < channels)[None, :]
    content = content / weight_sum[:, None]
    if SCALED:
        factor = tl.load(
            position_scale + head * channels + value_channel, mask=value_channel < channels
        )
        position_embedding = position_embedding / weight_sum[:, None]
        content += position_embedding * factor.to(tl.float32)[None, :]
    # the parts of a channel lie together: content, then positions
    parts: tl.constexpr = 2 if POSITION and not SCALED else 1
    channel = value_channel[None, :] * parts
    offset = inside(result_strides, channel, row, query_index[:, None], RESULT)
    tl.store(result + offset, content, mask=mask)
    if parts == 2:
        offset = inside(result_strides, channel + 1, row, query_index[:, None], RESULT)
        tl.store(result + offset, position_embedding / weight_sum[:, None], mask=mask)


def reasons_against_attention(
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    position_scale: Tensor | None,
    key_channels: int,
    *_: Any,
) -> list[str]:
    """Return the reasons why the kernel cannot take these tensors."""
    reasons = float64_reasons(lines=lines, relative=relative)
    channels = max(key_channels, lines.shape[2] - 2 * key_channels)
    if channels > MOST_CHANNELS:
        reasons.append(f'more than {MOST_CHANNELS} channels of a head, {channels}')
    return reasons


def attention(
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    position_scale: Tensor | None,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Tensor:
    """See :func:`mmrednet.ops.axial.attention`."""
    images, heads, line_channels, image_lines, length = lines.shape
    channels = line_channels - 2 * key_channels
    parts = 2 if value_position and position_scale is None else 1
    result = _torch.empty_in_layout_of(
        lines, (images, heads, channels * parts, image_lines, length), lines.dtype
    )
    views = lines.split([key_channels, key_channels, channels], 2)
    layouts = [layout(tensor) for tensor in (*views, result)]
    distances = relative.shape[1]
    factors = scale if position_scale is None else position_scale
    launch(
        axial_kernel,
        images * image_lines * heads * cdiv(length, BLOCK),
        lines.device,
        *views,
        *(tensor.contiguous() for tensor in (relative, scale, shift, factors)),
        result,
        *(strides(tensor) for tensor in (*views, result)),
        *(distances, heads, image_lines, key_channels, channels, length, distances // 2, span),
        **dict(zip(('QUERY', 'KEY', 'VALUE', 'RESULT'), layouts, strict=True)),
        TERMS=sum(1 << term for term in terms),
        POSITION=value_position,
        SCALED=position_scale is not None,
        BLOCK=BLOCK,
        # a matrix product sums over at least 16, and has at least 16 columns
        BLOCK_E=max(16, next_power_of_2(key_channels)),
        BLOCK_D=max(16, next_power_of_2(channels)),
        DOT=dot_type(lines, relative),
        PRECISION=dot_precision(),
        INDEX=index_type(*views, result),
        num_stages=1,
        num_warps=max(1, next_power_of_2(max(key_channels, channels)) // CHANNELS_OF_A_WARP),
    )
    return result
