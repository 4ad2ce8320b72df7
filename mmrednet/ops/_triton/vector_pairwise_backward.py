"""Gradients of pairwise vector attention, whose kernels compute all features again.

The first kernel walks over outputs twice: for the softmax and the sum of P dP, then for the
gradients of queries, of the first norm and of the bias. The second one sums the gradients of
weights over groups of tiles. The third one walks over all positions that outputs look at, on the
map and beyond its border, and takes those outputs. What lies beyond the border is then added to
what it mirrors.
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
from .vector_config import NOT_SPECIALISED, POSITION_BLOCK, Config, numbers_like
from .vector_folds import dense, folded, gradient_like, view_size
from .vector_pairs import (
    active,
    chunk_gradients,
    feature_gradients,
    first_norm,
    first_weights,
    key_gradients,
    layer_gradients,
    normed_features,
    pair_logits,
    query_gradients,
    read_pair,
    related,
    scaled_gradients,
    write_layer,
    write_pair,
    write_pair_vector,
)
from .vector_pairwise import pairwise_config
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

# tiles are summed in so many groups
TILE_GROUPS = 64


@triton.jit
def softmax_sums(q, g, key, value, norm, gamma, row, column, valid, CONFIG: tl.constexpr):
    """Return the logarithms of the softmax's sums [P, G], and the sums of P dP.

    It is an online softmax of gradients in place of values.
    """
    largest = tl.full((CONFIG.positions, CONFIG.block_groups), float('-inf'), tl.float32)
    weight_sum = tl.full((CONFIG.positions, CONFIG.block_groups), 0.0, tl.float32)
    product = tl.full((CONFIG.positions, CONFIG.block_groups), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        y, x = reflected_neighbour(row, column, tap, key, CONFIG)
        k = read_pair(key, y, x, valid, CONFIG.key_layout, CONFIG)
        logits = pair_logits(normed_features(related(q, k, CONFIG), norm), gamma, CONFIG)
        v = read_groups(value, y, x, valid, CONFIG.value_layout, CONFIG)
        new_largest = tl.maximum(largest, logits)
        rescale, weight = tl.exp(largest - new_largest), tl.exp(logits - new_largest)
        weight_sum = weight_sum * rescale + weight
        product = product * rescale + weight * tl.sum(g * v, 1)
        largest = new_largest
    return largest + tl.log(weight_sum), product / weight_sum


@triton.jit
def logit_gradients(normed, v, g, total, product, visible, gamma, CONFIG: tl.constexpr):
    """Return the weights of the softmax [P, G], and the gradients of its logits."""
    logits = pair_logits(normed, gamma, CONFIG)
    group = tl.arange(0, CONFIG.block_groups)
    # outputs that do not exist have no weight
    mask = visible[:, None] & (group < CONFIG.groups)[None, :]
    weight = tl.exp(tl.where(mask, logits - total, float('-inf')))
    return weight, weight * (tl.sum(g * v, 1) - product)


@triton.jit
def pairwise_query_kernel(
    grad, query, key, value, gamma, grad_query, logsumexp, products, parts, CONFIG: tl.constexpr
):
    """Gradients of queries and of the first norm, and what other kernels need of the softmax.

    ``logsumexp`` and ``products`` (B, 1, G, Ho, Wo) are the logarithms of the softmax's sums and
    the sums of P dP. ``parts`` are the gradients of the first norm and of the last bias, one part
    for each program.
    """
    row, column, valid, batch = tile_of(tl.program_id(0), query, CONFIG)
    grad = image_of(grad, batch, CONFIG.grad_layout)
    query = image_of(query, batch, CONFIG.query_layout)
    key = image_of(key, batch, CONFIG.key_layout)
    value = image_of(value, batch, CONFIG.value_layout)
    norm = first_norm(gamma, CONFIG)
    q = read_pair(query, row, column, valid, CONFIG.query_layout, CONFIG)
    g = read_groups(grad, row, column, valid, CONFIG.grad_layout, CONFIG)
    # registers cannot be indexed by tap, so the second pass computes everything again
    total, product = softmax_sums(q, g, key, value, norm, gamma, row, column, valid, CONFIG)
    group = tl.arange(0, CONFIG.block_groups)
    logsumexp = image_of(logsumexp, batch, CONFIG.groups_layout)
    products = image_of(products, batch, CONFIG.groups_layout)
    write(logsumexp, group, CONFIG.groups, row, column, valid, total, CONFIG.groups_layout)
    write(products, group, CONFIG.groups, row, column, valid, product, CONFIG.groups_layout)
    grad_q, grad_norm, bias = query_sums(
        q, g, total, product, key, value, norm, gamma, row, column, valid, CONFIG
    )
    grad_query = image_of(grad_query, batch, CONFIG.result_layout)
    write_pair(grad_query, row, column, valid, grad_q, CONFIG.result_layout, CONFIG)
    parts += tl.program_id(0).to(tl.int64) * (2 * CONFIG.features + CONFIG.groups)
    write_pair_vector(parts, grad_norm[0], grad_norm[2], CONFIG)
    write_pair_vector(parts + CONFIG.features, grad_norm[1], grad_norm[3], CONFIG)
    write_vector(parts + 2 * CONFIG.features, group, CONFIG.groups, bias)


@triton.jit
def query_sums(
    q, g, total, product, key, value, norm, gamma, row, column, valid, CONFIG: tl.constexpr
):
    """Return sums over all taps: the gradients of queries, of the first norm and of the bias."""
    grad_q = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
    grad_q_coordinate = tl.full((CONFIG.positions, POSITION_BLOCK), 0.0, tl.float32)
    scale = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    shift = tl.full((CONFIG.block_channels,), 0.0, tl.float32)
    scale_coordinate = tl.full((POSITION_BLOCK,), 0.0, tl.float32)
    shift_coordinate = tl.full((POSITION_BLOCK,), 0.0, tl.float32)
    bias = tl.full((CONFIG.block_groups,), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        y, x = reflected_neighbour(row, column, tap, key, CONFIG)
        k = read_pair(key, y, x, valid, CONFIG.key_layout, CONFIG)
        features = related(q, k, CONFIG)
        normed = normed_features(features, norm)
        v = read_groups(value, y, x, valid, CONFIG.value_layout, CONFIG)
        _, grad_logits = logit_gradients(normed, v, g, total, product, valid, gamma, CONFIG)
        bias += tl.sum(grad_logits, 0)
        grad_normed = feature_gradients(grad_logits, normed, gamma, CONFIG)
        scale += tl.sum(grad_normed[0] * features[0], 0)
        shift += tl.sum(grad_normed[0], 0)
        scale_coordinate += tl.sum(grad_normed[1] * features[1], 0)
        shift_coordinate += tl.sum(grad_normed[1], 0)
        content, coordinates = query_gradients(scaled_gradients(grad_normed, norm), k, CONFIG)
        grad_q += content
        grad_q_coordinate += coordinates
    grad_norm = (scale, shift, scale_coordinate, shift_coordinate)
    return (grad_q, grad_q_coordinate), grad_norm, bias


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pairwise_weight_kernel(
    grad,
    query,
    key,
    value,
    gamma,
    logsumexp,
    products,
    # gradients of scale, shift and both weights of hidden features, one part per group of tiles
    parts,
    # number of groups of tiles, and of tiles of all images
    tile_groups,
    tile_count,
    CONFIG: tl.constexpr,
):
    """Gradients of gamma's weights and second norm, for a chunk of hidden features."""
    tile_group = tl.program_id(0) % tile_groups
    chunk = tl.program_id(0) // tile_groups * CONFIG.block_hidden
    chunk += tl.arange(0, CONFIG.block_hidden)
    norm = first_norm(gamma, CONFIG)
    second_scale = vector(gamma[3], chunk, CONFIG.hidden)[None, :]
    scale = tl.full((CONFIG.block_hidden,), 0.0, tl.float32)
    shift = tl.full((CONFIG.block_hidden,), 0.0, tl.float32)
    weight1 = tl.full((CONFIG.block_channels, CONFIG.block_hidden), 0.0, tl.float32)
    weight1_coordinate = tl.full((POSITION_BLOCK, CONFIG.block_hidden), 0.0, tl.float32)
    weight2 = tl.full((CONFIG.block_groups, CONFIG.block_hidden), 0.0, tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        row, column, valid, batch = tile_of(item, query, CONFIG)
        q, g, total, product = read_output(
            query, grad, logsumexp, products, batch, row, column, valid, CONFIG
        )
        key_image = image_of(key, batch, CONFIG.key_layout)
        value_image = image_of(value, batch, CONFIG.value_layout)
        for tap in range(CONFIG.taps):
            y, x = reflected_neighbour(row, column, tap, key, CONFIG)
            k = read_pair(key_image, y, x, valid, CONFIG.key_layout, CONFIG)
            normed = normed_features(related(q, k, CONFIG), norm)
            v = read_groups(value_image, y, x, valid, CONFIG.value_layout, CONFIG)
            _, grad_logits = logit_gradients(normed, v, g, total, product, valid, gamma, CONFIG)
            weights = first_weights(gamma, chunk, CONFIG)
            h, normed_h, grad_normed_h = chunk_gradients(
                grad_logits, normed, gamma, weights, chunk, CONFIG
            )
            scale += tl.sum(grad_normed_h * h, 0)
            shift += tl.sum(grad_normed_h, 0)
            content, coordinates = layer_gradients(normed, grad_normed_h * second_scale, CONFIG)
            weight1 += content
            weight1_coordinate += coordinates
            factor = tl.trans(grad_logits.to(CONFIG.dot))
            weight2 += tl.dot(factor, active(normed_h, CONFIG), input_precision=CONFIG.precision)
    parts += tile_group.to(tl.int64) * (CONFIG.hidden * (2 + CONFIG.features + CONFIG.groups))
    layers = (scale, shift, weight1, weight1_coordinate, weight2)
    write_layers(parts, chunk, layers, CONFIG)


@triton.jit
def write_layers(parts, chunk, layers, CONFIG: tl.constexpr):
    """Write the gradients that a chunk of hidden features has: its norm, and both weights."""
    hidden: tl.constexpr = CONFIG.hidden
    group = tl.arange(0, CONFIG.block_groups)
    write_vector(parts, chunk, hidden, layers[0])
    write_vector(parts + hidden, chunk, hidden, layers[1])
    parts += 2 * hidden
    write_layer(parts, chunk, layers[2], layers[3], CONFIG)
    parts += CONFIG.features * hidden
    write_matrix(parts, group, chunk, hidden, CONFIG.groups, hidden, layers[4])


@triton.jit
def read_output(query, grad, logsumexp, products, batch, row, column, valid, CONFIG: tl.constexpr):
    """Return what outputs give to gradients: query, gradient, sums of the softmax and of P dP."""
    group = tl.arange(0, CONFIG.block_groups)
    query = image_of(query, batch, CONFIG.query_layout)
    grad = image_of(grad, batch, CONFIG.grad_layout)
    logsumexp = image_of(logsumexp, batch, CONFIG.groups_layout)
    products = image_of(products, batch, CONFIG.groups_layout)
    return (
        read_pair(query, row, column, valid, CONFIG.query_layout, CONFIG),
        read_groups(grad, row, column, valid, CONFIG.grad_layout, CONFIG),
        read(logsumexp, group, CONFIG.groups, row, column, valid, CONFIG.groups_layout),
        read(products, group, CONFIG.groups, row, column, valid, CONFIG.groups_layout),
    )


@triton.jit
def pairwise_key_kernel(
    grad, query, key, value, gamma, logsumexp, products, grad_key, grad_value, CONFIG: tl.constexpr
):
    """Gradients of keys and values: sums over the outputs that see a position.

    ``grad_key`` and ``grad_value`` have all positions that outputs look at.
    """
    view_row, view_column, valid, batch = tile_of(tl.program_id(0), grad_key, CONFIG)
    row, column = map_position(view_row, view_column, CONFIG)
    y, x = reflected_position(row, column, key)
    norm = first_norm(gamma, CONFIG)
    key = image_of(key, batch, CONFIG.key_layout)
    value = image_of(value, batch, CONFIG.value_layout)
    k = read_pair(key, y, x, valid, CONFIG.key_layout, CONFIG)
    v = read_groups(value, y, x, valid, CONFIG.value_layout, CONFIG)
    grad_k = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
    grad_k_coordinate = tl.full((CONFIG.positions, POSITION_BLOCK), 0.0, tl.float32)
    grad_v = tl.full((CONFIG.positions, CONFIG.block_depth, CONFIG.block_groups), 0.0, tl.float32)
    for tap in range(CONFIG.taps):
        out_row, out_column, visible = viewer_of(row, column, valid, tap, query, CONFIG)
        q, g, total, product = read_output(
            query, grad, logsumexp, products, batch, out_row, out_column, visible, CONFIG
        )
        normed = normed_features(related(q, k, CONFIG), norm)
        weight, grad_logits = logit_gradients(normed, v, g, total, product, visible, gamma, CONFIG)
        grad_v += weight[:, None, :] * g
        grad_features = scaled_gradients(
            feature_gradients(grad_logits, normed, gamma, CONFIG), norm
        )
        content, coordinates = key_gradients(grad_features, q, CONFIG)
        grad_k += content
        grad_k_coordinate += coordinates
    grad_key = image_of(grad_key, batch, CONFIG.features_layout)
    grad_value = image_of(grad_value, batch, CONFIG.values_layout)
    grads = (grad_k, grad_k_coordinate)
    write_pair(grad_key, view_row, view_column, valid, grads, CONFIG.features_layout, CONFIG)
    write_groups(grad_value, view_row, view_column, valid, grad_v, CONFIG.values_layout, CONFIG)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gamma: Sequence[Tensor],
    relation: str,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key, value and gamma."""
    gamma = dense(gamma)
    size, view = query.shape[2:], view_size(window, query.shape[2:])
    grad_query = empty_in_layout_of(query, query.shape, query.dtype)
    tensors = dict(query=query, key=key, value=value, grad=grad, result=grad_query)
    maps = {name: as_group(x) for name, x in tensors.items()}
    sums = [buffer(len(query), len(gamma[6]), size, query) for _ in range(2)]
    views = [buffer(len(x), x.shape[1], view, x) for x in (key, value)]
    buffers = (*sums, *views)
    config = pairwise_config(gamma, relation, position_channels, window, maps, buffers)
    q, k, v, dy, dq = map(as_map, maps.values())
    inputs, softmax = (dy, q, k, v, gamma), [as_map(x) for x in sums]
    device, options = query.device, config.launch_options()
    programs = config.tile_count(len(query), size)
    norm_sizes = [parameter.numel() for parameter in (*gamma[:2], gamma[6])]
    parts = torch.empty(programs, sum(norm_sizes), **numbers_like(query))
    arguments = (*inputs, dq, *softmax, parts)
    launch(pairwise_query_kernel, programs, device, *arguments, **options)
    second = _weight_gradients(config, inputs, softmax, programs)
    arguments = (*inputs, *softmax, *map(as_map, views))
    launch(pairwise_key_kernel, config.tile_count(len(key), view), device, *arguments, **options)
    scale1, shift1, bias2 = parts.sum(0).split(norm_sizes)
    scale2, shift2, weight1, weight2 = second
    grads = (scale1, shift1, weight1, scale2, shift2, weight2, bias2)
    return (
        grad_query,
        *(folded(x[:, 0], tensor, window) for x, tensor in zip(views, (key, value), strict=True)),
        *(gradient_like(part, parameter) for part, parameter in zip(grads, gamma, strict=True)),
    )


def _weight_gradients(
    config: Config,
    inputs: tuple[Any, ...],
    softmax: Sequence[Any],
    programs: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of the second scale and shift, and of both weights."""
    gamma = inputs[-1]
    weight1, scale2, shift2, weight2 = gamma[2:6]
    part_sizes = [x.numel() for x in (scale2, shift2, weight1, weight2)]
    tile_groups = min(TILE_GROUPS, programs)
    chunks = cdiv(config.hidden, config.block_hidden)
    parts = torch.empty(tile_groups, sum(part_sizes), **numbers_like(weight1))
    launch(
        pairwise_weight_kernel,
        tile_groups * chunks,
        weight1.device,
        *(*inputs, *softmax, parts, tile_groups, programs),
        **config.launch_options(),
    )
    scale, shift, first, second = parts.sum(0).split(part_sizes)
    # rows of hidden features are columns here
    return scale, shift, first.view(weight1.shape[::-1]).t(), second.view(weight2.shape)
