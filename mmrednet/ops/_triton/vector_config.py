"""Compile-time constants of the kernels of vector attention, and the inputs that they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..vector_mapping import NATIVE
from .tiles import (
    MOST_ALIGNED,
    dot_precision,
    dot_type,
    float64_reasons,
    index_type,
    layout,
    next_power_of_2,
    tiles,
    warps,
)

# what registers and the shared memory hold: channels of a relation, hidden features and groups,
# fewer of both for patches, whose weights of a tap are not taken in chunks; channels of values
MOST_CHANNELS, MOST_HIDDEN, MOST_HIDDEN_OF_PATCHES, MOST_VALUES = 128, 512, 64, 1024
# hidden features of a chunk, pairwise: shared memory does not hold the weights of all
HIDDEN_CHUNK = 32
# channels of values times positions of a program
ELEMENTS_OF_A_PROGRAM = 1 << 13
# elements of a tile of values per thread: there are several such tiles
ELEMENTS_OF_A_THREAD = 32
# channels of the position, with those that fill up the smallest factor of a matrix product
POSITION_BLOCK = tl.constexpr(16)
# numbers of the relations in kernels
RELATIONS = {'subtraction': 0, 'summation': 1, 'hadamard': 2, 'concatenation': 3}
# arguments for whose values Triton must not compile anew
NOT_SPECIALISED = ['tile_groups', 'tile_count']


class Config(NamedTuple):
    """Compile-time constants of a launch.

    Args:
        window: Kernel, stride, dilation and padding, each a vertical and a horizontal number.
        relation: Number of the relation.
        channels: Number of channels of the relation.
        coordinates: Number of channels of the position.
        hidden: Number of hidden features, or 0 where no layer follows the relation.
        groups: Number of groups of values.
        depth: Number of channels of a group.
        block_channels: Channels of the relation in a tile. All blocks are powers of two.
        block_hidden: Hidden features in a tile.
        block_groups: Groups in a tile.
        block_depth: Channels of a group in a tile.
        tile_height: Rows of a tile.
        tile_width: Columns of a tile.
        dot: Type of the factors of matrix products.
        precision: Precision of matrix products.
        index: Type of offsets within an image.
        query_layout: Layout of the queries, see :mod:`.tiles`.
        key_layout: Layout of the keys.
        value_layout: Layout of the values.
        grad_layout: Layout of the gradient of the result.
        result_layout: Layout of what the kernel writes: the result, or the gradient of queries.
    """

    window: tuple[int, ...]
    relation: int
    channels: int
    coordinates: int
    hidden: int
    groups: int
    depth: int
    block_channels: int
    block_hidden: int
    block_groups: int
    block_depth: int
    tile_height: int
    tile_width: int
    dot: Any
    precision: str
    index: Any
    query_layout: int = 0
    key_layout: int = 0
    value_layout: int = 0
    grad_layout: int = 0
    result_layout: int = 0

    @property
    def taps(self) -> int:
        """Number of taps of the window."""
        return self.window[0] * self.window[1]

    @property
    def features(self) -> int:
        """Number of channels of queries and keys."""
        return self.channels + self.coordinates

    @property
    def values(self) -> int:
        """Number of channels of values."""
        return self.groups * self.depth

    @property
    def positions(self) -> int:
        """Number of positions of a tile."""
        return self.tile_height * self.tile_width

    @property
    def groups_layout(self) -> int:
        """Layout of a buffer with an element for each group."""
        return math.gcd(MOST_ALIGNED, self.groups)

    @property
    def hidden_layout(self) -> int:
        """Layout of a buffer with an element for each hidden feature."""
        return math.gcd(MOST_ALIGNED, self.hidden)

    @property
    def features_layout(self) -> int:
        """Layout of a buffer with an element for each channel of a key."""
        return math.gcd(MOST_ALIGNED, self.features)

    @property
    def values_layout(self) -> int:
        """Layout of a buffer with an element for each channel of a value."""
        return math.gcd(MOST_ALIGNED, self.values)

    def tile_count(self, batch: int, size: Sequence[int]) -> int:
        """Return the number of tiles of all images of this size."""
        return batch * tiles(size, (self.tile_height, self.tile_width))

    def launch_options(self) -> dict[str, Any]:
        """Return this and the options of a launch as keyword arguments."""
        elements = self.positions * self.block_depth * self.block_groups
        num_warps = max(4, warps(elements, ELEMENTS_OF_A_THREAD))
        return dict(CONFIG=self, num_warps=num_warps, num_stages=1)


def config_of(
    window: Sequence[int],
    relation: str,
    sizes: Mapping[str, int],
    weights: Sequence[Tensor],
    maps: Mapping[str, Tensor],
    buffers: Sequence[Tensor] = (),
) -> Config:
    """Return the constants of a launch.

    Args:
        window: The eight numbers of the window.
        relation: Name of the relation.
        sizes: The numbers ``channels`` to ``depth`` of :class:`Config`.
        weights: Weights of the layers, whose dtype matrix products have.
        maps: Tensors (B, 1, C, H, W) whose layouts the kernel needs, by the names in
            :class:`Config`.
        buffers: Further tensors of this shape, whose layouts follow from their channels.
    """
    query = maps['query']
    layouts = {f'{name}_layout': layout(tensor) for name, tensor in maps.items()}
    return Config(
        window=tuple(window),
        relation=RELATIONS[relation],
        **sizes,
        **blocks_of(**sizes, is_patchwise=relation == 'concatenation'),
        dot=dot_type(*weights, query),
        precision=dot_precision(),
        index=index_type(*maps.values(), *buffers),
        **layouts,
    )


def blocks_of(
    channels: int, coordinates: int, hidden: int, groups: int, depth: int, is_patchwise: bool
) -> dict[str, int]:
    """Return the sizes of a program's tile."""
    chunk = hidden if is_patchwise else min(hidden, HIDDEN_CHUNK)
    # a matrix product has at least 16 rows and columns
    block_channels, block_hidden, block_groups = (
        max(16, next_power_of_2(max(1, number))) for number in (channels, chunk, groups)
    )
    block_depth = next_power_of_2(depth)
    largest = max(block_depth * block_groups, block_channels)
    positions = min(64, max(16, ELEMENTS_OF_A_PROGRAM // largest))
    return dict(
        block_channels=block_channels,
        block_hidden=block_hidden,
        block_groups=block_groups,
        block_depth=block_depth,
        tile_height=positions // 16,
        tile_width=16,
    )


def limit_reasons(*limits: tuple[str, int, int]) -> list[str]:
    """Return the reasons against a kernel of (name, number, limit) whose number is too large."""
    exceeded = [(name, number, limit) for name, number, limit in limits if number > limit]
    return [f'more than {limit} {name}, {number}' for name, number, limit in exceeded]


def relation_reasons(
    query: Tensor, hidden: int, options: Sequence[Any], **tensors: Tensor | None
) -> list[str]:
    """Return the reasons why the kernels cannot map relations of these sizes.

    Args:
        query: The query.
        hidden: Number of hidden features.
        options: Relation, whether it is patchwise, position channels and window.
        tensors: All further tensors by name.
    """
    relation, patchwise, position_channels, _ = options
    reasons = float64_reasons(query=query, **tensors)
    if relation not in NATIVE[patchwise]:
        reasons.append(f'the {"patchwise" if patchwise else "pairwise"} relation {relation}')
    if position_channels > (0 if patchwise else POSITION_BLOCK.value):
        reasons.append(f'{position_channels} channels of the position')
    most_hidden = MOST_HIDDEN_OF_PATCHES if patchwise else MOST_HIDDEN
    return reasons + limit_reasons(
        ('channels of a relation', query.shape[1] - position_channels, MOST_CHANNELS),
        ('hidden features', hidden, most_hidden),
    )


def numbers_like(x: Tensor) -> dict[str, Any]:
    """Return the dtype and device of sums over a tensor, for ``torch.empty``."""
    return dict(dtype=torch.float32, device=x.device)
