"""What the kernels of vector attention share: reflection, features, and the two layers of gamma.

Tiles of maps are [P, C]: positions and channels, in float32. Features of a neighbour are two
blocks, those of the relation and those of the position, since the number of the first is a power of
two in the networks of the paper and their sum is not. Blocks are filled up with zeros, which stay
zero through norms, ReLUs and products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from ..vector_mapping import NATIVE
from .tiles import (
    dot_precision,
    dot_type,
    float64_reasons,
    index_type,
    inside,
    next_power_of_2,
    warps,
)

# what registers and the shared memory hold: channels of a relation, hidden features and groups,
# fewer of both for patches, whose weights of a tap are not taken in chunks; channels of values
MOST_CHANNELS, MOST_HIDDEN, MOST_HIDDEN_OF_PATCHES, MOST_VALUES = 128, 512, 64, 1024
# channels of values times positions of a program
ELEMENTS_OF_A_PROGRAM = 1 << 13
# elements of a tile of values per thread: there are several such tiles
ELEMENTS_OF_A_THREAD = 32
# channels of the position, with those that fill up the smallest factor of a matrix product
POSITION_BLOCK = tl.constexpr(16)
# numbers of the relations in kernels
RELATIONS = {'subtraction': 0, 'summation': 1, 'hadamard': 2, 'concatenation': 3}
# arguments for whose values Triton must not compile anew
NOT_SPECIALISED = [
    *('query_strides', 'key_strides', 'value_strides', 'grad_strides', 'result_strides'),
    *('height', 'width', 'out_height', 'out_width', 'view_height', 'view_width'),
    *('tile_groups', 'tile_count'),
]


@triton.jit
def program(height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Return the tile and the image of this program."""
    tile_count = tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W)
    return tl.program_id(0) % tile_count, tl.program_id(0) // tile_count


@triton.jit
def reflected(position, length):
    """Return positions on an axis; those beyond its ends are reflected, again and again."""
    # an axis of one position has no period
    period = tl.maximum(2 * length - 2, 1)
    # the first position is a mirror, so that a sign does not matter
    phase = tl.abs(position) % period
    return tl.minimum(phase, period - phase)


@triton.jit
def read(tensor, strides, channel, end: tl.constexpr, row, column, valid, LAYOUT: tl.constexpr):
    """Return channels [P, C] of positions of a map, zero where they are not valid."""
    offset = inside(strides, channel[None, :], row[:, None], column[:, None], LAYOUT)
    mask = valid[:, None] & (channel < end)[None, :]
    return tl.load(tensor + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write(tensor, strides, channel, end: tl.constexpr, row, column, valid, x, LAYOUT: tl.constexpr):
    """Write channels [P, C] of positions of a map."""
    offset = inside(strides, channel[None, :], row[:, None], column[:, None], LAYOUT)
    tl.store(tensor + offset, x, mask=valid[:, None] & (channel < end)[None, :])


@triton.jit
def _group_offsets(
    strides,
    groups: tl.constexpr,
    depth: tl.constexpr,
    row,
    column,
    valid,
    LAYOUT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Return the offsets [P, D, G] of the values of positions, and their mask."""
    d, g = tl.arange(0, BLOCK_D)[None, :, None], tl.arange(0, BLOCK_G)[None, None, :]
    # groups are interleaved
    channel = (d * groups + g).to(INDEX)
    offset = inside(strides, channel, row[:, None, None], column[:, None, None], LAYOUT)
    return offset, valid[:, None, None] & (d < depth) & (g < groups)


@triton.jit
def read_groups(
    tensor,
    strides,
    groups: tl.constexpr,
    depth: tl.constexpr,
    row,
    column,
    valid,
    LAYOUT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Return the values [P, D, G] of positions, zero where they are not valid."""
    offset, mask = _group_offsets(
        strides, groups, depth, row, column, valid, LAYOUT, BLOCK_D, BLOCK_G, INDEX
    )
    return tl.load(tensor + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write_groups(
    tensor,
    strides,
    groups: tl.constexpr,
    depth: tl.constexpr,
    row,
    column,
    valid,
    x,
    LAYOUT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Write values [P, D, G] of positions."""
    offset, mask = _group_offsets(
        strides, groups, depth, row, column, valid, LAYOUT, BLOCK_D, BLOCK_G, INDEX
    )
    tl.store(tensor + offset, x, mask=mask)


@triton.jit
def vector(tensor, index, end: tl.constexpr):
    """Return numbers of a dense tensor by their indices, zero from ``end`` on."""
    return tl.load(tensor + index, mask=index < end, other=0.0).to(tl.float32)


@triton.jit
def matrix(
    tensor, row, column, row_stride, column_stride, rows: tl.constexpr, columns: tl.constexpr
):
    """Return numbers [row, column] of a matrix by their indices, zero beyond its ends."""
    row, column = row[:, None], column[None, :]
    mask = (row < rows) & (column < columns)
    return tl.load(tensor + row * row_stride + column * column_stride, mask=mask, other=0.0)


@triton.jit
def write_matrix(tensor, row, column, columns_stride, rows, columns, x):
    """Write numbers [row, column] of a matrix whose columns are dense."""
    row, column = row[:, None], column[None, :]
    tl.store(tensor + row * columns_stride + column, x, mask=(row < rows) & (column < columns))


def reasons_against(
    query: Tensor,
    key: Tensor,
    hidden: int,
    outputs: int,
    channels: int,
    options: Sequence[Any],
    **tensors: Tensor | None,
) -> list[str]:
    """Return the reasons why the kernels cannot take vector attention of these sizes.

    Args:
        query: The query.
        key: The key.
        hidden: Number of hidden features.
        outputs: Number of outputs of gamma.
        channels: Number of channels of values.
        options: Relation, whether it is patchwise, position channels and window.
        tensors: All further tensors by name.
    """
    relation, patchwise, position_channels, window = options
    reasons = float64_reasons(query=query, key=key, **tensors)
    if relation not in NATIVE[patchwise]:
        reasons.append(f'the {"patchwise" if patchwise else "pairwise"} relation {relation}')
    if position_channels > (0 if patchwise else POSITION_BLOCK.value):
        reasons.append(f'{position_channels} channels of the position')
    groups = outputs // (window[0] * window[1]) if patchwise else outputs
    blocks = blocks_of(1, 1, groups, channels // groups)
    for name, number, limit in (
        ('channels of a relation', query.shape[1] - position_channels, MOST_CHANNELS),
        ('hidden features', hidden, MOST_HIDDEN_OF_PATCHES if patchwise else MOST_HIDDEN),
        ('groups', groups, MOST_HIDDEN_OF_PATCHES if patchwise else MOST_CHANNELS),
        ('channels of values', blocks['BLOCK_D'] * blocks['BLOCK_G'], MOST_VALUES),
    ):
        if number > limit:
            reasons.append(f'more than {limit} {name}, {number}')
    return reasons


def as_group(x: Tensor) -> Tensor:
    """Return a map (B, C, H, W) as the single group of its images."""
    return x.unsqueeze(1)


def blocks_of(channels: int, hidden: int, groups: int, depth: int) -> dict[str, int]:
    """Return the sizes of a program's tile, which are powers of two."""
    # a matrix product has at least 16 rows and columns
    sizes = dict(
        BLOCK_R=max(16, next_power_of_2(channels)),
        BLOCK_M=max(16, next_power_of_2(hidden)),
        BLOCK_G=max(16, next_power_of_2(groups)),
        BLOCK_D=next_power_of_2(depth),
    )
    values = sizes['BLOCK_D'] * sizes['BLOCK_G']
    positions = min(64, max(16, ELEMENTS_OF_A_PROGRAM // max(values, sizes['BLOCK_R'])))
    return dict(
        **sizes,
        TILE_H=positions // 16,
        TILE_W=16,
        num_warps=max(4, warps(positions * values, ELEMENTS_OF_A_THREAD)),
    )


def types_of(window: Sequence[int], weights: Sequence[Tensor], *maps: Tensor) -> dict[str, Any]:
    """Return the compile-time constants of a launch that depend on dtypes and addresses."""
    return dict(
        WINDOW=tuple(window),
        DOT=dot_type(*weights, *maps[:1]),
        PRECISION=dot_precision(),
        INDEX=index_type(*maps),
        num_stages=1,
    )


def view_size(window: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns that outputs of a size look at, on the map and beyond it."""
    kernel, step, dilation = window[0:2], window[2:4], window[4:6]
    rows, columns = (
        (size[axis] - 1) * step[axis] + (kernel[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)
    )
    return rows, columns


def fold(x: Tensor, axis: int, length: int, padding: int) -> Tensor:
    """Add what lies beyond the ends of an axis to what it mirrors: the adjoint of reflection.

    It adds slices one after the other, so that the order of sums is fixed.

    Args:
        x: Tensor whose axis begins ``padding`` positions before the first one.
        axis: The axis, which may have any length.
        length: Length of the axis of the result.
        padding: Number of positions before the first one.
    """
    if length == 1:
        return x.sum(axis, keepdim=True)
    result = x.new_zeros((*x.shape[:axis], length, *x.shape[axis + 1 :]))
    period, end = length - 1, x.shape[axis] - padding
    # between two mirrors the map runs forwards, then backwards
    for segment in range(-padding // period, -(-end // period)):
        first, last = max(segment * period, -padding), min((segment + 1) * period, end)
        part = x.narrow(axis, first + padding, last - first)
        if segment % 2 == 0:
            target = first - segment * period
        else:
            target, part = (segment + 1) * period - last + 1, part.flip(axis)
        result.narrow(axis, target, last - first).add_(part)
    return result


def folded(x: Tensor, like: Tensor, window: Sequence[int]) -> Tensor:
    """Return the gradient of a map from that of all that outputs look at.

    Args:
        x: Tensor (B, rows, columns, C).
        like: The map (B, C, H, W), whose layout and dtype the gradient has.
        window: The eight numbers of the window.
    """
    height, width = like.shape[2:]
    result = fold(fold(x, 1, height, window[6]), 2, width, window[7]).permute(0, 3, 1, 2)
    return empty_in_layout_of(like, like.shape, like.dtype).copy_(result)


def dense(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return contiguous tensors: kernels compute offsets in parameters from their sizes."""
    return tuple(tensor.contiguous() for tensor in tensors)


def like(grad: Tensor, parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter in its dtype, contiguous and with memory of its own."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=grad.device).copy_(grad)
