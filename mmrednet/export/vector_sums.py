"""Vector attention and axial attention in standard operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Gamma, Window, axial
from ..ops.axial_definition import mix
from ..ops.vector_mapping import Options, chunk_features, norm_relu
from ..ops.vector_relations import PAIRWISE, reflected_rows
from .local_sums import TILE, involution
from .running_softmax import RunningSoftmax
from .tiles import Tiles


def vector_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight1: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> Tensor:
    """See :func:`mmrednet.ops.local_vector_attention`."""
    gamma = Gamma(scale1, shift1, weight1, scale2, shift2, weight2, bias2)
    options = Options(relation, patchwise, position_channels, list(window))
    compute = _patchwise if patchwise else _pairwise
    return compute(query, key, value, gamma, options)


def _inner(window: Window) -> Window:
    """Return a window over a map that reflection has continued."""
    return Window(window.kernel, window.stride, window.dilation, padding=0)


def _interleaved(x: Tensor, groups: int) -> Tensor:
    """Return (B, G, D, H, W) of (B, C, H, W), whose channel c belongs to group c % G."""
    return x.unflatten(1, (x.shape[1] // groups, groups)).transpose(1, 2)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 1x1 convolution of (B, F, ...) with a weight (O, F)."""
    return F.conv2d(x, weight[:, :, None, None], bias)


def _pairwise(query: Tensor, key: Tensor, value: Tensor, gamma: Gamma, options: Options) -> Tensor:
    """Compute the softmax over one row of taps after another."""
    window = _inner(Window.from_flat(options.window))
    height, width = query.shape[-2:]
    tiles = Tiles(window, TILE, width)
    groups = gamma.bias2.shape[0]
    keys = reflected_rows(key, Window.from_flat(options.window), (0, height))
    # channels are interleaved: with one more for each group, every group ends with ones
    ones = F.pad(_reflected(value, options, height), (0, 0, 0, 0, 0, groups), value=1.0)
    values = tiles.inputs(_interleaved(ones, groups))
    # (B, R + P, Ho * W', 1), with columns up to the end of the last tile
    centre = tiles.outputs(query.unsqueeze(1)).flatten(2, 4).squeeze(1).mT.unsqueeze(3)
    softmax = RunningSoftmax()
    for row in range(window.kernel[0]):
        neighbours = _tap_row(keys, row, height, tiles, taps_last=True).flatten(2, 3)
        features = _features(centre, neighbours, options)
        hidden = _convolve(norm_relu(features, gamma.scale1, gamma.shift1), gamma.weight1)
        hidden = norm_relu(hidden, gamma.scale2, gamma.shift2)
        logits = _convolve(hidden, gamma.weight2, gamma.bias2)
        logits = logits.unflatten(2, (height, tiles.count, tiles.size))
        softmax.add(
            logits,
            tiles.tap_row(values, row, height),
            # the exponentials are of taps alone, and become a band behind that
            lambda weights: tiles.band(tiles.spread(weights)),
        )
    result = tiles.join(softmax.result()[0])
    return result.transpose(1, 2).flatten(1, 2)


def _reflected(value: Tensor, options: Options, height: int) -> Tensor:
    return reflected_rows(value, Window.from_flat(options.window), (0, height))


def _features(centre: Tensor, neighbours: Tensor, options: Options) -> Tensor:
    """Return the features (B, F, L, Kw) of centres (B, R, L, 1) and neighbours (B, R, L, Kw)."""
    relation = PAIRWISE[options.relation]
    if options.position_channels == 0:
        return relation.features(centre, neighbours)
    channels = centre.shape[1] - options.position_channels
    content = relation.features(centre[:, :channels], neighbours[:, :channels])
    return torch.cat([content, centre[:, channels:] - neighbours[:, channels:]], 1)


def _tap_row(keys: Tensor, row: int, height: int, tiles: Tiles, *, taps_last: bool) -> Tensor:
    """Return what all outputs see through one row of taps.

    Args:
        keys: Map (B, R, H', W') that reflection has continued.
        row: Number of the row of taps.
        height: Number Ho of rows of outputs.
        tiles: Tiles of the outputs.
        taps_last: If True, return (B, R, Ho, tiles * T, Kw), else (B, R, Kw, Ho, Wo).
    """
    window = tiles.window
    rows = tiles.tap_row(keys, row, height)
    tap = torch.arange(window.kernel[1], device=keys.device) * window.dilation[1]
    count = tiles.count * tiles.size if taps_last else tiles.columns
    start = torch.arange(count, device=keys.device) * window.stride[1]
    if taps_last:
        # a column beyond the last output sees any column of the map
        index = (start[:, None] + tap).clamp(max=keys.shape[3] - 1)
        return rows.index_select(3, index.flatten()).unflatten(3, (count, window.kernel[1]))
    index = tap[:, None] + start
    by_tap = rows.index_select(3, index.flatten()).unflatten(3, (window.kernel[1], count))
    return by_tap.transpose(2, 3)


def _patchwise(query: Tensor, key: Tensor, value: Tensor, gamma: Gamma, options: Options) -> Tensor:
    """Compute the hidden features of all patches, which generate weights as in involution."""
    inner = _inner(Window.from_flat(options.window))
    height = query.shape[2]
    hidden = _hidden(query, key, gamma, options)
    hidden = norm_relu(hidden, gamma.scale2, gamma.shift2)
    groups = gamma.bias2.shape[0] // inner.taps
    reflected = _interleaved(_reflected(value, options, height), groups)
    # from here on it is involution, whose generator has been given other features
    result = involution(reflected, hidden, gamma.weight2, gamma.bias2, list(inner))
    return result.transpose(1, 2).flatten(1, 2)


def _hidden(query: Tensor, key: Tensor, gamma: Gamma, options: Options) -> Tensor:
    """Return the hidden features (B, M, Ho, Wo), before their norm.

    Those of each row of taps are added up. All products of two neighbours are computed together.
    """
    height, width = query.shape[-2:]
    if options.relation == 'clique_product':
        features = chunk_features(query, key, options, (0, height))
        features = norm_relu(features, gamma.scale1, gamma.shift1)
        return _convolve(features, gamma.weight1).squeeze(2).unflatten(2, (height, width))
    window = Window.from_flat(options.window)
    tiles = Tiles(_inner(window), TILE, width)
    keys = reflected_rows(key, window, (0, height))
    is_star = options.relation == 'star_product'
    first = 0 if is_star else query.shape[1]
    # (M, R, Kh, Kw), and no R of a star product
    shape = (1 if is_star else query.shape[1], *window.kernel)
    weights = gamma.weight1[:, first:].unflatten(1, shape)
    scales, shifts = (x[first:].unflatten(0, shape) for x in (gamma.scale1, gamma.shift1))
    total = None
    if first:
        centre = norm_relu(query, gamma.scale1[:first], gamma.shift1[:first])
        total = _convolve(centre, gamma.weight1[:, :first])
    for row in range(window.kernel[0]):
        features = _tap_row(keys, row, height, tiles, taps_last=False)
        if is_star:
            features = (features * query.unsqueeze(2)).sum(1, keepdim=True)
        scale, shift = scales[:, row].flatten(), shifts[:, row].flatten()
        features = norm_relu(features.flatten(1, 2), scale, shift)
        part = _convolve(features, weights[:, :, row].flatten(1))
        total = part if total is None else total + part
    assert total is not None
    return total


def axial_attention(
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    position_scale: Tensor | None,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Tensor:
    """See :func:`mmrednet.ops.axial.attention`. The weights of all lines are stored."""
    query, key, value = axial.rows(lines, key_channels)
    options = (list(terms), span, value_position)
    mixed = mix(query, key, value, relative, scale, shift, *options)
    if position_scale is not None:
        content, position = mixed.unbind(3)
        mixed = content + position * position_scale[:, :, None]
    else:
        mixed = mixed.flatten(2, 3)
    return axial.maps(mixed, lines)
