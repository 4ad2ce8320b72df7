"""Pairwise vector attention: every neighbour has features of its own, softmax over neighbours.

    f_j = delta(q, k_j),  h_j = gamma's first layer,  s_j = its second layer,  y = sum of P_j v_j

A program takes a tile of positions and all groups, and walks over the taps. No feature of a
neighbour is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import launch
from .vector_config import Config, config_of
from .vector_folds import dense
from .vector_pairs import first_norm, normed_features, pair_logits, read_pair, related
from .vector_tiles import (
    as_group,
    as_map,
    image_of,
    read_groups,
    reflected_neighbour,
    tile_of,
    write_groups,
)


@triton.jit
def pairwise_kernel(query, key, value, gamma, result, CONFIG: tl.constexpr):
    """y[d, g] = sum over j of softmax_j(s_j)[g] v_j[d, g]"""
    row, column, valid, batch = tile_of(tl.program_id(0), query, CONFIG)
    query = image_of(query, batch, CONFIG.query_layout)
    key = image_of(key, batch, CONFIG.key_layout)
    value = image_of(value, batch, CONFIG.value_layout)
    result = image_of(result, batch, CONFIG.result_layout)
    norm = first_norm(gamma, CONFIG)
    q = read_pair(query, row, column, valid, CONFIG.query_layout, CONFIG)
    # Online softmax: the largest logit so far, the sum of weights relative to it, and the sum of
    # weighted values. A larger logit rescales both sums.
    largest = tl.full((CONFIG.positions, CONFIG.block_groups), float('-inf'), tl.float32)
    weight_sum = tl.full((CONFIG.positions, CONFIG.block_groups), 0.0, tl.float32)
    total = tl.full((CONFIG.positions, CONFIG.block_depth, CONFIG.block_groups), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        y, x = reflected_neighbour(row, column, tap, key, CONFIG)
        k = read_pair(key, y, x, valid, CONFIG.key_layout, CONFIG)
        logits = pair_logits(normed_features(related(q, k, CONFIG), norm), gamma, CONFIG)
        v = read_groups(value, y, x, valid, CONFIG.value_layout, CONFIG)
        new_largest = tl.maximum(largest, logits)
        rescale, weight = tl.exp(largest - new_largest), tl.exp(logits - new_largest)
        weight_sum = weight_sum * rescale + weight
        total = total * rescale[:, None, :] + weight[:, None, :] * v
        largest = new_largest
    total = total / weight_sum[:, None, :]
    write_groups(result, row, column, valid, total, CONFIG.result_layout, CONFIG)


def pairwise_config(
    gamma: Sequence[Tensor],
    relation: str,
    position_channels: int,
    window: Sequence[int],
    maps: dict[str, Tensor],
    buffers: Sequence[Tensor] = (),
) -> Config:
    """Return the constants of a launch."""
    groups = gamma[6].shape[0]
    sizes = dict(
        channels=maps['query'].shape[2] - position_channels,
        coordinates=position_channels,
        hidden=gamma[2].shape[0],
        groups=groups,
        depth=maps['value'].shape[2] // groups,
    )
    return config_of(window, relation, sizes, (gamma[2], gamma[5]), maps, buffers)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gamma: Sequence[Tensor],
    relation: str,
    position_channels: int,
    window: Sequence[int],
) -> Tensor:
    """See :func:`mmrednet.ops.vector_attention.definition`."""
    size = query.shape[2:]
    result = empty_in_layout_of(value, (*value.shape[:2], *size), value.dtype)
    tensors = dict(query=query, key=key, value=value, result=result)
    maps = {name: as_group(x) for name, x in tensors.items()}
    config = pairwise_config(gamma, relation, position_channels, window, maps)
    q, k, v, y = map(as_map, maps.values())
    launch(
        pairwise_kernel,
        config.tile_count(len(query), size),
        query.device,
        *(q, k, v, dense(gamma), y),
        **config.launch_options(),
    )
    return result
