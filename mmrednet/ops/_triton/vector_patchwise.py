"""Patchwise vector attention: one vector of features of a whole patch has the weights of all taps.

    h = gamma's first layer of (q, k_1, ..., k_K),  a_j = tap j of its second layer,
    y = sum of a_j v_j

The first layer is a sum over taps, and the second one has a part for each tap: a program takes a
tile of positions and walks over the taps twice. The backward pass stores hidden features and their
gradients, which are as large as one eighth of the values in the networks of the paper, but no
feature of a neighbour. One kernel walks over outputs, one over groups of tiles for each tap, and
one over all positions that outputs look at.
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

# tiles are summed in so many groups, for each tap
TILE_GROUPS = 16


@triton.jit
def _normed(x, gamma, part, channels: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return normed features of the centre, part 0, or of a tap, parts 1 to K."""
    index = tl.arange(0, BLOCK_R)
    scale = vector(gamma[0] + part * channels, index, channels)
    shift = vector(gamma[1] + part * channels, index, channels)
    return x * scale[None, :] + shift[None, :]


@triton.jit
def _first_weight(
    gamma,
    part,
    channels: tl.constexpr,
    hidden: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DOT: tl.constexpr,
):
    """Return the first layer's weight [R, M] of the centre or of a tap."""
    index, column = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M)
    first = gamma[2] + part * (channels * hidden)
    return matrix(first, index, column, hidden, 1, channels, hidden).to(DOT)


@triton.jit
def _second_weight(
    gamma,
    tap,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DOT: tl.constexpr,
):
    """Return the second layer's weight [M, G] of a tap."""
    index, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_G)
    first = gamma[5] + tap * (hidden * groups)
    return matrix(first, index, column, groups, 1, hidden, groups).to(DOT)


@triton.jit
def _hidden(
    q,
    key,
    key_strides,
    gamma,
    row,
    column,
    valid,
    height,
    width,
    channels: tl.constexpr,
    hidden: tl.constexpr,
    WINDOW: tl.constexpr,
    KEY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Return the hidden features [P, M] of patches, before their norm."""
    channel = tl.arange(0, BLOCK_R).to(INDEX)
    active = tl.maximum(_normed(q, gamma, 0, channels, BLOCK_R), 0.0).to(DOT)
    weight = _first_weight(gamma, 0, channels, hidden, BLOCK_R, BLOCK_M, DOT)
    total = tl.dot(active, weight, input_precision=PRECISION)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        y, x = reflected(y, height), reflected(x, width)
        k = read(key, key_strides, channel, channels, y, x, valid, KEY)
        active = tl.maximum(_normed(k, gamma, tap + 1, channels, BLOCK_R), 0.0).to(DOT)
        weight = _first_weight(gamma, tap + 1, channels, hidden, BLOCK_R, BLOCK_M, DOT)
        total += tl.dot(active, weight, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def patchwise_kernel(
    query,
    key,
    value,
    # by tap: scale, shift and weight of the first layer; scale and shift of hidden features;
    # weight and bias of the second layer
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
    # numbers of channels of keys, of hidden features, and of groups and their channels
    channels: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
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
    """y[d, g] = sum over j of a_j[g] v_j[d, g]"""
    tile, batch = program(out_height, out_width, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    valid = on_map(row, column, out_height, out_width)
    query += start(query_strides, batch, 0 * batch, QUERY)
    key += start(key_strides, batch, 0 * batch, KEY)
    value += start(value_strides, batch, 0 * batch, VALUE)
    result += start(result_strides, batch, 0 * batch, RESULT)
    channel, feature = tl.arange(0, BLOCK_R).to(INDEX), tl.arange(0, BLOCK_M)
    group = tl.arange(0, BLOCK_G)
    q = read(query, query_strides, channel, channels, row, column, valid, QUERY)
    h = _hidden(
        *(q, key, key_strides, gamma, row, column, valid, height, width, channels, hidden),
        *(WINDOW, KEY, BLOCK_R, BLOCK_M, DOT, PRECISION, INDEX),
    )
    h = h * vector(gamma[3], feature, hidden)[None, :] + vector(gamma[4], feature, hidden)[None, :]
    active = tl.maximum(h, 0.0).to(DOT)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_D, BLOCK_G), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        y, x = reflected(y, height), reflected(x, width)
        weight = _second_weight(gamma, tap, hidden, groups, BLOCK_M, BLOCK_G, DOT)
        alpha = tl.dot(active, weight, input_precision=PRECISION)
        alpha += vector(gamma[6] + tap * groups, group, groups)[None, :]
        v = read_groups(
            value, value_strides, groups, depth, y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX
        )
        total += alpha[:, None, :] * v
    write_groups(
        *(result, result_strides, groups, depth, row, column, valid, total, RESULT),
        *(BLOCK_D, BLOCK_G, INDEX),
    )


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def patchwise_hidden_kernel(
    grad,
    query,
    key,
    value,
    gamma,
    grad_query,
    # (B, Ho, Wo, M): hidden features after norm and ReLU, and gradients before the norm
    active_hidden,
    grad_hidden,
    # gradients of the centre's scale, shift and weight, and of the norm of hidden features, one
    # part for each program
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
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
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
    """Hidden features and their gradients, and what follows from them at the centre."""
    tile, batch = program(out_height, out_width, TILE_H, TILE_W)
    row, column = positions(tile, out_width, TILE_H, TILE_W, INDEX)
    valid = on_map(row, column, out_height, out_width)
    grad += start(grad_strides, batch, 0 * batch, GRAD)
    query += start(query_strides, batch, 0 * batch, QUERY)
    key += start(key_strides, batch, 0 * batch, KEY)
    value += start(value_strides, batch, 0 * batch, VALUE)
    grad_query += start(result_strides, batch, 0 * batch, RESULT)
    channel, feature = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M)
    index = channel.to(INDEX)
    q = read(query, query_strides, index, channels, row, column, valid, QUERY)
    h = _hidden(
        *(q, key, key_strides, gamma, row, column, valid, height, width, channels, hidden),
        *(WINDOW, KEY, BLOCK_R, BLOCK_M, DOT, PRECISION, INDEX),
    )
    scale = vector(gamma[3], feature, hidden)[None, :]
    normed = h * scale + vector(gamma[4], feature, hidden)[None, :]
    g = read_groups(
        grad, grad_strides, groups, depth, row, column, valid, GRAD, BLOCK_D, BLOCK_G, INDEX
    )
    grad_normed = tl.zeros((TILE_H * TILE_W, BLOCK_M), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        y, x = reflected(y, height), reflected(x, width)
        v = read_groups(
            value, value_strides, groups, depth, y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX
        )
        grad_alpha = tl.sum(g * v, 1).to(DOT)
        weight = _second_weight(gamma, tap, hidden, groups, BLOCK_M, BLOCK_G, DOT)
        grad_normed += tl.dot(grad_alpha, tl.trans(weight), input_precision=PRECISION)
    # positions beyond the map have gradients of zero
    grad_normed = tl.where(normed > 0, grad_normed, 0.0)
    grad_h = grad_normed * scale
    position = (batch.to(tl.int64) * out_height + row) * out_width + column
    offset = position[:, None] * hidden + feature[None, :]
    mask = valid[:, None] & (feature < hidden)[None, :]
    tl.store(active_hidden + offset, tl.maximum(normed, 0.0), mask=mask)
    tl.store(grad_hidden + offset, grad_h, mask=mask)
    # the centre is part of the first layer alone
    normed_q = _normed(q, gamma, 0, channels, BLOCK_R)
    weight = _first_weight(gamma, 0, channels, hidden, BLOCK_R, BLOCK_M, DOT)
    grad_q = tl.dot(grad_h.to(DOT), tl.trans(weight), input_precision=PRECISION)
    grad_q = tl.where(normed_q > 0, grad_q, 0.0)
    scaled = grad_q * vector(gamma[0], channel, channels)[None, :]
    write(grad_query, result_strides, index, channels, row, column, valid, scaled, RESULT)
    parts += tl.program_id(0).to(tl.int64) * (channels * (2 + hidden) + 2 * hidden)
    tl.store(parts + channel, tl.sum(grad_q * q, 0), mask=channel < channels)
    tl.store(parts + channels + channel, tl.sum(grad_q, 0), mask=channel < channels)
    active = tl.trans(tl.maximum(normed_q, 0.0).to(DOT))
    grad_weight = tl.dot(active, grad_h.to(DOT), input_precision=PRECISION)
    parts += 2 * channels
    write_matrix(parts, channel, feature, hidden, channels, hidden, grad_weight)
    parts += channels * hidden
    tl.store(parts + feature, tl.sum(grad_normed * h, 0), mask=feature < hidden)
    tl.store(parts + hidden + feature, tl.sum(grad_normed, 0), mask=feature < hidden)


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
    grad_strides,
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
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
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
    """Gradients of what gamma has for one tap."""
    taps: tl.constexpr = WINDOW[0] * WINDOW[1]
    tap, tile_group = tl.program_id(0) % taps, tl.program_id(0) // taps
    image_tiles = tl.cdiv(out_height, TILE_H) * tl.cdiv(out_width, TILE_W)
    channel, feature, group = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_G)
    first_weight = _first_weight(gamma, tap + 1, channels, hidden, BLOCK_R, BLOCK_M, DOT)
    scale = tl.zeros((BLOCK_R,), tl.float32)
    shift = tl.zeros((BLOCK_R,), tl.float32)
    weight1 = tl.zeros((BLOCK_R, BLOCK_M), tl.float32)
    weight2 = tl.zeros((BLOCK_M, BLOCK_G), tl.float32)
    bias = tl.zeros((BLOCK_G,), tl.float32)
    for item in range(tile_group, tile_count, tile_groups):
        batch = item // image_tiles
        row, column = positions(item % image_tiles, out_width, TILE_H, TILE_W, INDEX)
        valid = on_map(row, column, out_height, out_width)
        y, x = neighbour(row, column, tap // WINDOW[1], tap % WINDOW[1], WINDOW)
        y, x = reflected(y, height), reflected(x, width)
        k = read(
            *(key + start(key_strides, batch, 0 * batch, KEY), key_strides, channel.to(INDEX)),
            *(channels, y, x, valid, KEY),
        )
        v = read_groups(
            *(value + start(value_strides, batch, 0 * batch, VALUE), value_strides, groups, depth),
            *(y, x, valid, VALUE, BLOCK_D, BLOCK_G, INDEX),
        )
        g = read_groups(
            *(grad + start(grad_strides, batch, 0 * batch, GRAD), grad_strides, groups, depth),
            *(row, column, valid, GRAD, BLOCK_D, BLOCK_G, INDEX),
        )
        position = (batch.to(tl.int64) * out_height + row) * out_width + column
        offset = position[:, None] * hidden + feature[None, :]
        mask = valid[:, None] & (feature < hidden)[None, :]
        active = tl.load(active_hidden + offset, mask=mask, other=0.0).to(DOT)
        grad_h = tl.load(grad_hidden + offset, mask=mask, other=0.0).to(DOT)
        grad_alpha = tl.sum(g * v, 1)
        bias += tl.sum(grad_alpha, 0)
        weight2 += tl.dot(tl.trans(active), grad_alpha.to(DOT), input_precision=PRECISION)
        normed = _normed(k, gamma, tap + 1, channels, BLOCK_R)
        factor = tl.trans(tl.maximum(normed, 0.0).to(DOT))
        weight1 += tl.dot(factor, grad_h, input_precision=PRECISION)
        grad_k = tl.dot(grad_h, tl.trans(first_weight), input_precision=PRECISION)
        grad_k = tl.where(normed > 0, grad_k, 0.0)
        scale += tl.sum(grad_k * k, 0)
        shift += tl.sum(grad_k, 0)
    size: tl.constexpr = channels * (2 + hidden) + groups * (hidden + 1)
    parts += tl.program_id(0).to(tl.int64) * size
    tl.store(parts + channel, scale, mask=channel < channels)
    tl.store(parts + channels + channel, shift, mask=channel < channels)
    parts += 2 * channels
    write_matrix(parts, channel, feature, hidden, channels, hidden, weight1)
    parts += channels * hidden
    write_matrix(parts, feature, group, groups, hidden, groups, weight2)
    tl.store(parts + hidden * groups + group, bias, mask=group < groups)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def patchwise_key_kernel(
    grad,
    key,
    gamma,
    active_hidden,
    grad_hidden,
    # of all positions that outputs look at: (B, rows, columns, channels)
    grad_key,
    grad_value,
    grad_strides,
    key_strides,
    height,
    width,
    out_height,
    out_width,
    view_height,
    view_width,
    channels: tl.constexpr,
    hidden: tl.constexpr,
    groups: tl.constexpr,
    depth: tl.constexpr,
    WINDOW: tl.constexpr,
    GRAD: tl.constexpr,
    KEY: tl.constexpr,
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
    grad += start(grad_strides, batch, 0 * batch, GRAD)
    key += start(key_strides, batch, 0 * batch, KEY)
    channel, feature, group = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_G)
    k = read(
        *(key, key_strides, channel.to(INDEX), channels),
        *(reflected(row, height), reflected(column, width), valid, KEY),
    )
    grad_k = tl.zeros((P, BLOCK_R), tl.float32)
    grad_v = tl.zeros((P, BLOCK_D, BLOCK_G), tl.float32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        out_row, out_column, visible = viewer(
            row, column, tap // WINDOW[1], tap % WINDOW[1], out_height, out_width, WINDOW
        )
        visible = visible & valid
        position = (batch.to(tl.int64) * out_height + out_row) * out_width + out_column
        offset = position[:, None] * hidden + feature[None, :]
        mask = visible[:, None] & (feature < hidden)[None, :]
        active = tl.load(active_hidden + offset, mask=mask, other=0.0).to(DOT)
        weight = _second_weight(gamma, tap, hidden, groups, BLOCK_M, BLOCK_G, DOT)
        alpha = tl.dot(active, weight, input_precision=PRECISION)
        alpha += vector(gamma[6] + tap * groups, group, groups)[None, :]
        g = read_groups(
            *(grad, grad_strides, groups, depth, out_row, out_column, visible, GRAD),
            *(BLOCK_D, BLOCK_G, INDEX),
        )
        # outputs that do not exist have gradients of zero
        grad_v += alpha[:, None, :] * g
        grad_h = tl.load(grad_hidden + offset, mask=mask, other=0.0).to(DOT)
        weight = _first_weight(gamma, tap + 1, channels, hidden, BLOCK_R, BLOCK_M, DOT)
        grad_normed = tl.dot(grad_h, tl.trans(weight), input_precision=PRECISION)
        normed = _normed(k, gamma, tap + 1, channels, BLOCK_R)
        scale = vector(gamma[0] + (tap + 1) * channels, channel, channels)
        grad_k += tl.where(normed > 0, grad_normed, 0.0) * scale[None, :]
    position = (batch.to(tl.int64) * view_height + view_row) * view_width + view_column
    offset = position[:, None] * channels + channel[None, :]
    tl.store(grad_key + offset, grad_k, mask=valid[:, None] & (channel < channels)[None, :])
    d, group = tl.arange(0, BLOCK_D)[None, :, None], tl.arange(0, BLOCK_G)[None, None, :]
    offset = position[:, None, None] * (depth * groups) + d * groups + group
    mask = valid[:, None, None] & (d < depth) & (group < groups)
    tl.store(grad_value + offset, grad_v, mask=mask)


def _by_tap(gamma: Sequence[Tensor], channels: int) -> tuple[Tensor, ...]:
    """Return gamma with the centre and the taps, or the taps, in front."""
    scale1, shift1, weight1, scale2, shift2, weight2, bias2 = gamma
    hidden = weight1.shape[0]
    taps = scale1.shape[0] // channels - 1
    # the centre comes first, then the taps of each channel
    order = torch.arange(channels * (taps + 1), device=scale1.device)
    order = torch.cat([order[:channels], order[channels:].view(channels, taps).t().flatten()])
    weights = weight2.unflatten(0, (-1, taps)).permute(1, 2, 0)
    first = weight1[:, order].t()
    return dense(
        (
            *(scale1[order], shift1[order], first.view(taps + 1, channels, hidden)),
            *(scale2, shift2, weights, bias2.view(-1, taps).t()),
        )
    )


def _centre_and_taps(centre: Tensor, taps: Tensor) -> Tensor:
    """Return (R + R K, ...) of the gradients (R, ...) of the centre and (K, R, ...) of the taps."""
    return torch.cat([centre, taps.transpose(0, 1).flatten(0, 1)])


def _constants(
    query: Tensor, value: Tensor, gamma: Sequence[Tensor], window: Sequence[int], *maps: Tensor
) -> dict[str, Any]:
    """Return the compile-time constants of a launch, except for layouts.

    ``gamma`` comes by tap.
    """
    channels, (hidden, groups) = query.shape[1], gamma[5].shape[1:]
    depth = value.shape[1] // groups
    blocks = blocks_of(channels, hidden, groups, depth)
    return dict(
        channels=channels,
        hidden=hidden,
        groups=groups,
        depth=depth,
        **blocks,
        **types_of(window, (gamma[2], gamma[5]), *maps),
    )


def forward(
    query: Tensor, key: Tensor, value: Tensor, gamma: Sequence[Tensor], window: Sequence[int]
) -> Tensor:
    """See :func:`mmrednet.ops.vector_attention.definition`."""
    result = empty_in_layout_of(value, (*value.shape[:2], *query.shape[2:]), value.dtype)
    q, k, v, y = maps = [as_group(x) for x in (query, key, value, result)]
    gamma = _by_tap(gamma, query.shape[1])
    constants = _constants(query, value, gamma, window, *maps)
    launch(
        patchwise_kernel,
        len(query) * tiles(query.shape[2:], (constants['TILE_H'], constants['TILE_W'])),
        query.device,
        *(q, k, v, gamma, y),
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
    parameters: Sequence[Tensor],
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key, value and gamma."""
    channels, taps = query.shape[1], window[0] * window[1]
    gamma = _by_tap(parameters, channels)
    grad_query = empty_in_layout_of(query, query.shape, query.dtype)
    dy, q, k, v, dq = maps = [as_group(x) for x in (grad, query, key, value, grad_query)]
    constants = _constants(query, value, gamma, window, q, k, v, dy, dq)
    hidden, groups = constants['hidden'], constants['groups']
    constants |= dict(GRAD=layout(dy), KEY=layout(k))
    size, view = query.shape[2:], view_size(window, query.shape[2:])
    tile = constants['TILE_H'], constants['TILE_W']
    programs, device = len(query) * tiles(size, tile), query.device
    tile_groups = min(TILE_GROUPS, programs)
    numbers: dict[str, Any] = dict(dtype=torch.float32, device=device)
    features = torch.empty(2, len(query), *size, hidden, **numbers)
    centre_sizes = [channels, channels, channels * hidden, hidden, hidden]
    tap_sizes = [channels, channels, channels * hidden, hidden * groups, groups]
    centre_parts = torch.empty(programs, sum(centre_sizes), **numbers)
    tap_parts = torch.empty(tile_groups, taps, sum(tap_sizes), **numbers)
    sizes = (*key.shape[2:], *size)
    launch(
        patchwise_hidden_kernel,
        programs,
        device,
        *(dy, q, k, v, gamma, dq, *features, centre_parts),
        *map(strides, maps),
        *sizes,
        **dict(QUERY=layout(q), VALUE=layout(v), RESULT=layout(dq)),
        **constants,
    )
    launch(
        patchwise_weight_kernel,
        tile_groups * taps,
        device,
        *(dy, k, v, gamma, *features, tap_parts),
        *map(strides, (dy, k, v)),
        *(*sizes, tile_groups, programs),
        VALUE=layout(v),
        **constants,
    )
    grad_key, grad_value = (torch.empty(len(x), *view, x.shape[1], **numbers) for x in (key, value))
    launch(
        patchwise_key_kernel,
        len(query) * tiles(view, tile),
        device,
        *(dy, k, gamma, *features, grad_key, grad_value),
        *map(strides, (dy, k)),
        *(*sizes, *view),
        **constants,
    )
    centre = centre_parts.sum(0).split(centre_sizes)
    by_tap = tap_parts.sum(0).split(tap_sizes, 1)
    scale1, shift1 = (_centre_and_taps(centre[i], by_tap[i]) for i in (0, 1))
    weight1 = _centre_and_taps(
        centre[2].view(channels, hidden), by_tap[2].view(taps, channels, hidden)
    )
    weight2 = by_tap[3].view(taps, hidden, groups).permute(2, 0, 1).flatten(0, 1)
    grads = (scale1, shift1, weight1.t(), *centre[3:], weight2, by_tap[4].t().flatten())
    return (
        grad_query,
        folded(grad_key, key, window),
        folded(grad_value, value, window),
        *(like(part, parameter) for part, parameter in zip(grads, parameters, strict=True)),
    )
