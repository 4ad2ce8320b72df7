"""Features of patches and gamma's two layers of them, by tap.

gamma is a tuple of scale, shift and weight of the first layer, with the centre, part 0, and the
taps, parts 1 to K, in front; of scale and shift of hidden features; and of weight and bias of the
second layer, with the taps in front.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .vector_folds import dense
from .vector_tiles import matrix, read, reflected_neighbour, vector


@triton.jit
def normed_part(x, gamma, part, CONFIG: tl.constexpr):
    """Return normed features [P, R] of the centre or of a tap."""
    channel = tl.arange(0, CONFIG.block_channels)
    scale = vector(gamma[0] + part * CONFIG.channels, channel, CONFIG.channels)
    shift = vector(gamma[1] + part * CONFIG.channels, channel, CONFIG.channels)
    return x * scale[None, :] + shift[None, :]


@triton.jit
def first_weight(gamma, part, CONFIG: tl.constexpr):
    """Return the first layer's weight [R, M] of the centre or of a tap."""
    channel = tl.arange(0, CONFIG.block_channels)
    feature = tl.arange(0, CONFIG.block_hidden)
    channels: tl.constexpr = CONFIG.channels
    hidden: tl.constexpr = CONFIG.hidden
    first = gamma[2] + part * (channels * hidden)
    return matrix(first, channel, feature, hidden, 1, channels, hidden).to(CONFIG.dot)


@triton.jit
def second_weight(gamma, tap, CONFIG: tl.constexpr):
    """Return the second layer's weight [M, G] of a tap."""
    feature = tl.arange(0, CONFIG.block_hidden)
    group = tl.arange(0, CONFIG.block_groups)
    hidden: tl.constexpr = CONFIG.hidden
    groups: tl.constexpr = CONFIG.groups
    first = gamma[5] + tap * (hidden * groups)
    return matrix(first, feature, group, groups, 1, hidden, groups).to(CONFIG.dot)


@triton.jit
def hidden_part(x, gamma, part, CONFIG: tl.constexpr):
    """Return what the centre or a tap adds to the hidden features [P, M]."""
    active = tl.maximum(normed_part(x, gamma, part, CONFIG), 0.0).to(CONFIG.dot)
    weight = first_weight(gamma, part, CONFIG)
    return tl.dot(active, weight, input_precision=CONFIG.precision)


@triton.jit
def hidden_of_patches(query, key, gamma, row, column, valid, CONFIG: tl.constexpr):
    """Return the hidden features [P, M] of patches, before their norm."""
    channel = tl.arange(0, CONFIG.block_channels).to(CONFIG.index)
    q = read(query, channel, CONFIG.channels, row, column, valid, CONFIG.query_layout)
    h = hidden_part(q, gamma, 0, CONFIG)
    for tap in range(CONFIG.taps):
        y, x = reflected_neighbour(row, column, tap, key, CONFIG)
        k = read(key, channel, CONFIG.channels, y, x, valid, CONFIG.key_layout)
        h += hidden_part(k, gamma, tap + 1, CONFIG)
    return h


@triton.jit
def tap_weights(active_hidden, gamma, tap, CONFIG: tl.constexpr):
    """Return the weights [P, G] of the neighbours of a tap."""
    group = tl.arange(0, CONFIG.block_groups)
    weight = second_weight(gamma, tap, CONFIG)
    alpha = tl.dot(active_hidden.to(CONFIG.dot), weight, input_precision=CONFIG.precision)
    return alpha + vector(gamma[6] + tap * CONFIG.groups, group, CONFIG.groups)[None, :]


@triton.jit
def part_gradients(normed, grad_h, gamma, part, CONFIG: tl.constexpr):
    """Return the gradients [P, R] of the normed features of the centre or of a tap."""
    weight = tl.trans(first_weight(gamma, part, CONFIG))
    grad = tl.dot(grad_h.to(CONFIG.dot), weight, input_precision=CONFIG.precision)
    return tl.where(normed > 0, grad, 0.0)


@triton.jit
def part_weight_gradients(normed, grad_h, CONFIG: tl.constexpr):
    """Return the gradients [R, M] of the first layer's weight of the centre or of a tap."""
    factor = tl.trans(tl.maximum(normed, 0.0).to(CONFIG.dot))
    return tl.dot(factor, grad_h.to(CONFIG.dot), input_precision=CONFIG.precision)


def features_by_tap(x: Tensor, channels: int) -> Tensor:
    """Return numbers of features (R + R K, ...) as (K + 1, R, ...), the centre in front.

    In the first layer the taps of each channel follow each other.
    """
    taps = x[channels:].unflatten(0, (channels, -1)).transpose(0, 1)
    return torch.cat([x[None, :channels], taps])


def first_layer_by_tap(layer: Sequence[Tensor], channels: int) -> tuple[Tensor, ...]:
    """Return scale, shift and weight of the first layer with the centre and the taps in front."""
    scale, shift, weight = layer
    return dense(features_by_tap(x, channels) for x in (scale, shift, weight.t()))


def gamma_by_tap(gamma: Sequence[Tensor], channels: int) -> tuple[Tensor, ...]:
    """Return gamma with the centre and the taps, or the taps, in front."""
    scale1, shift1, weight1, scale2, shift2, weight2, bias2 = gamma
    taps = len(scale1) // channels - 1
    weights = weight2.unflatten(0, (-1, taps)).permute(1, 2, 0)
    second = dense((scale2, shift2, weights, bias2.view(-1, taps).t()))
    return (*first_layer_by_tap((scale1, shift1, weight1), channels), *second)


def centre_and_taps(centre: Tensor, taps: Tensor) -> Tensor:
    """Return (R + R K, ...) of the gradients (R, ...) of the centre and (K, R, ...) of the taps."""
    return torch.cat([centre, taps.transpose(0, 1).flatten(0, 1)])
