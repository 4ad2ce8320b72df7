"""Local attention in standard operators: see tiles.py.

The softmax is taken over one row of taps after another: see running_softmax.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Window
from . import shifted_sums
from .running_softmax import LOWEST, RunningSoftmax
from .tiles import Tiles

# Columns of a tile, see local_sums.py. Each entry of a matrix takes an exponential, so that fewer
# entries off the band are better.
TILE = 8


def _key_tiles(key: Tensor, tiles: Tiles) -> Tensor:
    """Return keys (B, N, H', tiles, L, D + 1). The last channel is LOWEST outside of the map.

    Its product with a one that every query has masks taps outside of the map.
    """
    rows, columns = tiles.window.padding
    extra = columns + tiles.window.stride[1] * (tiles.size - 1)
    pads = (columns, extra, rows, rows)
    mask = F.pad(torch.zeros_like(key[:, :, :1]), pads, value=LOWEST)
    padded = torch.cat([F.pad(key, pads), mask], 2)
    return tiles.gather(padded.permute(0, 1, 3, 4, 2))


def _value_tiles(value: Tensor, tiles: Tiles) -> Tensor:
    """Return values (B, N, H', tiles, L, D + 1). The last channel is ones."""
    ones = F.pad(value, (0, 0, 0, 0, 0, 1), value=1.0)
    return tiles.inputs(ones)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See :func:`mmrednet.ops.local_attention`; the second result is the logarithm of the sum."""
    fields = Window.from_flat(window)
    if fields.border == 'shift':
        return shifted_sums.attention(query, key, value, bias, fields)
    height, width = query.shape[-2:]
    tiles = Tiles(fields, TILE, width)
    queries = tiles.outputs(query, fill=1.0, ones=True)
    keys, values = _key_tiles(key, tiles), _value_tiles(value, tiles)
    softmax = RunningSoftmax()
    for row in range(fields.kernel[0]):
        logits = queries @ tiles.tap_row(keys, row, height).mT
        tap_bias = _bias_row(bias, row, tiles)
        if rows is not None and columns is not None:
            table = _relative_table(rows, columns, tap_bias, row, tiles)
            # (B, N, Ho, tiles, T, L + stride)
            relative = queries.flatten(2, 4) @ table
            relative = relative.unflatten(2, (height, tiles.count, tiles.size))
            logits = logits + tiles.band(relative)
        else:
            logits = logits + _bias_band(tap_bias, query, tiles)
        softmax.add(logits, tiles.tap_row(values, row, height))
    result, logsumexp = softmax.result()
    return tiles.join(result), tiles.join(logsumexp).squeeze(2)


def _bias_row(bias: Tensor | None, row: int, tiles: Tiles) -> Tensor | None:
    """Return the biases (N, Kw) of a row of taps, or None."""
    if bias is None:
        return None
    return bias.unflatten(1, tiles.window.kernel)[:, row]


def _relative_table(
    rows: Tensor, columns: Tensor, bias: Tensor | None, row: int, tiles: Tiles
) -> Tensor:
    """Return (N, D + 1, L + stride): the embeddings of a row of taps, as a row of a band.

    The last channel, which multiplies ones, is the bias, and LOWEST off the band.
    """
    embeddings = torch.cat([rows[:, :, row : row + 1].expand_as(columns), columns], 1)
    if bias is None:
        bias = torch.zeros_like(columns[:, 0])
    return torch.cat([tiles.spread(embeddings), tiles.spread(bias[:, None], LOWEST)], 1)


def _bias_band(bias: Tensor | None, query: Tensor, tiles: Tiles) -> Tensor:
    """Return the biases (N, 1, 1, T, L) of a row of taps, LOWEST off the band."""
    if bias is None:
        bias = query.new_zeros(1, tiles.window.kernel[1])
    rows = tiles.spread(bias, LOWEST)[:, None, None, None].expand(-1, 1, 1, tiles.size, -1)
    return tiles.band(rows)


def difference_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """See :func:`mmrednet.ops.local_difference_attention`."""
    fields = Window.from_flat(window)
    height, width = query.shape[-2:]
    tiles = Tiles(fields, TILE, width)
    queries = tiles.outputs(query)
    keys, values = _key_tiles(key, tiles), _value_tiles(value, tiles)
    softmax = RunningSoftmax()
    for row in range(fields.kernel[0]):
        key_row = tiles.tap_row(keys, row, height).mT
        # the last channel masks taps outside of the map
        logits = key_row[..., -1:, :] + _bias_band(_bias_row(bias, row, tiles), query, tiles)
        for channel in range(query.shape[2]):
            one = slice(channel, channel + 1)
            logits = logits - (queries[..., one] - key_row[..., one, :]).abs()
        softmax.add(logits, tiles.tap_row(values, row, height))
    return tiles.join(softmax.result()[0])
