"""Attention along lines without stored logits.

An online softmax runs over tiles of BLOCK query positions i and BLOCK key positions m. See
``axial_tiles.py`` for the relative terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .. import _torch
from .axial_tiles import (
    Table,
    masked,
    relative_products,
    relative_sums,
    softmax_step,
    tile_of_program,
    tiles_in_reach,
)
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
def _add_term(logits, products, scale, shift, index):
    """Return logits plus a term, scaled and shifted for its head."""
    logits += products * tl.load(scale + index).to(tl.float32)
    return logits + tl.load(shift + index).to(tl.float32)


@triton.jit
def _logits(
    q,
    k,
    table,
    scale,
    shift,
    heads,
    head,
    channel,
    channels: tl.constexpr,
    tile,
    key_tile,
    TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the logits [i, m] of queries [i, E] and keys [E, m], the sum of all terms."""
    logits = tl.zeros((BLOCK, BLOCK), tl.float32)
    # row of scale and shift: terms that are not asked for have none
    term = 0
    if TERMS % 2 == 1:
        by_content = tl.dot(q, k, input_precision=PRECISION)
        logits = _add_term(logits, by_content, scale, shift, head)
        term += 1
    if TERMS // 2 % 2 == 1:
        by_query = relative_products(
            *(q, table, 0, channel, channels, tile - key_tile, BLOCK, DOT, PRECISION)
        )
        logits = _add_term(logits, by_query, scale, shift, term * heads + head)
        term += 1
    if TERMS // 4 == 1:
        # keys see queries from the other side: distances are m - i, the result is transposed
        by_key = relative_products(
            *(tl.trans(k), table, channels, channel, channels, key_tile - tile),
            *(BLOCK, DOT, PRECISION),
        )
        logits = _add_term(logits, tl.trans(by_key), scale, shift, term * heads + head)
    return logits


@triton.jit
def _write(
    result,
    strides,
    content,
    position,
    position_scale,
    head,
    channel,
    channels: tl.constexpr,
    row,
    i,
    length,
    POSITION: tl.constexpr,
    SCALED: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Write sums of values [i, d], and those of their positions.

    Positions are scaled and added, or a second part of each channel.
    """
    if SCALED:
        factor = tl.load(position_scale + head * channels + channel, mask=channel < channels)
        content += position * factor.to(tl.float32)[None, :]
    mask = (i < length)[:, None] & (channel < channels)[None, :]
    # the parts of a channel lie together: content, then positions
    parts: tl.constexpr = 2 if POSITION and not SCALED else 1
    column = channel[None, :] * parts
    offset = inside(strides, column, row, i[:, None], LAYOUT)
    tl.store(result + offset, content, mask=mask)
    if parts == 2:
        offset = inside(strides, column + 1, row, i[:, None], LAYOUT)
        tl.store(result + offset, position, mask=mask)


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
    tile, head, line = tile_of_program(heads, length, BLOCK)
    image, row = line // image_lines, (line % image_lines).to(INDEX)
    e, d = tl.arange(0, BLOCK_E).to(INDEX), tl.arange(0, BLOCK_D).to(INDEX)
    i = (tile * BLOCK + tl.arange(0, BLOCK)).to(INDEX)
    table = Table(relative, relative_row, end)
    query += start(query_strides, image, head, QUERY)
    key += start(key_strides, image, head, KEY)
    value += start(value_strides, image, head, VALUE)
    q = _lines(query, query_strides, e[None, :], key_channels, row, i[:, None], length, QUERY)
    q = q.to(DOT)
    # Online softmax: the largest logit so far, the sum of weights relative to it, and the sums of
    # weighted values and positions. A larger logit rescales all sums.
    largest = tl.full((BLOCK,), float('-inf'), tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    content = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    position = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    reach = tl.where(span > 0, span // 2, length)
    # tiles of keys out of reach have no weight: skip them
    first_tile, last_tile = tiles_in_reach(tile, reach, length, BLOCK)
    for key_tile in range(first_tile, last_tile + 1):
        m = (key_tile * BLOCK + tl.arange(0, BLOCK)).to(INDEX)
        # keys as [E, L], the second factor of a matrix product; values as [L, D]
        k = _lines(key, key_strides, e[:, None], key_channels, row, m[None, :], length, KEY)
        v = _lines(value, value_strides, d[None, :], channels, row, m[:, None], length, VALUE)
        logits = _logits(
            *(q, k.to(DOT), table, scale, shift, heads, head, e, key_channels),
            *(tile, key_tile, TERMS, BLOCK, DOT, PRECISION),
        )
        logits = masked(logits, i, m, length, reach)
        weight, rescale, largest = softmax_step(logits, largest)
        weight_sum = weight_sum * rescale + tl.sum(weight, 1)
        content = content * rescale[:, None]
        content += tl.dot(weight.to(DOT), v.to(DOT), input_precision=PRECISION)
        if POSITION:
            position = position * rescale[:, None]
            position += relative_sums(
                *(weight, table, 2 * key_channels, d, channels, tile - key_tile),
                *(BLOCK, DOT, PRECISION),
            )
    content, position = content / weight_sum[:, None], position / weight_sum[:, None]
    result += start(result_strides, image, head, RESULT)
    _write(
        *(result, result_strides, content, position, position_scale, head, d, channels, row, i),
        *(length, POSITION, SCALED, RESULT),
    )


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
