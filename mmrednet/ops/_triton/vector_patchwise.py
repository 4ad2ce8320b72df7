"""Patchwise vector attention: one vector of features of a whole patch has the weights of all taps.

    h = gamma's first layer of (q, k_1, ..., k_K),  a_j = tap j of its second layer,
    y = sum of a_j v_j

The first layer is a sum over taps, and the second one has a part for each tap: a program takes a
tile of positions and walks over the taps twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import launch
from .vector_config import Config, config_of
from .vector_patches import gamma_by_tap, hidden_of_patches, tap_weights
from .vector_tiles import (
    as_group,
    as_map,
    image_of,
    read_groups,
    reflected_neighbour,
    tile_of,
    vector,
    write_groups,
)


@triton.jit
def patchwise_kernel(query, key, value, gamma, result, CONFIG: tl.constexpr):
    """y[d, g] = sum over j of a_j[g] v_j[d, g]"""
    row, column, valid, batch = tile_of(tl.program_id(0), query, CONFIG)
    query = image_of(query, batch, CONFIG.query_layout)
    key = image_of(key, batch, CONFIG.key_layout)
    value = image_of(value, batch, CONFIG.value_layout)
    result = image_of(result, batch, CONFIG.result_layout)
    feature = tl.arange(0, CONFIG.block_hidden)
    h = hidden_of_patches(query, key, gamma, row, column, valid, CONFIG)
    h = h * vector(gamma[3], feature, CONFIG.hidden)[None, :]
    h += vector(gamma[4], feature, CONFIG.hidden)[None, :]
    active_hidden = tl.maximum(h, 0.0).to(CONFIG.dot)
    total = tl.full((CONFIG.positions, CONFIG.block_depth, CONFIG.block_groups), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        y, x = reflected_neighbour(row, column, tap, key, CONFIG)
        alpha = tap_weights(active_hidden, gamma, tap, CONFIG)
        v = read_groups(value, y, x, valid, CONFIG.value_layout, CONFIG)
        total += alpha[:, None, :] * v
    write_groups(result, row, column, valid, total, CONFIG.result_layout, CONFIG)


def patchwise_config(
    gamma: Sequence[Tensor],
    window: Sequence[int],
    maps: dict[str, Tensor],
    buffers: Sequence[Tensor] = (),
) -> Config:
    """Return the constants of a launch; ``gamma`` comes by tap."""
    hidden, groups = gamma[5].shape[1:]
    sizes = dict(
        channels=maps['query'].shape[2],
        coordinates=0,
        hidden=hidden,
        groups=groups,
        depth=maps['value'].shape[2] // groups,
    )
    return config_of(window, 'concatenation', sizes, (gamma[2], gamma[5]), maps, buffers)


def forward(
    query: Tensor, key: Tensor, value: Tensor, gamma: Sequence[Tensor], window: Sequence[int]
) -> Tensor:
    """See :func:`mmrednet.ops.vector_attention.definition`."""
    size = query.shape[2:]
    result = empty_in_layout_of(value, (*value.shape[:2], *size), value.dtype)
    gamma = gamma_by_tap(gamma, query.shape[1])
    tensors = dict(query=query, key=key, value=value, result=result)
    maps = {name: as_group(x) for name, x in tensors.items()}
    config = patchwise_config(gamma, window, maps)
    q, k, v, y = map(as_map, maps.values())
    launch(
        patchwise_kernel,
        config.tile_count(len(query), size),
        query.device,
        *(q, k, v, gamma, y),
        **config.launch_options(),
    )
    return result
