"""Features of pairs of a position and a neighbour, gamma's two layers of them, and gradients.

Features are a tuple of two blocks, those of the relation [P, R] and those of the position, since
the number of the first is a power of two in the networks of the paper and their sum is not. gamma
is a tuple of scale, shift and weight of the first layer, and of scale, shift, weight and bias of
the second one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .vector_config import POSITION_BLOCK
from .vector_tiles import (
    image_of,
    matrix,
    read,
    reflected_neighbour,
    tile_of,
    vector,
    write,
    write_matrix,
    write_vector,
)


@triton.jit
def channels_of_pair(CONFIG: tl.constexpr):
    """Return the channels of the relation, and those of the position."""
    coordinate = CONFIG.channels + tl.arange(0, POSITION_BLOCK)
    return tl.arange(0, CONFIG.block_channels), coordinate


@triton.jit
def read_pair(x, row, column, valid, LAYOUT: tl.constexpr, CONFIG: tl.constexpr):
    """Return both blocks of the channels of positions."""
    channel, coordinate = channels_of_pair(CONFIG)
    channel, coordinate = channel.to(CONFIG.index), coordinate.to(CONFIG.index)
    return (
        read(x, channel, CONFIG.channels, row, column, valid, LAYOUT),
        read(x, coordinate, CONFIG.features, row, column, valid, LAYOUT),
    )


@triton.jit
def read_tile(item, query, key, CONFIG: tl.constexpr):
    """Return rows, columns and mask of a tile of outputs, their queries, and their map of keys."""
    row, column, valid, batch = tile_of(item, query, CONFIG)
    query = image_of(query, batch, CONFIG.query_layout)
    q = read_pair(query, row, column, valid, CONFIG.query_layout, CONFIG)
    return row, column, valid, q, image_of(key, batch, CONFIG.key_layout)


@triton.jit
def read_neighbour(key, row, column, valid, tap, CONFIG: tl.constexpr):
    """Return the keys that outputs see through a tap; ``key`` is the map of an image."""
    y, x = reflected_neighbour(row, column, tap, key, CONFIG)
    return read_pair(key, y, x, valid, CONFIG.key_layout, CONFIG)


@triton.jit
def write_pair(x, row, column, valid, numbers, LAYOUT: tl.constexpr, CONFIG: tl.constexpr):
    """Write both blocks of the channels of positions."""
    channel, coordinate = channels_of_pair(CONFIG)
    channel, coordinate = channel.to(CONFIG.index), coordinate.to(CONFIG.index)
    write(x, channel, CONFIG.channels, row, column, valid, numbers[0], LAYOUT)
    write(x, coordinate, CONFIG.features, row, column, valid, numbers[1], LAYOUT)


@triton.jit
def write_pair_vector(tensor, content, coordinates, CONFIG: tl.constexpr):
    """Write both blocks of a vector of all features."""
    channel, coordinate = channels_of_pair(CONFIG)
    write_vector(tensor, channel, CONFIG.channels, content)
    write_vector(tensor, coordinate, CONFIG.features, coordinates)


@triton.jit
def related(q, k, CONFIG: tl.constexpr):
    """Return the features of pairs."""
    if CONFIG.relation == 0:
        content = q[0] - k[0]
    elif CONFIG.relation == 1:
        content = q[0] + k[0]
    else:
        content = q[0] * k[0]
    return content, q[1] - k[1]


@triton.jit
def query_gradients(grad_features, k, CONFIG: tl.constexpr):
    """Return the gradients of queries from those of features."""
    if CONFIG.relation == 2:
        return grad_features[0] * k[0], grad_features[1]
    else:
        return grad_features


@triton.jit
def key_gradients(grad_features, q, CONFIG: tl.constexpr):
    """Return the gradients of keys from those of features."""
    if CONFIG.relation == 0:
        content = -grad_features[0]
    elif CONFIG.relation == 1:
        content = grad_features[0]
    else:
        content = grad_features[0] * q[0]
    return content, -grad_features[1]


@triton.jit
def first_norm(gamma, CONFIG: tl.constexpr):
    """Return scale and shift of the features of the relation, and of the position."""
    channel, coordinate = channels_of_pair(CONFIG)
    return (
        vector(gamma[0], channel, CONFIG.channels)[None, :],
        vector(gamma[1], channel, CONFIG.channels)[None, :],
        vector(gamma[0], coordinate, CONFIG.features)[None, :],
        vector(gamma[1], coordinate, CONFIG.features)[None, :],
    )


@triton.jit
def normed_features(features, norm):
    """Return the normed features."""
    return features[0] * norm[0] + norm[1], features[1] * norm[2] + norm[3]


@triton.jit
def scaled_gradients(grad_normed, norm):
    """Return the gradients of features from those of normed features."""
    return grad_normed[0] * norm[0], grad_normed[1] * norm[2]


@triton.jit
def first_weights(gamma, chunk, CONFIG: tl.constexpr):
    """Return the weights of a chunk of hidden features, of the relation [R, M] and the position."""
    channel, coordinate = channels_of_pair(CONFIG)
    stride: tl.constexpr = CONFIG.features
    hidden: tl.constexpr = CONFIG.hidden
    content = matrix(gamma[2], channel, chunk, 1, stride, CONFIG.channels, hidden)
    coordinates = matrix(gamma[2], coordinate, chunk, 1, stride, CONFIG.features, hidden)
    return content.to(CONFIG.dot), coordinates.to(CONFIG.dot)


@triton.jit
def active(x, CONFIG: tl.constexpr):
    """Return the ReLU of features as a factor of a matrix product."""
    return tl.maximum(x, 0.0).to(CONFIG.dot)


@triton.jit
def hidden_features(normed, weights, CONFIG: tl.constexpr):
    """Return a chunk of hidden features [P, M]."""
    h = tl.dot(active(normed[0], CONFIG), weights[0], input_precision=CONFIG.precision)
    return h + tl.dot(active(normed[1], CONFIG), weights[1], input_precision=CONFIG.precision)


@triton.jit
def pair_logits(normed, gamma, CONFIG: tl.constexpr):
    """Return the logits [P, G] of neighbours."""
    group = tl.arange(0, CONFIG.block_groups)
    logits = tl.full((CONFIG.positions, CONFIG.block_groups), 0.0, tl.float32)
    logits += vector(gamma[6], group, CONFIG.groups)[None, :]
    for first in range(0, CONFIG.hidden, CONFIG.block_hidden):
        chunk = first + tl.arange(0, CONFIG.block_hidden)
        h = hidden_features(normed, first_weights(gamma, chunk, CONFIG), CONFIG)
        h = h * vector(gamma[3], chunk, CONFIG.hidden)[None, :]
        h += vector(gamma[4], chunk, CONFIG.hidden)[None, :]
        weight = matrix(gamma[5], chunk, group, 1, CONFIG.hidden, CONFIG.hidden, CONFIG.groups)
        factor = weight.to(CONFIG.dot)
        logits += tl.dot(active(h, CONFIG), factor, input_precision=CONFIG.precision)
    return logits


@triton.jit
def chunk_gradients(grad_logits, normed, gamma, weights, chunk, CONFIG: tl.constexpr):
    """Return a chunk of hidden features, the normed ones, and the gradients of the normed ones."""
    h = hidden_features(normed, weights, CONFIG)
    normed_h = h * vector(gamma[3], chunk, CONFIG.hidden)[None, :]
    normed_h += vector(gamma[4], chunk, CONFIG.hidden)[None, :]
    group = tl.arange(0, CONFIG.block_groups)
    weight = matrix(gamma[5], group, chunk, CONFIG.hidden, 1, CONFIG.groups, CONFIG.hidden)
    factor = weight.to(CONFIG.dot)
    grad = tl.dot(grad_logits.to(CONFIG.dot), factor, input_precision=CONFIG.precision)
    return h, normed_h, tl.where(normed_h > 0, grad, 0.0)


@triton.jit
def feature_gradients(grad_logits, normed, gamma, CONFIG: tl.constexpr):
    """Return the gradients of the normed features."""
    grad = tl.full((CONFIG.positions, CONFIG.block_channels), 0.0, tl.float32)
    grad_coordinate = tl.full((CONFIG.positions, POSITION_BLOCK), 0.0, tl.float32)
    for first in range(0, CONFIG.hidden, CONFIG.block_hidden):
        chunk = first + tl.arange(0, CONFIG.block_hidden)
        weights = first_weights(gamma, chunk, CONFIG)
        _, _, grad_normed = chunk_gradients(grad_logits, normed, gamma, weights, chunk, CONFIG)
        grad_h = grad_normed * vector(gamma[3], chunk, CONFIG.hidden)[None, :]
        content, coordinates = input_gradients(grad_h, weights, CONFIG)
        grad += content
        grad_coordinate += coordinates
    return tl.where(normed[0] > 0, grad, 0.0), tl.where(normed[1] > 0, grad_coordinate, 0.0)


@triton.jit
def input_gradients(grad_h, weights, CONFIG: tl.constexpr):
    """Return the gradients that a chunk of hidden features gives to what their layer sees."""
    factor = grad_h.to(CONFIG.dot)
    return (
        tl.dot(factor, tl.trans(weights[0]), input_precision=CONFIG.precision),
        tl.dot(factor, tl.trans(weights[1]), input_precision=CONFIG.precision),
    )


@triton.jit
def layer_gradients(normed, grad_h, CONFIG: tl.constexpr):
    """Return the gradients of the first layer's weights [R, M] and [16, M] of a chunk."""
    factor = grad_h.to(CONFIG.dot)
    return (
        tl.dot(tl.trans(active(normed[0], CONFIG)), factor, input_precision=CONFIG.precision),
        tl.dot(tl.trans(active(normed[1], CONFIG)), factor, input_precision=CONFIG.precision),
    )


@triton.jit
def write_layer(parts, chunk, content, coordinates, CONFIG: tl.constexpr):
    """Write the gradients of the first layer's weights of a chunk, as their transpose."""
    channel, coordinate = channels_of_pair(CONFIG)
    hidden: tl.constexpr = CONFIG.hidden
    write_matrix(parts, channel, chunk, hidden, CONFIG.channels, hidden, content)
    write_matrix(parts, coordinate, chunk, hidden, CONFIG.features, hidden, coordinates)
