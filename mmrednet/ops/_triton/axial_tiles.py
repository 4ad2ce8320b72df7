"""What the kernels of axial attention share: distances of a tile, relative terms, the softmax.

A tile has BLOCK query positions i and BLOCK key positions m. Its relative terms need 2 BLOCK - 1
distances w = i - m. Each term is a matrix product with this part of a table, read along its
diagonals:

    q . rq[i - m] = (q @ rq)[i, w = i - m]
    sum over m of P[i, m] rv[i - m] = sum over w of P[i, m = i - w] rv[w]

A product with the table costs twice that of a tile, but it runs on the matrix unit, and each entry
of the table is read once for a tile instead of once for each pair of positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Table(NamedTuple):
    """A table of relative positions, with one column for each distance.

    Args:
        pointer: First element.
        row_stride: Stride of the rows.
        end: Largest distance in the table.
    """

    pointer: Any
    row_stride: Any
    end: Any


@triton.jit
def entries(table, first, channel, channels: tl.constexpr, distance):
    """Return entries of the rows of a table from row ``first`` on."""
    # distances beyond the ends of a table take the entry at the end
    column = tl.minimum(tl.maximum(distance, -table.end), table.end) + table.end
    # row by row, so that the elements of a row share an address
    pointer = table.pointer + (first + channel) * table.row_stride + column
    return tl.load(pointer, mask=channel < channels, other=0.0)


@triton.jit
def distances(first, BLOCK: tl.constexpr):
    """Return the distances [W] in a tile, and the index [i, m] into them.

    ``first`` is the distance between the first positions of the tile.
    """
    # 2 BLOCK - 1 of them, and one that fills up to a power of two
    column = tl.arange(0, 2 * BLOCK)
    position = tl.arange(0, BLOCK)
    return first + 1 - BLOCK + column, position[:, None] - position[None, :] + BLOCK - 1


@triton.jit
def relative_products(
    x,
    table,
    first,
    channel,
    channels: tl.constexpr,
    # number of tiles from that of the positions m to that of the positions i
    between,
    BLOCK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the products [i, m] of vectors [i, C] with the entries of the distances i - m."""
    distance, diagonal = distances(between * BLOCK, BLOCK)
    factor = entries(table, first, channel[:, None], channels, distance[None, :]).to(DOT)
    products = tl.dot(x, factor, input_precision=PRECISION)
    # [i, w] read along the diagonals w = i - m
    return tl.gather(products, diagonal, 1)


@triton.jit
def along_distances(pairs, BLOCK: tl.constexpr):
    """Return the elements of pairs [i, m] by their distance, [i, w]."""
    # The gather clamps positions outside the tile to 0, and the mask removes them.
    row, column = tl.arange(0, BLOCK), tl.arange(0, 2 * BLOCK)
    index = row[:, None] + BLOCK - 1 - column[None, :]
    in_tile = (index >= 0) & (index < BLOCK)
    return tl.where(in_tile, tl.gather(pairs, tl.where(in_tile, index, 0), 1), 0.0)


@triton.jit
def relative_sums(
    pairs,
    table,
    first,
    channel,
    channels: tl.constexpr,
    # as in relative_products
    between,
    BLOCK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the sums [i, C] over m of pairs [i, m] times the entries of the distances i - m."""
    along = along_distances(pairs, BLOCK).to(DOT)
    distance, _ = distances(between * BLOCK, BLOCK)
    factor = entries(table, first, channel[None, :], channels, distance[:, None]).to(DOT)
    return tl.dot(along, factor, input_precision=PRECISION)


@triton.jit
def tile_of_program(heads, length, BLOCK: tl.constexpr):
    """Return the tile, the head and the line of this program."""
    tile_count = tl.cdiv(length, BLOCK)
    head_index = tl.program_id(0) // tile_count
    return tl.program_id(0) % tile_count, head_index % heads, head_index // heads


@triton.jit
def tiles_in_reach(tile, reach, length, BLOCK: tl.constexpr):
    """Return the first and the last tile that positions of a tile reach."""
    first = tl.maximum(tile * BLOCK - reach, 0) // BLOCK
    last = tl.minimum(tile * BLOCK + BLOCK - 1 + reach, length - 1) // BLOCK
    return first, last


@triton.jit
def masked(logits, i, m, length, reach):
    """Return the logits [i, m] with -inf for keys beyond the line or out of reach."""
    difference = i[:, None] - m[None, :]
    mask = (m < length)[None, :] & (difference <= reach) & (difference >= -reach)
    return tl.where(mask, logits, float('-inf'))


@triton.jit
def softmax_step(logits, largest):
    """Return the weights [i, m] of a tile, the factor of earlier sums, and the largest logits.

    It is a step of an online softmax. Weights are relative to the largest logit so far.
    """
    new_largest = tl.maximum(largest, tl.max(logits, 1))
    # where all logits so far are -inf, subtract nothing: -inf - -inf is NaN
    base = tl.where(new_largest == float('-inf'), 0.0, new_largest)
    return tl.exp(logits - base[:, None]), tl.exp(largest - base), new_largest
