"""Attention along lines without stored logits: an online softmax over tiles of BLOCK attending and
attended positions.

Relative terms of a tile need 2 BLOCK - 1 distances. They are matrix products with that part of a
table, read along
diagonals: with w counting distances,

    q . rq[i - m] = (q @ rq)[i, w = i - m]
    sum over m of P[i, m] rv[i - m] = sum over w of P[i, m = i - w] rv[w]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

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

# attending and attended positions of a tile: the least that a matrix product takes, so that one
# warp holds a tile and reads its diagonals by shuffles
BLOCK = 16
# channels of a head that a warp holds for its tile
CHANNELS_OF_A_WARP = 32
# what registers hold: more channels of a head are left to the composition
MOST_CHANNELS = 128
NOT_SPECIALISED = [
    'query_strides',
    'key_strides',
    'value_strides',
    'result_strides',
    'relative_row',
    'heads',
    'length',
    'end',
    'span',
]


@triton.jit
def _lines(tensor, strides, channel, channels: tl.constexpr, place, length, LAYOUT: tl.constexpr):
    """Return [D, L] of a line, or its transpose, as the arguments are shaped; zero beyond its
    ends."""
    at = inside(strides, channel, tl.zeros_like(place), place, LAYOUT)
    return tl.load(tensor + at, mask=(channel < channels) & (place < length), other=0.0)


@triton.jit
def _table(relative, relative_row, first, channel, channels: tl.constexpr, distance, end):
    """Return entries of a table that begins at row ``first``, for distances clamped to its ends."""
    column = tl.minimum(tl.maximum(distance, -end), end) + end
    return tl.load(
        relative + (first + channel) * relative_row + column, mask=channel < channels, other=0.0
    )


@triton.jit
def _distances(first, BLOCK: tl.constexpr):
    """Return [W] distances of a tile whose first positions are this far apart, and where [i, m]
    finds its own.
    """
    wide = tl.arange(0, 2 * BLOCK)
    place = tl.arange(0, BLOCK)
    return first + 1 - BLOCK + wide, place[:, None] - place[None, :] + BLOCK - 1


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def axial_kernel(
    query,
    key,
    value,
    relative,
    scale,
    shift,
    result,
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    relative_row,
    heads,
    key_channels: tl.constexpr,
    channels: tl.constexpr,
    length,
    end,
    span,
    TERMS: tl.constexpr,
    POSITION: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """One tile of attending positions of one head of one line."""
    count = tl.cdiv(length, BLOCK)
    tile, head = tl.program_id(0) % count, tl.program_id(0) // count % heads
    line = tl.program_id(0) // count // heads
    low, high = tl.arange(0, BLOCK_E).to(INDEX), tl.arange(0, BLOCK_D).to(INDEX)
    ours = (tile * BLOCK + tl.arange(0, BLOCK)).to(INDEX)
    key += start(key_strides, line, head, KEY)
    value += start(value_strides, line, head, VALUE)
    q = _lines(
        query + start(query_strides, line, head, QUERY),
        query_strides,
        low[None, :],
        key_channels,
        ours[:, None],
        length,
        QUERY,
    ).to(DOT)
    largest = tl.full((BLOCK,), float('-inf'), tl.float32)
    weights = tl.zeros((BLOCK,), tl.float32)
    content = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    where = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    reach = tl.where(span > 0, span // 2, length)
    first = tl.maximum(tile * BLOCK - reach, 0) // BLOCK
    last = tl.minimum(tile * BLOCK + BLOCK - 1 + reach, length - 1) // BLOCK
    for block in range(first, last + 1):
        theirs = (block * BLOCK + tl.arange(0, BLOCK)).to(INDEX)
        k = _lines(key, key_strides, low[:, None], key_channels, theirs[None, :], length, KEY).to(
            DOT
        )
        v = _lines(
            value, value_strides, high[None, :], channels, theirs[:, None], length, VALUE
        ).to(DOT)
        wide, diagonal = _distances((tile - block) * BLOCK, BLOCK)
        logits = tl.zeros((BLOCK, BLOCK), tl.float32)
        term = 0
        if TERMS % 2 == 1:
            logits += tl.dot(q, k, input_precision=PRECISION) * tl.load(scale + head).to(tl.float32)
            logits += tl.load(shift + head).to(tl.float32)
            term += 1
        if TERMS // 2 % 2 == 1:
            table = _table(
                relative, relative_row, 0, low[:, None], key_channels, wide[None, :], end
            )
            by_query = tl.dot(q, table.to(DOT), input_precision=PRECISION)
            logits += tl.gather(by_query, diagonal, 1) * tl.load(scale + term * heads + head).to(
                tl.float32
            )
            logits += tl.load(shift + term * heads + head).to(tl.float32)
            term += 1
        if TERMS // 4 == 1:
            back, across = _distances((block - tile) * BLOCK, BLOCK)
            table = _table(
                relative,
                relative_row,
                key_channels,
                low[:, None],
                key_channels,
                back[None, :],
                end,
            )
            by_key = tl.dot(tl.trans(k), table.to(DOT), input_precision=PRECISION)
            logits += tl.trans(tl.gather(by_key, across, 1)) * tl.load(
                scale + term * heads + head
            ).to(tl.float32)
            logits += tl.load(shift + term * heads + head).to(tl.float32)
        apart = ours[:, None] - theirs[None, :]
        logits = tl.where(
            (theirs < length)[None, :] & (apart <= reach) & (apart >= -reach), logits, float('-inf')
        )
        above = tl.maximum(largest, tl.max(logits, 1))
        base = tl.where(above == float('-inf'), 0.0, above)
        factor, weight = tl.exp(largest - base), tl.exp(logits - base[:, None])
        weights = weights * factor + tl.sum(weight, 1)
        content = content * factor[:, None] + tl.dot(weight.to(DOT), v, input_precision=PRECISION)
        if POSITION:
            # the weight of the attended position at each distance from the attending one
            attended = tl.arange(0, BLOCK)[:, None] + BLOCK - 1 - tl.arange(0, 2 * BLOCK)[None, :]
            there = (attended >= 0) & (attended < BLOCK)
            spread = tl.where(there, tl.gather(weight, tl.where(there, attended, 0), 1), 0.0)
            table = _table(
                relative,
                relative_row,
                2 * key_channels,
                high[None, :],
                channels,
                wide[:, None],
                end,
            )
            where = where * factor[:, None] + tl.dot(
                spread.to(DOT), table.to(DOT), input_precision=PRECISION
            )
        largest = above
    base = result + start(result_strides, line, head, RESULT)
    real = (ours < length)[:, None] & (high < channels)[None, :]
    at = inside(result_strides, high[None, :], tl.zeros_like(ours)[:, None], ours[:, None], RESULT)
    tl.store(base + at, content / weights[:, None], mask=real)
    if POSITION:
        at = inside(
            result_strides, high[None, :], tl.full((BLOCK, 1), 1, INDEX), ours[:, None], RESULT
        )
        tl.store(base + at, where / weights[:, None], mask=real)


def reasons_against_attention(
    query: Tensor, key: Tensor, value: Tensor, relative: Tensor, *_: Any
) -> list[str]:
    """Return why the kernel cannot take these tensors: nothing where it can."""
    reasons = float64_reasons(query=query, key=key, value=value, relative=relative)
    channels = max(query.shape[2], value.shape[2])
    if channels > MOST_CHANNELS:
        reasons.append(f'more than {MOST_CHANNELS} channels of a head, {channels}')
    return reasons


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Tensor:
    """See :func:`mmrednet.ops.axial_attention`."""
    lines, heads, channels, length = value.shape
    result = value.new_empty((lines, heads, channels, 2 if value_position else 1, length))
    # one row of positions in each head of each line
    views = [tensor.unsqueeze(3) for tensor in (query, key, value)]
    launch(
        axial_kernel,
        lines * heads * cdiv(length, BLOCK),
        value.device,
        query,
        key,
        value,
        relative.contiguous(),
        scale.contiguous(),
        shift.contiguous(),
        result,
        *(strides(view) for view in views),
        strides(result),
        relative.shape[1],
        heads,
        query.shape[2],
        channels,
        length,
        relative.shape[1] // 2,
        span,
        TERMS=sum(1 << term for term in terms),
        POSITION=value_position,
        QUERY=layout(views[0]),
        KEY=layout(views[1]),
        VALUE=layout(views[2]),
        RESULT=layout(result),
        BLOCK=BLOCK,
        BLOCK_E=max(16, next_power_of_2(query.shape[2])),
        BLOCK_D=max(16, next_power_of_2(channels)),
        DOT=dot_type(query, key, value, relative),
        PRECISION=dot_precision(),
        INDEX=index_type(*views, result),
        num_stages=1,
        num_warps=max(1, next_power_of_2(max(query.shape[2], channels)) // CHANNELS_OF_A_WARP),
    )
    return result
