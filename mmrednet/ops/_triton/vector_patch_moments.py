"""Mean and variance of the features of patches, or of their hidden features, and gradients.

Hidden features are stored, which are as large as one eighth of the values in the networks of the
paper; features of neighbours are not. The centre of a patch is its part 0, the taps are parts
1 to K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import launch
from .vector_config import NOT_SPECIALISED, Config, config_of, numbers_like
from .vector_folds import folded, gradient_like, map_gradient, view_size
from .vector_patches import (
    centre_and_taps,
    features_by_tap,
    first_layer_by_tap,
    hidden_of_patches,
    normed_part,
    part_gradients,
    part_weight_gradients,
)
from .vector_sums import Slope, combined, merged, moment_gradients, slope_of
from .vector_tiles import (
    as_group,
    as_map,
    buffer,
    image_of,
    map_position,
    read,
    reflected_neighbour,
    reflected_position,
    tile_of,
    vector,
    viewer_of,
    write,
    write_matrix,
    write_vector,
)

# tiles are summed in so many groups, for each part
TILE_GROUPS = 16


@triton.jit
def read_part(query, key, part, batch, row, column, valid, CONFIG: tl.constexpr):
    """Return the features [P, R] of the centre or of a tap."""
    channel = tl.arange(0, CONFIG.block_channels).to(CONFIG.index)
    query = image_of(query, batch, CONFIG.query_layout)
    y, x = reflected_neighbour(row, column, tl.maximum(part - 1, 0), key, CONFIG)
    key = image_of(key, batch, CONFIG.key_layout)
    # one of both is zero
    is_centre = valid & (part == 0)
    q = read(query, channel, CONFIG.channels, row, column, is_centre, CONFIG.query_layout)
    is_tap = valid & (part > 0)
    return q + read(key, channel, CONFIG.channels, y, x, is_tap, CONFIG.key_layout)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def patch_moments_kernel(
    query, key, counts, means, deviations, tile_groups, tile_count, CONFIG: tl.constexpr
):
    """Moments of the features of a part, for a group of tiles.

    ``counts`` (T,) are numbers of positions, ``means`` and ``deviations`` (T, K + 1, R) the means
    and the sums of squared deviations.
    """
    tile_group, part = tl.program_id(0) % tile_groups, tl.program_id(0) // tile_groups
    count = 0.0
    mean = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    deviation = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        row, column, valid, batch = tile_of(item, query, CONFIG)
        x = read_part(query, key, part, batch, row, column, valid, CONFIG)
        count, mean, deviation = merged(count, mean, deviation, x, valid)
    # all parts write the same number
    tl.store(counts + tile_group, count)
    channel = tl.arange(0, CONFIG.block_channels)
    offset = (tile_group * (CONFIG.taps + 1) + part).to(tl.int64) * CONFIG.channels
    write_vector(means + offset, channel, CONFIG.channels, mean)
    write_vector(deviations + offset, channel, CONFIG.channels, deviation)


@triton.jit
def patch_hidden_kernel(query, key, layer, hidden, CONFIG: tl.constexpr):
    """Hidden features (B, 1, M, Ho, Wo) of patches, before their norm."""
    row, column, valid, batch = tile_of(tl.program_id(0), query, CONFIG)
    query = image_of(query, batch, CONFIG.query_layout)
    key = image_of(key, batch, CONFIG.key_layout)
    hidden = image_of(hidden, batch, CONFIG.hidden_layout)
    feature = tl.arange(0, CONFIG.block_hidden)
    h = hidden_of_patches(query, key, layer, row, column, valid, CONFIG)
    write(hidden, feature, CONFIG.hidden, row, column, valid, h, CONFIG.hidden_layout)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def patch_layer_kernel(
    query, key, layer, grad_hidden, parts, tile_groups, tile_count, CONFIG: tl.constexpr
):
    """Gradients of scale, shift and weight of a part, for a group of tiles.

    ``parts`` is (T, K + 1, all of these).
    """
    tile_group, part = tl.program_id(0) % tile_groups, tl.program_id(0) // tile_groups
    channel = tl.arange(0, CONFIG.block_channels)
    feature = tl.arange(0, CONFIG.block_hidden)
    channels: tl.constexpr = CONFIG.channels
    hidden: tl.constexpr = CONFIG.hidden
    scale = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    shift = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    weight = tl.full((CONFIG.block_channels, CONFIG.block_hidden), 0.0, tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        row, column, valid, batch = tile_of(item, query, CONFIG)
        x = read_part(query, key, part, batch, row, column, valid, CONFIG)
        grads = image_of(grad_hidden, batch, CONFIG.hidden_layout)
        grad_h = read(grads, feature, hidden, row, column, valid, CONFIG.hidden_layout)
        normed = normed_part(x, layer, part, CONFIG)
        grad_normed = part_gradients(normed, grad_h, layer, part, CONFIG)
        scale += tl.sum(grad_normed * x, 0)
        shift += tl.sum(grad_normed, 0)
        weight += part_weight_gradients(normed, grad_h, CONFIG)
    size: tl.constexpr = channels * (2 + hidden)
    parts += (tile_group * (CONFIG.taps + 1) + part).to(tl.int64) * size
    write_vector(parts, channel, channels, scale)
    write_vector(parts + channels, channel, channels, shift)
    write_matrix(parts + 2 * channels, channel, feature, hidden, channels, hidden, weight)


@triton.jit
def tap_gradients(k, tap, layer, slope, grad_h, visible, CONFIG: tl.constexpr):
    """Return the gradients [P, R] of the features of a tap."""
    channel = tl.arange(0, CONFIG.block_channels)
    first = (tap + 1) * CONFIG.channels
    if CONFIG.hidden == 0:
        part = (slope[0] + first, slope[1] + first, slope[2] + first)
        return moment_gradients(k, visible, part, channel, CONFIG.channels)
    else:
        normed = normed_part(k, layer, tap + 1, CONFIG)
        scale = vector(layer[0] + first, channel, CONFIG.channels)
        return part_gradients(normed, grad_h, layer, tap + 1, CONFIG) * scale[None, :]


@triton.jit
def patch_moments_key_kernel(query, key, layer, slope, grad_hidden, grad_key, CONFIG: tl.constexpr):
    """Gradients of keys: sums over the outputs that see a position.

    ``grad_key`` has all positions that outputs look at. ``grad_hidden`` is not read where no layer
    follows the features.
    """
    view_row, view_column, valid, batch = tile_of(tl.program_id(0), grad_key, CONFIG)
    row, column = map_position(view_row, view_column, CONFIG)
    y, x = reflected_position(row, column, key)
    channel = tl.arange(0, CONFIG.block_channels).to(CONFIG.index)
    feature = tl.arange(0, CONFIG.block_hidden)
    key = image_of(key, batch, CONFIG.key_layout)
    grad_hidden = image_of(grad_hidden, batch, CONFIG.hidden_layout)
    k = read(key, channel, CONFIG.channels, y, x, valid, CONFIG.key_layout)
    total = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        out_row, out_column, visible = viewer_of(row, column, valid, tap, query, CONFIG)
        grad_h = read(
            *(grad_hidden, feature, CONFIG.hidden, out_row, out_column, visible),
            CONFIG.hidden_layout,
        )
        total += tap_gradients(k, tap, layer, slope, grad_h, visible, CONFIG)
    grad_key = image_of(grad_key, batch, CONFIG.features_layout)
    write(
        *(grad_key, channel, CONFIG.channels, view_row, view_column, valid, total),
        CONFIG.features_layout,
    )


def _config(
    maps: dict[str, Tensor],
    layer: Sequence[Tensor],
    window: Sequence[int],
    buffers: Sequence[Tensor] = (),
) -> Config:
    hidden = layer[2].shape[2] if layer else 0
    channels = maps['query'].shape[2]
    sizes = dict(channels=channels, coordinates=0, hidden=hidden, groups=1, depth=1)
    return config_of(window, 'concatenation', sizes, layer[2:], maps, buffers)


def _maps(query: Tensor, key: Tensor) -> dict[str, Tensor]:
    return {name: as_group(x) for name, x in (('query', query), ('key', key))}


def _hidden(query: Tensor, key: Tensor, layer: Sequence[Tensor], window: Sequence[int]) -> Tensor:
    """Return the hidden features (B, 1, M, Ho, Wo); ``layer`` comes by tap."""
    maps = _maps(query, key)
    hidden = buffer(len(query), layer[2].shape[2], query.shape[2:], query)
    config = _config(maps, layer, window, [hidden])
    programs = config.tile_count(len(query), query.shape[2:])
    arguments = (*map(as_map, maps.values()), layer, as_map(hidden))
    launch(patch_hidden_kernel, programs, query.device, *arguments, **config.launch_options())
    return hidden


def forward(
    query: Tensor, key: Tensor, layer: Sequence[Tensor], window: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return mean and variance; without a first layer ``layer`` is empty."""
    if layer:
        parts = first_layer_by_tap(layer, query.shape[1])
        hidden = _hidden(query, key, parts, window)
        # torch takes the mean first
        variance, mean = torch.var_mean(hidden, (0, 1, 3, 4), correction=0)
        return mean, variance
    maps = _maps(query, key)
    config = _config(maps, layer, window)
    tile_count = config.tile_count(len(query), query.shape[2:])
    tile_groups, part_count = min(TILE_GROUPS, tile_count), config.taps + 1
    counts = torch.empty(tile_groups, **numbers_like(query))
    means, deviations = torch.empty(
        2, tile_groups, part_count, config.channels, **numbers_like(query)
    )
    launch(
        patch_moments_kernel,
        tile_groups * part_count,
        query.device,
        *map(as_map, maps.values()),
        *(counts, means, deviations, tile_groups, tile_count),
        **config.launch_options(),
    )
    mean, variance = combined(counts, means.flatten(1), deviations.flatten(1))
    mean, variance = (x.view(part_count, config.channels) for x in (mean, variance))
    return centre_and_taps(mean[0], mean[1:]), centre_and_taps(variance[0], variance[1:])


def backward(
    grads: Sequence[Tensor],
    mean: Tensor,
    query: Tensor,
    key: Tensor,
    layer: Sequence[Tensor],
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key and the first layer."""
    slope = slope_of(grads, mean, len(query) * query.shape[2] * query.shape[3])
    if not layer:
        return _feature_gradients(query, key, slope, window)
    parts = first_layer_by_tap(layer, query.shape[1])
    per_deviation, constant, hidden_mean = (x[:, None, None] for x in slope)
    # in place, which keeps the layout
    grad_hidden = _hidden(query, key, parts, window)
    grad_hidden.sub_(hidden_mean).mul_(per_deviation).add_(constant)
    scale, shift, weight = (x[0].float() for x in parts)
    normed = query * scale[:, None, None] + shift[:, None, None]
    grad_query = torch.einsum('rm,bmhw->brhw', weight, grad_hidden[:, 0])
    grad_query = torch.where(normed > 0, grad_query, 0) * scale[:, None, None]
    grad_key = _key_gradient(query, key, parts, slope, grad_hidden, window)
    layer_grads = _layer_gradients(query, key, parts, grad_hidden, window)
    return (
        map_gradient(grad_query, query),
        grad_key,
        *(gradient_like(part, like) for part, like in zip(layer_grads, layer, strict=True)),
    )


def _feature_gradients(
    query: Tensor, key: Tensor, slope: Slope, window: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of query and key from those of the moments of features."""
    by_tap = [features_by_tap(x, query.shape[1]) for x in slope]
    per_deviation, constant, mean = (x[0, :, None, None] for x in by_tap)
    grad_query = constant + per_deviation * (query - mean)
    # the kernel reads neither a layer nor hidden features, but a kernel takes no empty tuple
    grad_key = _key_gradient(query, key, (), by_tap, as_group(query), window)
    return map_gradient(grad_query, query), grad_key


def _key_gradient(
    query: Tensor,
    key: Tensor,
    layer: Sequence[Tensor],
    slope: Sequence[Tensor],
    grad_hidden: Tensor,
    window: Sequence[int],
) -> Tensor:
    """Return the gradient of the keys; ``layer`` comes by tap."""
    maps, view = _maps(query, key), view_size(window, query.shape[2:])
    grad_view = buffer(len(key), key.shape[1], view, key)
    config = _config(maps, layer, window, [grad_hidden, grad_view])
    launch(
        patch_moments_key_kernel,
        config.tile_count(len(key), view),
        key.device,
        *map(as_map, maps.values()),
        *(tuple(layer or slope), tuple(slope), as_map(grad_hidden), as_map(grad_view)),
        **config.launch_options(),
    )
    return folded(grad_view[:, 0], key, window)


def _layer_gradients(
    query: Tensor,
    key: Tensor,
    layer: Sequence[Tensor],
    grad_hidden: Tensor,
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of scale, shift and weight; ``layer`` comes by tap."""
    maps = _maps(query, key)
    config = _config(maps, layer, window, [grad_hidden])
    tile_count = config.tile_count(len(query), query.shape[2:])
    tile_groups, channels = min(TILE_GROUPS, tile_count), config.channels
    part_sizes = [channels, channels, channels * config.hidden]
    parts = torch.empty(tile_groups, config.taps + 1, sum(part_sizes), **numbers_like(query))
    launch(
        patch_layer_kernel,
        tile_groups * (config.taps + 1),
        query.device,
        *map(as_map, maps.values()),
        *(layer, as_map(grad_hidden), parts, tile_groups, tile_count),
        **config.launch_options(),
    )
    scale, shift, weight = parts.sum(0).split(part_sizes, 1)
    weight = weight.unflatten(1, (channels, -1))
    scale, shift, weight = (centre_and_taps(x[0], x[1:]) for x in (scale, shift, weight))
    return scale, shift, weight.t()
