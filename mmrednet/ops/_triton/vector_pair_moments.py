"""Mean and variance of the features of all neighbours, or of their hidden features, and gradients.

A program sums over some tiles. Each tile and tap gives its mean and its squared deviations from
that mean, so that no digits cancel where a mean is large (Chan et al., 1979). The backward kernels
compute all features again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import cdiv, launch
from .vector_config import NOT_SPECIALISED, POSITION_BLOCK, Config, config_of, numbers_like
from .vector_folds import dense, folded, gradient_like, view_size
from .vector_pairs import (
    channels_of_pair,
    first_norm,
    first_weights,
    hidden_features,
    input_gradients,
    key_gradients,
    layer_gradients,
    normed_features,
    query_gradients,
    read_neighbour,
    read_pair,
    read_tile,
    related,
    scaled_gradients,
    write_layer,
    write_pair,
    write_pair_vector,
)
from .vector_sums import combined, merged, moment_gradients, slope_of
from .vector_tiles import (
    as_group,
    as_map,
    buffer,
    image_of,
    map_position,
    reflected_position,
    tile_of,
    viewer_of,
    write_vector,
)

# tiles are summed in so many groups
TILE_GROUPS = 64


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pair_moments_kernel(
    query, key, counts, means, deviations, tile_groups, tile_count, CONFIG: tl.constexpr
):
    """Moments of the features, one part per group of tiles.

    ``counts`` (T,) are numbers of pairs, ``means`` and ``deviations`` (T, F) the means and the sums
    of squared deviations.
    """
    count = 0.0
    mean = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    deviation = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    mean_coordinate = tl.full((POSITION_BLOCK,), 0.0, tl.float32)
    deviation_coordinate = tl.full((POSITION_BLOCK,), 0.0, tl.float32)
    for item in range(tl.program_id(0), tile_count, tile_groups):
        row, column, valid, q, keys = read_tile(item, query, key, CONFIG)
        for tap in range(CONFIG.taps):
            k = read_neighbour(keys, row, column, valid, tap, CONFIG)
            content, coordinates = related(q, k, CONFIG)
            _, mean_coordinate, deviation_coordinate = merged(
                count, mean_coordinate, deviation_coordinate, coordinates, valid
            )
            count, mean, deviation = merged(count, mean, deviation, content, valid)
    tl.store(counts + tl.program_id(0), count)
    part = tl.program_id(0).to(tl.int64) * CONFIG.features
    write_pair_vector(means + part, mean, mean_coordinate, CONFIG)
    write_pair_vector(deviations + part, deviation, deviation_coordinate, CONFIG)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pair_hidden_moments_kernel(
    query, key, layer, counts, means, deviations, tile_groups, tile_count, CONFIG: tl.constexpr
):
    """Moments of a chunk of hidden features, one part per group of tiles."""
    tile_group = tl.program_id(0) % tile_groups
    chunk = tl.program_id(0) // tile_groups * CONFIG.block_hidden
    chunk += tl.arange(0, CONFIG.block_hidden)
    norm, weights = first_norm(layer, CONFIG), first_weights(layer, chunk, CONFIG)
    count = 0.0
    mean = tl.full((CONFIG.block_hidden,), 0.0, tl.float32)
    deviation = tl.full((CONFIG.block_hidden,), 0.0, tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        row, column, valid, q, keys = read_tile(item, query, key, CONFIG)
        for tap in range(CONFIG.taps):
            k = read_neighbour(keys, row, column, valid, tap, CONFIG)
            normed = normed_features(related(q, k, CONFIG), norm)
            h = hidden_features(normed, weights, CONFIG)
            count, mean, deviation = merged(count, mean, deviation, h, valid)
    # all chunks write the same number
    tl.store(counts + tile_group, count)
    part = tile_group.to(tl.int64) * CONFIG.hidden
    write_vector(means + part, chunk, CONFIG.hidden, mean)
    write_vector(deviations + part, chunk, CONFIG.hidden, deviation)


@triton.jit
def pair_gradients(normed, visible, layer, slope, CONFIG: tl.constexpr):
    """Return the gradients of the normed features, zero where pairs do not exist."""
    if CONFIG.hidden == 0:
        channel, coordinate = channels_of_pair(CONFIG)
        return (
            moment_gradients(normed[0], visible, slope, channel, CONFIG.channels),
            moment_gradients(normed[1], visible, slope, coordinate, CONFIG.features),
        )
    else:
        grad = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
        grad_coordinate = tl.full((CONFIG.positions, POSITION_BLOCK), 0.0, tl.float32)
        for first in range(0, CONFIG.hidden, CONFIG.block_hidden):
            chunk = first + tl.arange(0, CONFIG.block_hidden)
            weights = first_weights(layer, chunk, CONFIG)
            h = hidden_features(normed, weights, CONFIG)
            grad_h = moment_gradients(h, visible, slope, chunk, CONFIG.hidden)
            content, coordinates = input_gradients(grad_h, weights, CONFIG)
            grad += content
            grad_coordinate += coordinates
        return tl.where(normed[0] > 0, grad, 0.0), tl.where(normed[1] > 0, grad_coordinate, 0.0)


@triton.jit
def pair_moments_query_kernel(query, key, layer, slope, grad_query, parts, CONFIG: tl.constexpr):
    """Gradients of queries, and of the layer's scale and shift, one part for each program."""
    row, column, valid, q, keys = read_tile(tl.program_id(0), query, key, CONFIG)
    norm = first_norm(layer, CONFIG)
    grad_q = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
    grad_q_coordinate = tl.full((CONFIG.positions, POSITION_BLOCK), 0.0, tl.float32)
    scale = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    shift = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    scale_coordinate = tl.full((POSITION_BLOCK,), 0.0, tl.float32)
    shift_coordinate = tl.full((POSITION_BLOCK,), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        k = read_neighbour(keys, row, column, valid, tap, CONFIG)
        features = related(q, k, CONFIG)
        normed = normed_features(features, norm)
        grad_normed = pair_gradients(normed, valid, layer, slope, CONFIG)
        scale += tl.sum(grad_normed[0] * features[0], 0)
        shift += tl.sum(grad_normed[0], 0)
        scale_coordinate += tl.sum(grad_normed[1] * features[1], 0)
        shift_coordinate += tl.sum(grad_normed[1], 0)
        content, coordinates = query_gradients(scaled_gradients(grad_normed, norm), k, CONFIG)
        grad_q += content
        grad_q_coordinate += coordinates
    _, _, _, batch = tile_of(tl.program_id(0), query, CONFIG)
    grad_query = image_of(grad_query, batch, CONFIG.result_layout)
    grads = (grad_q, grad_q_coordinate)
    write_pair(grad_query, row, column, valid, grads, CONFIG.result_layout, CONFIG)
    parts += tl.program_id(0).to(tl.int64) * (2 * CONFIG.features)
    write_pair_vector(parts, scale, scale_coordinate, CONFIG)
    write_pair_vector(parts + CONFIG.features, shift, shift_coordinate, CONFIG)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pair_moments_weight_kernel(
    query, key, layer, slope, parts, tile_groups, tile_count, CONFIG: tl.constexpr
):
    """Gradients of the layer's weights of a chunk of hidden features, one part per tile group."""
    tile_group = tl.program_id(0) % tile_groups
    chunk = tl.program_id(0) // tile_groups * CONFIG.block_hidden
    chunk += tl.arange(0, CONFIG.block_hidden)
    norm, weights = first_norm(layer, CONFIG), first_weights(layer, chunk, CONFIG)
    weight = tl.full((CONFIG.block_channels, CONFIG.block_hidden), 0.0, tl.float32)
    weight_coordinate = tl.full((POSITION_BLOCK, CONFIG.block_hidden), 0.0, tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        row, column, valid, q, keys = read_tile(item, query, key, CONFIG)
        for tap in range(CONFIG.taps):
            k = read_neighbour(keys, row, column, valid, tap, CONFIG)
            normed = normed_features(related(q, k, CONFIG), norm)
            h = hidden_features(normed, weights, CONFIG)
            grad_h = moment_gradients(h, valid, slope, chunk, CONFIG.hidden)
            content, coordinates = layer_gradients(normed, grad_h, CONFIG)
            weight += content
            weight_coordinate += coordinates
    parts += tile_group.to(tl.int64) * (CONFIG.features * CONFIG.hidden)
    write_layer(parts, chunk, weight, weight_coordinate, CONFIG)


@triton.jit
def pair_moments_key_kernel(query, key, layer, slope, grad_key, CONFIG: tl.constexpr):
    """Gradients of keys: sums over the outputs that see a position.

    ``grad_key`` has all positions that outputs look at.
    """
    view_row, view_column, valid, batch = tile_of(tl.program_id(0), grad_key, CONFIG)
    row, column = map_position(view_row, view_column, CONFIG)
    y, x = reflected_position(row, column, key)
    query = image_of(query, batch, CONFIG.query_layout)
    key = image_of(key, batch, CONFIG.key_layout)
    norm = first_norm(layer, CONFIG)
    k = read_pair(key, y, x, valid, CONFIG.key_layout, CONFIG)
    grad_k = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
    grad_k_coordinate = tl.full((CONFIG.positions, POSITION_BLOCK), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        out_row, out_column, visible = viewer_of(row, column, valid, tap, query, CONFIG)
        q = read_pair(query, out_row, out_column, visible, CONFIG.query_layout, CONFIG)
        normed = normed_features(related(q, k, CONFIG), norm)
        grad_normed = pair_gradients(normed, visible, layer, slope, CONFIG)
        content, coordinates = key_gradients(scaled_gradients(grad_normed, norm), q, CONFIG)
        grad_k += content
        grad_k_coordinate += coordinates
    grad_key = image_of(grad_key, batch, CONFIG.features_layout)
    grads = (grad_k, grad_k_coordinate)
    write_pair(grad_key, view_row, view_column, valid, grads, CONFIG.features_layout, CONFIG)


def _config(
    maps: dict[str, Tensor],
    layer: Sequence[Tensor],
    relation: str,
    position_channels: int,
    window: Sequence[int],
    buffers: Sequence[Tensor] = (),
) -> Config:
    sizes = dict(
        channels=maps['query'].shape[2] - position_channels,
        coordinates=position_channels,
        hidden=len(layer[2]) if layer else 0,
        groups=1,
        depth=1,
    )
    return config_of(window, relation, sizes, layer[2:], maps, buffers)


def forward(
    query: Tensor,
    key: Tensor,
    layer: Sequence[Tensor],
    relation: str,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return mean and variance; without a first layer ``layer`` is empty."""
    maps = {name: as_group(x) for name, x in (('query', query), ('key', key))}
    config = _config(maps, layer, relation, position_channels, window)
    tile_count = config.tile_count(len(query), query.shape[2:])
    tile_groups = min(TILE_GROUPS, tile_count)
    count = config.hidden or config.features
    counts = torch.empty(tile_groups, **numbers_like(query))
    means, deviations = torch.empty(2, tile_groups, count, **numbers_like(query))
    inputs = [as_map(x) for x in maps.values()]
    sums = (counts, means, deviations, tile_groups, tile_count)
    device, options = query.device, config.launch_options()
    if layer:
        programs = tile_groups * cdiv(config.hidden, config.block_hidden)
        launch(
            pair_hidden_moments_kernel, programs, device, *inputs, dense(layer), *sums, **options
        )
    else:
        launch(pair_moments_kernel, tile_groups, device, *inputs, *sums, **options)
    return combined(counts, means, deviations)


def backward(
    grads: Sequence[Tensor],
    mean: Tensor,
    query: Tensor,
    key: Tensor,
    layer: Sequence[Tensor],
    relation: str,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key and the first layer."""
    size, view = query.shape[2:], view_size(window, query.shape[2:])
    grad_query = empty_in_layout_of(query, query.shape, query.dtype)
    tensors = dict(query=query, key=key, result=grad_query)
    maps = {name: as_group(x) for name, x in tensors.items()}
    grad_view = buffer(len(key), key.shape[1], view, key)
    config = _config(maps, layer, relation, position_channels, window, [grad_view])
    slope = slope_of(grads, mean, len(query) * size[0] * size[1] * config.taps)
    q, k, dq = map(as_map, maps.values())
    if not layer:
        # features themselves
        one = torch.ones(config.features, **numbers_like(query))
        layer = (one, torch.zeros_like(one))
    inputs = (q, k, dense(layer), slope)
    device, options = query.device, config.launch_options()
    programs = config.tile_count(len(query), size)
    parts = torch.empty(programs, 2, config.features, **numbers_like(query))
    launch(pair_moments_query_kernel, programs, device, *inputs, dq, parts, **options)
    view_programs = config.tile_count(len(key), view)
    launch(pair_moments_key_kernel, view_programs, device, *inputs, as_map(grad_view), **options)
    grad_key = folded(grad_view[:, 0], key, window)
    if config.hidden == 0:
        return grad_query, grad_key
    grads = (*parts.sum(0), _weight_gradient(config, inputs, programs, layer[2]))
    layer_grads = (gradient_like(part, like) for part, like in zip(grads, layer, strict=True))
    return grad_query, grad_key, *layer_grads


def _weight_gradient(
    config: Config, inputs: tuple[Any, ...], programs: int, weight: Tensor
) -> Tensor:
    """Return the gradient of the layer's weight."""
    tile_groups = min(TILE_GROUPS, programs)
    chunks = cdiv(config.hidden, config.block_hidden)
    parts = torch.empty(tile_groups, *weight.shape[::-1], **numbers_like(weight))
    launch(
        pair_moments_weight_kernel,
        tile_groups * chunks,
        weight.device,
        *(*inputs, parts, tile_groups, programs),
        **config.launch_options(),
    )
    return parts.sum(0).t()
