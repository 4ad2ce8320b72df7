"""Pairwise vector attention: every neighbour has features of its own, softmax over neighbours.

    f_j = delta(q, k_j),  h_j = gamma's first layer,  s_j = its second layer,  y = sum of P_j v_j

A program takes a tile of positions and all groups, and walks over the taps. No feature of a
neighbour is stored: the backward kernels compute them again. One walks over outputs twice, first
for the softmax and the sum of P dP, then for the gradients of queries and of gamma. The other walks
over all positions that outputs look at, on the map and beyond its border, and takes those outputs.
What lies beyond the border is then added to what it mirrors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .tiles import (
    cdiv,
    launch,
    layout,
    neighbour,
    on_map,
    positions,
    start,
    strides,
    tiles,
    viewer,
)
from .vector_tiles import (
    NOT_SPECIALISED,
    POSITION_BLOCK,
    RELATIONS,
    as_group,
    blocks_of,
    dense,
    folded,
    like,
    matrix,
    program,
    read,
    read_groups,
    reflected,
    types_of,
    vector,
    view_size,
    write,
    write_groups,
    write_matrix,
)

# hidden features of a chunk: shared memory does not hold the weights of all
HIDDEN_CHUNK = 32
# tiles are summed in so many groups
TILE_GROUPS = 64


@triton.jit
def read_content_and_position(
    tensor,
    strides,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    row,
    column,
    valid,
    LAYOUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Return the channels of the relation [P, R] and those of the position."""
    channel = tl.arange(0, BLOCK_R).to(INDEX)
    coordinate = (channels + tl.arange(0, POSITION_BLOCK)).to(INDEX)
    return (
        read(tensor, strides, channel, channels, row, column, valid, LAYOUT),
        read(tensor, strides, coordinate, channels + coordinates, row, column, valid, LAYOUT),
    )


@triton.jit
def relate(q, k, RELATION: tl.constexpr):
    """Return the features of a pair."""
    if RELATION == 0:
        return q - k
    elif RELATION == 1:
        return q + k
    else:
        return q * k


@triton.jit
def first_norm(gamma, channels: tl.constexpr, coordinates: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return scale and shift of the features of the relation, and of the position."""
    index, coordinate = tl.arange(0, BLOCK_R), channels + tl.arange(0, POSITION_BLOCK)
    return (
        vector(gamma[0], index, channels),
        vector(gamma[1], index, channels),
        vector(gamma[0], coordinate, channels + coordinates),
        vector(gamma[1], coordinate, channels + coordinates),
    )


@triton.jit
def normed_features(features, coordinates, norm):
    """Return the normed features of the relation and of the position."""
    return (
        features * norm[0][None, :] + norm[1][None, :],
        coordinates * norm[2][None, :] + norm[3][None, :],
    )


@triton.jit
def first_weights(
    gamma,
    chunk,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DOT: tl.constexpr,
):
    """Return the weights of a chunk of hidden features, of the relation [R, M] and the position."""
    index, coordinate = tl.arange(0, BLOCK_R), channels + tl.arange(0, POSITION_BLOCK)
    end: tl.constexpr = channels + coordinates
    return (
        matrix(gamma[2], index, chunk, 1, end, channels, hidden).to(DOT),
        matrix(gamma[2], coordinate, chunk, 1, end, end, hidden).to(DOT),
    )


@triton.jit
def hidden_features(normed, normed_coordinate, weights, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Return a chunk of hidden features [P, M]."""
    result = tl.dot(tl.maximum(normed, 0.0).to(DOT), weights[0], input_precision=PRECISION)
    factor = tl.maximum(normed_coordinate, 0.0).to(DOT)
    return result + tl.dot(factor, weights[1], input_precision=PRECISION)


@triton.jit
def pair_logits(
    normed,
    normed_coordinate,
    gamma,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the logits [P, G] of a neighbour."""
    group = tl.arange(0, BLOCK_G)
    logits = tl.zeros((normed.shape[0], BLOCK_G), tl.float32)
    logits += vector(gamma[6], group, groups)[None, :]
    for first in range(0, hidden, BLOCK_M):
        chunk = first + tl.arange(0, BLOCK_M)
        weights = first_weights(gamma, chunk, channels, coordinates, hidden, BLOCK_R, DOT)
        h = hidden_features(normed, normed_coordinate, weights, DOT, PRECISION)
        h = h * vector(gamma[3], chunk, hidden)[None, :] + vector(gamma[4], chunk, hidden)[None, :]
        weight2 = matrix(gamma[5], chunk, group, 1, hidden, hidden, groups).to(DOT)
        logits += tl.dot(tl.maximum(h, 0.0).to(DOT), weight2, input_precision=PRECISION)
    return logits


@triton.jit
def chunk_gradients(
    grad_logits,
    normed,
    normed_coordinate,
    gamma,
    chunk,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return a chunk of hidden features, normed ones, their gradients, and weights of the chunk."""
    weights = first_weights(gamma, chunk, channels, coordinates, hidden, BLOCK_R, DOT)
    h = hidden_features(normed, normed_coordinate, weights, DOT, PRECISION)
    scale = vector(gamma[3], chunk, hidden)[None, :]
    normed_h = h * scale + vector(gamma[4], chunk, hidden)[None, :]
    weight2 = matrix(gamma[5], tl.arange(0, BLOCK_G), chunk, hidden, 1, groups, hidden).to(DOT)
    grad = tl.dot(grad_logits.to(DOT), weight2, input_precision=PRECISION)
    grad = tl.where(normed_h > 0, grad, 0.0)
    return h, normed_h, grad, grad * scale, weights


@triton.jit
def feature_gradients(
    grad_logits,
    normed,
    normed_coordinate,
    gamma,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the gradients of the normed features of the relation and of the position."""
    grad = tl.zeros((normed.shape[0], BLOCK_R), tl.float32)
    grad_coordinate = tl.zeros((normed.shape[0], POSITION_BLOCK), tl.float32)
    for first in range(0, hidden, BLOCK_M):
        chunk = first + tl.arange(0, BLOCK_M)
        _, _, _, grad_h, weights = chunk_gradients(
            *(
                grad_logits,
                normed,
                normed_coordinate,
                gamma,
                chunk,
                channels,
                coordinates,
                hidden,
                groups,
            ),
            *(BLOCK_R, BLOCK_G, DOT, PRECISION),
        )
        factor = grad_h.to(DOT)
        grad += tl.dot(factor, tl.trans(weights[0]), input_precision=PRECISION)
        grad_coordinate += tl.dot(factor, tl.trans(weights[1]), input_precision=PRECISION)
    return tl.where(normed > 0, grad, 0.0), tl.where(normed_coordinate > 0, grad_coordinate, 0.0)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pairwise_kernel(
    query,
    key,
    value,
    # scale, shift and weight of the first layer; scale, shift, weight and bias of the second one
    gamma,
    result,
    # (batch, 1, channel, row, column), coded as odd numbers
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    height,
    width,
    out_height,
    out_width,
    # numbers of channels of the relation and of the position, of hidden features, and of groups
    # and their channels
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
    RELATION: tl.constexpr,
    # kernel, stride, dilation and padding
    WINDOW: tl.constexpr,
    # layouts
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    # type of factors, precision of products, type of offsets
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """y[d, g] = sum over j of softmax_j(s_j)[g] v_j[d, g]"""
    P: tl.constexpr = TILE_H * TILE_W
    tile, batch = program(out_height, out_width, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    valid = on_map(row, column, out_height, out_width)
    query += start(query_strides, batch, 0 * batch, QUERY)
    key += start(key_strides, batch, 0 * batch, KEY)
    value += start(value_strides, batch, 0 * batch, VALUE)
    result += start(result_strides, batch, 0 * batch, RESULT)
    norm = first_norm(gamma, channels, coordinates, BLOCK_R)
    q, q_coordinate = read_content_and_position(
        query, query_strides, channels, coordinates, row, column, valid, QUERY, BLOCK_R, INDEX
    )
    # Online softmax: the largest logit so far, the sum of weights relative to it, and the sum of
    # weighted values. A larger logit rescales both sums.
    largest = tl.full((P, BLOCK_G), float('-inf'), tl.float32)
    weight_sum = tl.zeros((P, BLOCK_G), tl.float32)
    total = tl.zeros((P, BLOCK_D, BLOCK_G), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        y, x = reflected(y, height), reflected(x, width)
        k, k_coordinate = read_content_and_position(
            key, key_strides, channels, coordinates, y, x, valid, KEY, BLOCK_R, INDEX
        )
        normed, normed_coordinate = normed_features(
            relate(q, k, RELATION), q_coordinate - k_coordinate, norm
        )
        logits = pair_logits(
            *(normed, normed_coordinate, gamma, channels, coordinates, hidden, groups),
            *(BLOCK_R, BLOCK_M, BLOCK_G, DOT, PRECISION),
        )
        new_largest = tl.maximum(largest, logits)
        rescale, weight = tl.exp(largest - new_largest), tl.exp(logits - new_largest)
        v = read_groups(
            value, value_strides, groups, depth, y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX
        )
        weight_sum = weight_sum * rescale + weight
        total = total * rescale[:, None, :] + weight[:, None, :] * v
        largest = new_largest
    total = total / weight_sum[:, None, :]
    write_groups(
        result,
        result_strides,
        groups,
        depth,
        row,
        column,
        valid,
        total,
        RESULT,
        BLOCK_D,
        BLOCK_G,
        INDEX,
    )


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pairwise_query_kernel(
    grad,
    query,
    key,
    value,
    gamma,
    grad_query,
    # (B, Ho, Wo, G): logarithms of the softmax's sums, and the sums of P dP
    logsumexp,
    products,
    # gradients of the first norm and of the last bias, one part for each program
    parts,
    grad_strides,
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    height,
    width,
    out_height,
    out_width,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
    RELATION: tl.constexpr,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Gradients of queries and of gamma, and what the other kernel needs of the softmax."""
    P: tl.constexpr = TILE_H * TILE_W
    tile, batch = program(out_height, out_width, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    valid = on_map(row, column, out_height, out_width)
    grad += start(grad_strides, batch, 0 * batch, GRAD)
    query += start(query_strides, batch, 0 * batch, QUERY)
    key += start(key_strides, batch, 0 * batch, KEY)
    value += start(value_strides, batch, 0 * batch, VALUE)
    grad_query += start(result_strides, batch, 0 * batch, RESULT)
    norm = first_norm(gamma, channels, coordinates, BLOCK_R)
    q, q_coordinate = read_content_and_position(
        query, query_strides, channels, coordinates, row, column, valid, QUERY, BLOCK_R, INDEX
    )
    g = read_groups(
        grad, grad_strides, groups, depth, row, column, valid, GRAD, BLOCK_D, BLOCK_G, INDEX
    )
    # First pass over the taps, an online softmax of gradients in place of values. Registers cannot
    # be indexed by tap, so the second pass computes everything again.
    largest = tl.full((P, BLOCK_G), float('-inf'), tl.float32)
    weight_sum = tl.zeros((P, BLOCK_G), tl.float32)
    product = tl.zeros((P, BLOCK_G), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        y, x = reflected(y, height), reflected(x, width)
        k, k_coordinate = read_content_and_position(
            key, key_strides, channels, coordinates, y, x, valid, KEY, BLOCK_R, INDEX
        )
        normed, normed_coordinate = normed_features(
            relate(q, k, RELATION), q_coordinate - k_coordinate, norm
        )
        logits = pair_logits(
            *(normed, normed_coordinate, gamma, channels, coordinates, hidden, groups),
            *(BLOCK_R, BLOCK_M, BLOCK_G, DOT, PRECISION),
        )
        v = read_groups(
            value, value_strides, groups, depth, y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX
        )
        new_largest = tl.maximum(largest, logits)
        rescale, weight = tl.exp(largest - new_largest), tl.exp(logits - new_largest)
        weight_sum = weight_sum * rescale + weight
        product = product * rescale + weight * tl.sum(g * v, 1)
        largest = new_largest
    product = product / weight_sum
    total = largest + tl.log(weight_sum)
    group = tl.arange(0, BLOCK_G)
    position = (batch.to(tl.int64) * out_height + row) * out_width + column
    offset = position[:, None] * groups + group[None, :]
    mask = valid[:, None] & (group < groups)[None, :]
    tl.store(logsumexp + offset, total, mask=mask)
    tl.store(products + offset, product, mask=mask)
    # second pass: the gradients of logits, and what follows from them
    grad_q = tl.zeros((P, BLOCK_R), tl.float32)
    grad_q_coordinate = tl.zeros((P, POSITION_BLOCK), tl.float32)
    scale = tl.zeros((BLOCK_R,), tl.float32)
    shift = tl.zeros((BLOCK_R,), tl.float32)
    scale_coordinate = tl.zeros((POSITION_BLOCK,), tl.float32)
    shift_coordinate = tl.zeros((POSITION_BLOCK,), tl.float32)
    bias = tl.zeros((BLOCK_G,), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        y, x = reflected(y, height), reflected(x, width)
        k, k_coordinate = read_content_and_position(
            key, key_strides, channels, coordinates, y, x, valid, KEY, BLOCK_R, INDEX
        )
        features, coordinate = relate(q, k, RELATION), q_coordinate - k_coordinate
        normed, normed_coordinate = normed_features(features, coordinate, norm)
        logits = pair_logits(
            *(normed, normed_coordinate, gamma, channels, coordinates, hidden, groups),
            *(BLOCK_R, BLOCK_M, BLOCK_G, DOT, PRECISION),
        )
        v = read_groups(
            value, value_strides, groups, depth, y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX
        )
        # positions beyond the map have gradients of zero
        grad_logits = tl.exp(logits - total) * (tl.sum(g * v, 1) - product)
        bias += tl.sum(grad_logits, 0)
        grad_normed, grad_normed_coordinate = feature_gradients(
            *(grad_logits, normed, normed_coordinate, gamma, channels, coordinates, hidden, groups),
            *(BLOCK_R, BLOCK_M, BLOCK_G, DOT, PRECISION),
        )
        scale += tl.sum(grad_normed * features, 0)
        shift += tl.sum(grad_normed, 0)
        scale_coordinate += tl.sum(grad_normed_coordinate * coordinate, 0)
        shift_coordinate += tl.sum(grad_normed_coordinate, 0)
        grad_features = grad_normed * norm[0][None, :]
        if RELATION == 2:
            grad_features = grad_features * k
        grad_q += grad_features
        grad_q_coordinate += grad_normed_coordinate * norm[2][None, :]
    channel, coordinate_channel = tl.arange(0, BLOCK_R), channels + tl.arange(0, POSITION_BLOCK)
    end: tl.constexpr = channels + coordinates
    index = channel.to(INDEX)
    write(grad_query, result_strides, index, channels, row, column, valid, grad_q, RESULT)
    index = coordinate_channel.to(INDEX)
    write(grad_query, result_strides, index, end, row, column, valid, grad_q_coordinate, RESULT)
    parts += tl.program_id(0).to(tl.int64) * (2 * end + groups)
    tl.store(parts + channel, scale, mask=channel < channels)
    tl.store(parts + coordinate_channel, scale_coordinate, mask=coordinate_channel < end)
    tl.store(parts + end + channel, shift, mask=channel < channels)
    tl.store(parts + end + coordinate_channel, shift_coordinate, mask=coordinate_channel < end)
    tl.store(parts + 2 * end + group, bias, mask=group < groups)


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
    grad_strides,
    query_strides,
    key_strides,
    value_strides,
    height,
    width,
    out_height,
    out_width,
    # number of groups of tiles, and of tiles of all images
    tile_groups,
    tile_count,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
    RELATION: tl.constexpr,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Gradients of gamma's weights and second norm, for a chunk of hidden features."""
    tile_group = tl.program_id(0) % tile_groups
    chunk = tl.program_id(0) // tile_groups * BLOCK_M + tl.arange(0, BLOCK_M)
    image_tiles = tl.cdiv(out_height, TILE_H) * tl.cdiv(out_width, TILE_W)
    group = tl.arange(0, BLOCK_G)
    norm = first_norm(gamma, channels, coordinates, BLOCK_R)
    scale = tl.zeros((BLOCK_M,), tl.float32)
    shift = tl.zeros((BLOCK_M,), tl.float32)
    weight = tl.zeros((BLOCK_R, BLOCK_M), tl.float32)
    weight_coordinate = tl.zeros((POSITION_BLOCK, BLOCK_M), tl.float32)
    weight2 = tl.zeros((BLOCK_G, BLOCK_M), tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        batch = item // image_tiles
        row, column = positions(item % image_tiles, out_width, TILE_H, TILE_W, INDEX)
        valid = on_map(row, column, out_height, out_width)
        q, q_coordinate = read_content_and_position(
            *(query + start(query_strides, batch, 0 * batch, QUERY), query_strides),
            *(channels, coordinates, row, column, valid, QUERY, BLOCK_R, INDEX),
        )
        g = read_groups(
            *(grad + start(grad_strides, batch, 0 * batch, GRAD), grad_strides, groups, depth),
            *(row, column, valid, GRAD, BLOCK_D, BLOCK_G, INDEX),
        )
        position = (batch.to(tl.int64) * out_height + row) * out_width + column
        offset = position[:, None] * groups + group[None, :]
        mask = valid[:, None] & (group < groups)[None, :]
        total = tl.load(logsumexp + offset, mask=mask, other=0.0)
        product = tl.load(products + offset, mask=mask, other=0.0)
        for tap in range(WINDOW[0] * WINDOW[1]):
            y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
            y, x = reflected(y, height), reflected(x, width)
            k, k_coordinate = read_content_and_position(
                *(key + start(key_strides, batch, 0 * batch, KEY), key_strides),
                *(channels, coordinates, y, x, valid, KEY, BLOCK_R, INDEX),
            )
            normed, normed_coordinate = normed_features(
                relate(q, k, RELATION), q_coordinate - k_coordinate, norm
            )
            logits = pair_logits(
                *(normed, normed_coordinate, gamma, channels, coordinates, hidden, groups),
                *(BLOCK_R, BLOCK_M, BLOCK_G, DOT, PRECISION),
            )
            v = read_groups(
                *(value + start(value_strides, batch, 0 * batch, VALUE), value_strides, groups),
                *(depth, y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX),
            )
            # outputs that do not exist have no weight
            softmax = tl.exp(tl.where(mask, logits - total, float('-inf')))
            grad_logits = softmax * (tl.sum(g * v, 1) - product)
            h, normed_h, grad_normed_h, grad_h, _ = chunk_gradients(
                *(
                    grad_logits,
                    normed,
                    normed_coordinate,
                    gamma,
                    chunk,
                    channels,
                    coordinates,
                    hidden,
                ),
                *(groups, BLOCK_R, BLOCK_G, DOT, PRECISION),
            )
            scale += tl.sum(grad_normed_h * h, 0)
            shift += tl.sum(grad_normed_h, 0)
            factor = grad_h.to(DOT)
            active = tl.trans(tl.maximum(normed, 0.0).to(DOT))
            weight += tl.dot(active, factor, input_precision=PRECISION)
            active = tl.trans(tl.maximum(normed_coordinate, 0.0).to(DOT))
            weight_coordinate += tl.dot(active, factor, input_precision=PRECISION)
            active = tl.maximum(normed_h, 0.0).to(DOT)
            weight2 += tl.dot(tl.trans(grad_logits.to(DOT)), active, input_precision=PRECISION)
    # rows of hidden features: the weights of the first layer come as their transpose
    end: tl.constexpr = channels + coordinates
    parts += tile_group.to(tl.int64) * (hidden * (2 + end + groups))
    tl.store(parts + chunk, scale, mask=chunk < hidden)
    tl.store(parts + hidden + chunk, shift, mask=chunk < hidden)
    parts += 2 * hidden
    channel, coordinate = tl.arange(0, BLOCK_R), channels + tl.arange(0, POSITION_BLOCK)
    write_matrix(parts, channel, chunk, hidden, channels, hidden, weight)
    write_matrix(parts, coordinate, chunk, hidden, end, hidden, weight_coordinate)
    write_matrix(parts + end * hidden, group, chunk, hidden, groups, hidden, weight2)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pairwise_key_kernel(
    grad,
    query,
    key,
    value,
    gamma,
    # of all positions that outputs look at: (B, rows, columns, channels)
    grad_key,
    grad_value,
    logsumexp,
    products,
    grad_strides,
    query_strides,
    key_strides,
    value_strides,
    height,
    width,
    out_height,
    out_width,
    view_height,
    view_width,
    channels: tl.constexpr,
    coordinates: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
    RELATION: tl.constexpr,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Gradients of keys and values: sums over the outputs that see a position."""
    P: tl.constexpr = TILE_H * TILE_W
    tile, batch = program(view_height, view_width, TILE_H, TILE_W)
    view_row, view_column = positions(tile, view_width, TILE_H, TILE_W, INDEX)
    valid = on_map(view_row, view_column, view_height, view_width)
    # on the map, or beyond its border
    row, column = view_row - WINDOW[6], view_column - WINDOW[7]
    y, x = reflected(row, height), reflected(column, width)
    grad += start(grad_strides, batch, 0 * batch, GRAD)
    query += start(query_strides, batch, 0 * batch, QUERY)
    key += start(key_strides, batch, 0 * batch, KEY)
    value += start(value_strides, batch, 0 * batch, VALUE)
    norm = first_norm(gamma, channels, coordinates, BLOCK_R)
    k, k_coordinate = read_content_and_position(
        key, key_strides, channels, coordinates, y, x, valid, KEY, BLOCK_R, INDEX
    )
    v = read_groups(
        value, value_strides, groups, depth, y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX
    )
    grad_k = tl.zeros((P, BLOCK_R), tl.float32)
    grad_k_coordinate = tl.zeros((P, POSITION_BLOCK), tl.float32)
    grad_v = tl.zeros((P, BLOCK_D, BLOCK_G), tl.float32)
    group = tl.arange(0, BLOCK_G)
    for tap in range(WINDOW[0] * WINDOW[1]):
        out_row, out_column, visible = viewer(
            row, column, tap // WINDOW[1], tap % WINDOW[1], out_height, out_width, WINDOW
        )
        visible = visible & valid
        q, q_coordinate = read_content_and_position(
            query,
            query_strides,
            channels,
            coordinates,
            out_row,
            out_column,
            visible,
            QUERY,
            BLOCK_R,
            INDEX,
        )
        normed, normed_coordinate = normed_features(
            relate(q, k, RELATION), q_coordinate - k_coordinate, norm
        )
        logits = pair_logits(
            *(normed, normed_coordinate, gamma, channels, coordinates, hidden, groups),
            *(BLOCK_R, BLOCK_M, BLOCK_G, DOT, PRECISION),
        )
        position = (batch.to(tl.int64) * out_height + out_row) * out_width + out_column
        offset = position[:, None] * groups + group[None, :]
        mask = visible[:, None] & (group < groups)[None, :]
        total = tl.load(logsumexp + offset, mask=mask, other=0.0)
        product = tl.load(products + offset, mask=mask, other=0.0)
        g = read_groups(
            grad,
            grad_strides,
            groups,
            depth,
            out_row,
            out_column,
            visible,
            GRAD,
            BLOCK_D,
            BLOCK_G,
            INDEX,
        )
        # outputs that do not exist have no weight
        weight = tl.exp(tl.where(mask, logits - total, float('-inf')))
        grad_logits = weight * (tl.sum(g * v, 1) - product)
        grad_v += weight[:, None, :] * g
        grad_normed, grad_normed_coordinate = feature_gradients(
            *(grad_logits, normed, normed_coordinate, gamma, channels, coordinates, hidden, groups),
            *(BLOCK_R, BLOCK_M, BLOCK_G, DOT, PRECISION),
        )
        grad_features = grad_normed * norm[0][None, :]
        if RELATION == 0:
            grad_k -= grad_features
        elif RELATION == 1:
            grad_k += grad_features
        else:
            grad_k += grad_features * q
        grad_k_coordinate -= grad_normed_coordinate * norm[2][None, :]
    position = (batch.to(tl.int64) * view_height + view_row) * view_width + view_column
    features_count: tl.constexpr = channels + coordinates
    channel = tl.arange(0, BLOCK_R)
    offset = position[:, None] * features_count + channel[None, :]
    tl.store(grad_key + offset, grad_k, mask=valid[:, None] & (channel < channels)[None, :])
    channel = channels + tl.arange(0, POSITION_BLOCK)
    offset = position[:, None] * features_count + channel[None, :]
    mask = valid[:, None] & (channel < features_count)[None, :]
    tl.store(grad_key + offset, grad_k_coordinate, mask=mask)
    d, group = tl.arange(0, BLOCK_D)[None, :, None], tl.arange(0, BLOCK_G)[None, None, :]
    offset = position[:, None, None] * (depth * groups) + d * groups + group
    mask = valid[:, None, None] & (d < depth) & (group < groups)
    tl.store(grad_value + offset, grad_v, mask=mask)


def _constants(
    query: Tensor,
    value: Tensor,
    gamma: Sequence[Tensor],
    relation: str,
    position_channels: int,
    window: Sequence[int],
    *maps: Tensor,
) -> dict[str, Any]:
    """Return the compile-time constants of a launch, except for layouts."""
    channels, groups = query.shape[1] - position_channels, gamma[6].shape[0]
    hidden, depth = gamma[2].shape[0], value.shape[1] // groups
    return dict(
        channels=channels,
        coordinates=position_channels,
        hidden=hidden,
        groups=groups,
        depth=depth,
        RELATION=RELATIONS[relation],
        **blocks_of(channels, min(hidden, HIDDEN_CHUNK), groups, depth),
        **types_of(window, (gamma[2], gamma[5]), *maps),
    )


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
    result = empty_in_layout_of(value, (*value.shape[:2], *query.shape[2:]), value.dtype)
    q, k, v, y = maps = [as_group(x) for x in (query, key, value, result)]
    constants = _constants(query, value, gamma, relation, position_channels, window, *maps)
    tile = constants['TILE_H'], constants['TILE_W']
    launch(
        pairwise_kernel,
        len(query) * tiles(query.shape[2:], tile),
        query.device,
        *(q, k, v, dense(gamma), y),
        *map(strides, maps),
        *(*key.shape[2:], *query.shape[2:]),
        **dict(QUERY=layout(q), KEY=layout(k), VALUE=layout(v), RESULT=layout(y)),
        **constants,
    )
    return result


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
    grad_query = empty_in_layout_of(query, query.shape, query.dtype)
    dy, q, k, v, dq = maps = [as_group(x) for x in (grad, query, key, value, grad_query)]
    constants = _constants(
        query, value, gamma, relation, position_channels, window, q, k, v, dy, dq
    )
    constants |= dict(GRAD=layout(dy), QUERY=layout(q), KEY=layout(k), VALUE=layout(v))
    tile = constants['TILE_H'], constants['TILE_W']
    size, view = query.shape[2:], view_size(window, query.shape[2:])
    programs = len(query) * tiles(size, tile)
    tile_groups, chunks = (
        min(TILE_GROUPS, programs),
        cdiv(constants['hidden'], constants['BLOCK_M']),
    )
    numbers: dict[str, Any] = dict(dtype=torch.float32, device=query.device)
    sums = torch.empty(2, len(query), *size, len(gamma[6]), **numbers)
    norm_sizes = [parameter.numel() for parameter in (*gamma[:2], gamma[6])]
    weight_sizes = [parameter.numel() for parameter in (*gamma[3:5], gamma[2], gamma[5])]
    norm_parts = torch.empty(programs, sum(norm_sizes), **numbers)
    weight_parts = torch.empty(tile_groups, sum(weight_sizes), **numbers)
    sizes = (*key.shape[2:], *size)
    launch(
        pairwise_query_kernel,
        programs,
        query.device,
        *(dy, q, k, v, gamma, dq, *sums, norm_parts),
        *map(strides, maps),
        *sizes,
        RESULT=layout(dq),
        **constants,
    )
    launch(
        pairwise_weight_kernel,
        tile_groups * chunks,
        query.device,
        *(dy, q, k, v, gamma, *sums, weight_parts),
        *map(strides, maps[:4]),
        *(*sizes, tile_groups, programs),
        **constants,
    )
    grad_key, grad_value = (torch.empty(len(x), *view, x.shape[1], **numbers) for x in (key, value))
    launch(
        pairwise_key_kernel,
        len(query) * tiles(view, tile),
        query.device,
        *(dy, q, k, v, gamma, grad_key, grad_value, *sums),
        *map(strides, maps[:4]),
        *(*sizes, *view),
        **constants,
    )
    scale1, shift1, bias2 = norm_parts.sum(0).split(norm_sizes)
    scale2, shift2, weight1, weight2 = weight_parts.sum(0).split(weight_sizes)
    # it comes as its transpose
    weight1 = weight1.view(gamma[2].shape[::-1]).t()
    grads = (scale1, shift1, weight1, scale2, shift2, weight2.view(gamma[5].shape), bias2)
    return (
        grad_query,
        folded(grad_key, key, window),
        folded(grad_value, value, window),
        *(like(grad, parameter) for grad, parameter in zip(grads, gamma, strict=True)),
    )
