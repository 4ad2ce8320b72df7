"""The primitives and involution in standard operators: see tiles.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Window
from ..ops.involution import finish
from .tiles import Tiles

# Columns of a tile. A smaller tile stores more columns in relation to its outputs, L for T of them.
# A larger one has larger matrices with more zeros: L entries of a row, of which the taps are not
# zero. With 16, no tensor is twice as large as the input for windows up to 15 x 15.
TILE = 16
# Columns of a tile whose matrices are generated. With 9, the row of a band of 7 taps has 16
# entries, which a processor multiplies at once, and no tensor is twice as large as the input.
GENERATED_TILE = 9


def aggregate(value: Tensor, weight: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_aggregate`."""
    fields = Window.from_flat(window)
    height, width = weight.shape[-2:]
    tiles = Tiles(fields, TILE, width)
    inputs = tiles.inputs(value)
    by_row = weight.unflatten(2, fields.kernel)
    total = None
    for row in range(fields.kernel[0]):
        matrices = tiles.band(tiles.spread(tiles.outputs(by_row[:, :, row])))
        part = matrices @ tiles.tap_row(inputs, row, height)
        total = part if total is None else total + part
    assert total is not None
    return tiles.join(total)


def correlate(query: Tensor, key: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_correlate`."""
    fields = Window.from_flat(window)
    height, width = query.shape[-2:]
    tiles = Tiles(fields, TILE, width)
    queries, keys = tiles.outputs(query), tiles.inputs(key)
    rows = []
    for row in range(fields.kernel[0]):
        products = queries @ tiles.tap_row(keys, row, height).mT
        rows.append(tiles.join(tiles.taps(products)))
    return torch.cat(rows, 2)


def involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """See :func:`mmrednet.ops.local_involution`.

    The kernels of one row of taps are generated at a time, with the zeros off the band: these are
    further outputs of the generator whose weights are zero.
    """
    fields = Window.from_flat(window)
    height, width = hidden.shape[-2:]
    tiles = Tiles(fields, GENERATED_TILE, width)
    inputs = tiles.inputs(value)
    # a channel of ones multiplies the bias
    features = tiles.outputs(hidden.unsqueeze(1), fill=1.0, ones=True).flatten(2, 4)
    generators = _generators(weight, bias, value.shape[1], tiles)
    total = None
    for row in range(fields.kernel[0]):
        # (B, G, Ho * tiles * T, L + stride)
        rows = features @ generators[row]
        rows = rows.unflatten(2, (height, tiles.count, tiles.size))
        part = tiles.band(rows) @ tiles.tap_row(inputs, row, height)
        total = part if total is None else total + part
    assert total is not None
    return tiles.join(total)


def _generators(weight: Tensor, bias: Tensor | None, groups: int, tiles: Tiles) -> list[Tensor]:
    """Return for each row of taps the matrices (G, R + 1, L + stride) that generate a band."""
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    taps = torch.cat([weight, bias[:, None]], 1).unflatten(0, (groups, *tiles.window.kernel))
    return list(tiles.spread(taps.permute(1, 0, 3, 2)).unbind(0))


def involution_affine(
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    window: Sequence[int],
) -> Tensor:
    """See :func:`mmrednet.ops.local_involution`: with a norm and a ReLU behind it."""
    return finish(involution(value, hidden, weight, bias, window), scale, shift, relu)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
) -> Tensor:
    """See :func:`mmrednet.ops.depthwise_conv2d`."""
    pads, steps = list(padding), list(dilation)
    result = F.conv2d(x, weight, bias, padding=pads, dilation=steps, groups=weight.shape[0])
    return F.gelu(result) if gelu else result
