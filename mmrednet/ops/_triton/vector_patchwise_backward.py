"""Gradients of patchwise vector attention.

The backward pass stores hidden features and their gradients, which are as large as one eighth of
the values in the networks of the paper, but no feature of a neighbour. One kernel walks over
outputs, one over groups of tiles for each tap, and one over all positions that outputs look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import launch
from .vector_config import NOT_SPECIALISED, Config, numbers_like
from .vector_folds import folded, gradient_like, view_size
from .vector_patches import (
    centre_and_taps,
    gamma_by_tap,
    hidden_of_patches,
    normed_part,
    part_gradients,
    part_weight_gradients,
    second_weight,
    tap_weights,
)
from .vector_patchwise import patchwise_config
from .vector_tiles import (
    as_group,
    as_map,
    buffer,
    image_of,
    map_position,
    read,
    read_groups,
    reflected_neighbour,
    reflected_position,
    tile_of,
    vector,
    viewer_of,
    write,
    write_groups,
    write_matrix,
    write_vector,
)

# tiles are summed in so many groups, for each tap
TILE_GROUPS = 16


@triton.jit
def active_gradients(grad, value, gamma, row, column, valid, CONFIG: tl.constexpr):
    """Return the gradients [P, M] of hidden features after norm and ReLU."""
    g = read_groups(grad, row, column, valid, CONFIG.grad_layout, CONFIG)
    total = tl.full((CONFIG.positions, CONFIG.block_hidden), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        y, x = reflected_neighbour(row, column, tap, value, CONFIG)
        v = read_groups(value, y, x, valid, CONFIG.value_layout, CONFIG)
        grad_alpha = tl.sum(g * v, 1).to(CONFIG.dot)
        weight = tl.trans(second_weight(gamma, tap, CONFIG))
        total += tl.dot(grad_alpha, weight, input_precision=CONFIG.precision)
    return total


@triton.jit
def patchwise_hidden_kernel(
    grad, query, key, value, gamma, grad_query, active, grad_hidden, parts, CONFIG: tl.constexpr
):
    """Hidden features and their gradients, and what follows from them at the centre.

    ``active`` and ``grad_hidden`` (B, 1, M, Ho, Wo) are hidden features after norm and ReLU, and
    gradients before the norm. ``parts`` are the gradients of the centre's scale, shift and
    weight, and of the norm of hidden features, one part for each program.
    """
    row, column, valid, batch = tile_of(tl.program_id(0), query, CONFIG)
    grad = image_of(grad, batch, CONFIG.grad_layout)
    query = image_of(query, batch, CONFIG.query_layout)
    key = image_of(key, batch, CONFIG.key_layout)
    value = image_of(value, batch, CONFIG.value_layout)
    hidden: tl.constexpr = CONFIG.hidden
    feature = tl.arange(0, CONFIG.block_hidden)
    h = hidden_of_patches(query, key, gamma, row, column, valid, CONFIG)
    scale = vector(gamma[3], feature, hidden)[None, :]
    normed = h * scale + vector(gamma[4], feature, hidden)[None, :]
    # positions beyond the map have gradients of zero
    grad_normed = active_gradients(grad, value, gamma, row, column, valid, CONFIG)
    grad_normed = tl.where(normed > 0, grad_normed, 0.0)
    grad_h = grad_normed * scale
    active = image_of(active, batch, CONFIG.hidden_layout)
    grad_hidden = image_of(grad_hidden, batch, CONFIG.hidden_layout)
    numbers = tl.maximum(normed, 0.0)
    write(active, feature, hidden, row, column, valid, numbers, CONFIG.hidden_layout)
    write(grad_hidden, feature, hidden, row, column, valid, grad_h, CONFIG.hidden_layout)
    parts += tl.program_id(0).to(tl.int64) * (CONFIG.channels * (2 + hidden) + 2 * hidden)
    grad_query = image_of(grad_query, batch, CONFIG.result_layout)
    write_centre(query, grad_query, grad_h, gamma, parts, row, column, valid, CONFIG)
    parts += CONFIG.channels * (2 + hidden)
    write_vector(parts, feature, hidden, tl.sum(grad_normed * h, 0))
    write_vector(parts + hidden, feature, hidden, tl.sum(grad_normed, 0))


@triton.jit
def write_centre(query, grad_query, grad_h, gamma, parts, row, column, valid, CONFIG: tl.constexpr):
    """Write the gradients of queries, and of the centre's scale, shift and weight."""
    channel = tl.arange(0, CONFIG.block_channels)
    index = channel.to(CONFIG.index)
    channels: tl.constexpr = CONFIG.channels
    q = read(query, index, channels, row, column, valid, CONFIG.query_layout)
    normed = normed_part(q, gamma, 0, CONFIG)
    grad_normed = part_gradients(normed, grad_h, gamma, 0, CONFIG)
    grad_q = grad_normed * vector(gamma[0], channel, channels)[None, :]
    write(grad_query, index, channels, row, column, valid, grad_q, CONFIG.result_layout)
    weight = part_weight_gradients(normed, grad_h, CONFIG)
    write_part(parts, tl.sum(grad_normed * q, 0), tl.sum(grad_normed, 0), weight, CONFIG)


@triton.jit
def write_part(parts, scale, shift, weight, CONFIG: tl.constexpr):
    """Write the gradients of scale, shift and weight of the centre or of a tap."""
    channel = tl.arange(0, CONFIG.block_channels)
    feature = tl.arange(0, CONFIG.block_hidden)
    channels: tl.constexpr = CONFIG.channels
    write_vector(parts, channel, channels, scale)
    write_vector(parts + channels, channel, channels, shift)
    first = parts + 2 * channels
    write_matrix(first, channel, feature, CONFIG.hidden, channels, CONFIG.hidden, weight)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def patchwise_weight_kernel(
    grad,
    key,
    value,
    gamma,
    active_hidden,
    grad_hidden,
    # gradients of a tap's scale, shift and weight, and of its weight and bias of the second layer:
    # (groups of tiles, taps, all of these)
    parts,
    # number of groups of tiles, and of tiles of all images
    tile_groups,
    tile_count,
    CONFIG: tl.constexpr,
):
    """Gradients of what gamma has for one tap."""
    taps: tl.constexpr = CONFIG.taps
    hidden: tl.constexpr = CONFIG.hidden
    tap, tile_group = tl.program_id(0) % taps, tl.program_id(0) // taps
    channel = tl.arange(0, CONFIG.block_channels).to(CONFIG.index)
    feature, group = tl.arange(0, CONFIG.block_hidden), tl.arange(0, CONFIG.block_groups)
    scale = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    shift = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    weight1 = tl.full((CONFIG.block_channels, CONFIG.block_hidden), 0.0, tl.float32)
    weight2 = tl.full((CONFIG.block_hidden, CONFIG.block_groups), 0.0, tl.float32)
    bias = tl.full((CONFIG.block_groups,), 0.0, tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        row, column, valid, batch = tile_of(item, grad, CONFIG)
        y, x = reflected_neighbour(row, column, tap, key, CONFIG)
        key_image = image_of(key, batch, CONFIG.key_layout)
        value_image = image_of(value, batch, CONFIG.value_layout)
        grad_image = image_of(grad, batch, CONFIG.grad_layout)
        k = read(key_image, channel, CONFIG.channels, y, x, valid, CONFIG.key_layout)
        v = read_groups(value_image, y, x, valid, CONFIG.value_layout, CONFIG)
        g = read_groups(grad_image, row, column, valid, CONFIG.grad_layout, CONFIG)
        active_image = image_of(active_hidden, batch, CONFIG.hidden_layout)
        hidden_image = image_of(grad_hidden, batch, CONFIG.hidden_layout)
        active = read(active_image, feature, hidden, row, column, valid, CONFIG.hidden_layout)
        grad_h = read(hidden_image, feature, hidden, row, column, valid, CONFIG.hidden_layout)
        grad_alpha = tl.sum(g * v, 1)
        bias += tl.sum(grad_alpha, 0)
        factor = tl.trans(active.to(CONFIG.dot))
        product = tl.dot(factor, grad_alpha.to(CONFIG.dot), input_precision=CONFIG.precision)
        weight2 += product
        normed = normed_part(k, gamma, tap + 1, CONFIG)
        weight1 += part_weight_gradients(normed, grad_h, CONFIG)
        grad_normed = part_gradients(normed, grad_h, gamma, tap + 1, CONFIG)
        scale += tl.sum(grad_normed * k, 0)
        shift += tl.sum(grad_normed, 0)
    size: tl.constexpr = CONFIG.channels * (2 + hidden) + CONFIG.groups * (hidden + 1)
    parts += tl.program_id(0).to(tl.int64) * size
    write_part(parts, scale, shift, weight1, CONFIG)
    parts += CONFIG.channels * (2 + hidden)
    write_matrix(parts, feature, group, CONFIG.groups, hidden, CONFIG.groups, weight2)
    write_vector(parts + hidden * CONFIG.groups, group, CONFIG.groups, bias)


@triton.jit
def patchwise_key_kernel(
    grad, key, gamma, active_hidden, grad_hidden, grad_key, grad_value, CONFIG: tl.constexpr
):
    """Gradients of keys and values: sums over the outputs that see a position.

    ``grad_key`` and ``grad_value`` have all positions that outputs look at.
    """
    view_row, view_column, valid, batch = tile_of(tl.program_id(0), grad_key, CONFIG)
    row, column = map_position(view_row, view_column, CONFIG)
    y, x = reflected_position(row, column, key)
    grad = image_of(grad, batch, CONFIG.grad_layout)
    key = image_of(key, batch, CONFIG.key_layout)
    active_hidden = image_of(active_hidden, batch, CONFIG.hidden_layout)
    grad_hidden = image_of(grad_hidden, batch, CONFIG.hidden_layout)
    channels: tl.constexpr = CONFIG.channels
    hidden: tl.constexpr = CONFIG.hidden
    channel, feature = tl.arange(0, CONFIG.block_channels), tl.arange(0, CONFIG.block_hidden)
    k = read(key, channel.to(CONFIG.index), channels, y, x, valid, CONFIG.key_layout)
    grad_k = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
    grad_v = tl.full((CONFIG.positions, CONFIG.block_depth, CONFIG.block_groups), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        out_row, out_column, visible = viewer_of(row, column, valid, tap, grad, CONFIG)
        active = read(
            active_hidden, feature, hidden, out_row, out_column, visible, CONFIG.hidden_layout
        )
        alpha = tap_weights(active, gamma, tap, CONFIG)
        # outputs that do not exist have gradients of zero
        g = read_groups(grad, out_row, out_column, visible, CONFIG.grad_layout, CONFIG)
        grad_v += alpha[:, None, :] * g
        grad_h = read(
            grad_hidden, feature, hidden, out_row, out_column, visible, CONFIG.hidden_layout
        )
        normed = normed_part(k, gamma, tap + 1, CONFIG)
        scale = vector(gamma[0] + (tap + 1) * channels, channel, channels)
        grad_k += part_gradients(normed, grad_h, gamma, tap + 1, CONFIG) * scale[None, :]
    grad_key = image_of(grad_key, batch, CONFIG.features_layout)
    grad_value = image_of(grad_value, batch, CONFIG.values_layout)
    write(grad_key, channel, channels, view_row, view_column, valid, grad_k, CONFIG.features_layout)
    write_groups(grad_value, view_row, view_column, valid, grad_v, CONFIG.values_layout, CONFIG)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parameters: Sequence[Tensor],
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key, value and gamma."""
    gamma = gamma_by_tap(parameters, query.shape[1])
    size, view = query.shape[2:], view_size(window, query.shape[2:])
    grad_query = empty_in_layout_of(query, query.shape, query.dtype)
    tensors = dict(query=query, key=key, value=value, grad=grad, result=grad_query)
    maps = {name: as_group(x) for name, x in tensors.items()}
    hidden = [buffer(len(query), gamma[5].shape[1], size, query) for _ in range(2)]
    views = [buffer(len(x), x.shape[1], view, x) for x in (key, value)]
    config = patchwise_config(gamma, window, maps, (*hidden, *views))
    q, k, v, dy, dq = map(as_map, maps.values())
    features = [as_map(x) for x in hidden]
    device, programs = query.device, config.tile_count(len(query), size)
    options = config.launch_options()
    channels, count = config.channels, config.hidden
    centre_sizes = [channels, channels, channels * count, count, count]
    parts = torch.empty(programs, sum(centre_sizes), **numbers_like(query))
    arguments = (dy, q, k, v, gamma, dq, *features, parts)
    launch(patchwise_hidden_kernel, programs, device, *arguments, **options)
    inputs = (dy, k, v, gamma, *features)
    by_tap = _tap_gradients(config, inputs, programs)
    arguments = (dy, k, gamma, *features, *map(as_map, views))
    launch(patchwise_key_kernel, config.tile_count(len(key), view), device, *arguments, **options)
    grads = _gamma_gradients(config, parts.sum(0).split(centre_sizes), by_tap)
    return (
        grad_query,
        *(folded(x[:, 0], tensor, window) for x, tensor in zip(views, (key, value), strict=True)),
        *(gradient_like(part, like) for part, like in zip(grads, parameters, strict=True)),
    )


def _tap_gradients(config: Config, inputs: tuple[Any, ...], programs: int) -> tuple[Tensor, ...]:
    """Return the gradients of what gamma has for each tap, taps in front."""
    weight = inputs[3][2]
    channels, hidden, groups = config.channels, config.hidden, config.groups
    part_sizes = [channels, channels, channels * hidden, hidden * groups, groups]
    tile_groups = min(TILE_GROUPS, programs)
    parts = torch.empty(tile_groups, config.taps, sum(part_sizes), **numbers_like(weight))
    launch(
        patchwise_weight_kernel,
        tile_groups * config.taps,
        weight.device,
        *(*inputs, parts, tile_groups, programs),
        **config.launch_options(),
    )
    return parts.sum(0).split(part_sizes, 1)


def _gamma_gradients(
    config: Config, centre: Sequence[Tensor], by_tap: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of gamma from those of its parts."""
    taps, channels, hidden, groups = config.taps, config.channels, config.hidden, config.groups
    scale1, shift1 = (centre_and_taps(centre[i], by_tap[i]) for i in (0, 1))
    weight1 = centre_and_taps(
        centre[2].view(channels, hidden), by_tap[2].view(taps, channels, hidden)
    )
    weight2 = by_tap[3].view(taps, hidden, groups).permute(2, 0, 1).flatten(0, 1)
    return scale1, shift1, weight1.t(), *centre[3:], weight2, by_tap[4].t().flatten()
