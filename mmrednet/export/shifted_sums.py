"""Attention over shifted windows in standard operators: see tiles.py.

At the border windows move inwards, so that the taps of a tile are no band of a fixed form. What an
output adds to the logit of a column of its tile is looked up in a table, by the place of the output
in its window and by the tap that the column is. Columns that are no tap have the logit LOWEST.

With a dilation d, all outputs of a tile lie at the same position modulo d. The columns that a tile
sees are as few as without one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Window
from ..ops._torch import shifted_axis
from .running_softmax import LOWEST, RunningSoftmax

# Columns of a tile. Each entry of a matrix takes an exponential, see attention_sums.py.
TILE = 8


class ShiftedTiles:
    """How the outputs of shifted windows are cut into tiles.

    Args:
        window: Window with the border 'shift'.
        size: Number T of outputs of a tile.
        height: Number H of rows of the map.
        columns: Number W of columns of the map.
        device: Device of the map.
    """

    def __init__(
        self, window: Window, size: int, height: int, columns: int, device: torch.device
    ) -> None:
        self.size, self.dilation = size, window.dilation[1]
        self.rows, self.row_places = shifted_axis(window, 0, height, device)
        by_tap, places = shifted_axis(window, 1, columns, device)
        # columns of the map that a tile sees: one more for each further output
        self.width = size + window.kernel[1] - 1
        # outputs of one residue, rounded up to whole tiles
        longest = (columns + self.dilation - 1) // self.dilation
        self.reach = (longest + size - 1) // size * size
        residue = torch.arange(self.dilation, device=device)
        output = residue[:, None] + torch.arange(self.reach, device=device) * self.dilation
        # outputs beyond the last column are computed like the last one, and dropped by `join`
        self.order = output.flatten().clamp(max=columns - 1)
        self.back = self._order_of(torch.arange(columns, device=device))
        start = by_tap[0].index_select(0, self.order).unflatten(0, (-1, size))
        self.columns = self._seen(start[:, :1]).clamp(max=columns - 1)
        self.entries = self._entries(start, places, window.kernel[1])

    def _order_of(self, column: Tensor) -> Tensor:
        """Return where the outputs of tiles have a column of the map."""
        return column % self.dilation * self.reach + column // self.dilation

    def _seen(self, start: Tensor) -> Tensor:
        """Return the columns (tiles, L) of windows that start at (tiles, 1) and to their right."""
        return start + torch.arange(self.width, device=start.device) * self.dilation

    def _entries(self, start: Tensor, places: Tensor, kernel: int) -> Tensor:
        """Return the entry of a table (places * taps + 1) for each column of each output.

        Args:
            start: First column (tiles, T) of the windows of all outputs.
            places: Place (W,) of each column in its window.
            kernel: Number of taps of a row. The last entry is for columns that are no tap.

        Returns:
            (tiles * T * L,).
        """
        distance = self._seen(start[:, :1])[:, None] - start[:, :, None]
        tap = distance // self.dilation
        place = places.index_select(0, self.order).unflatten(0, (-1, self.size))
        is_tap = (distance >= 0) & (tap < kernel)
        return torch.where(is_tap, place[:, :, None] * kernel + tap, kernel * kernel).flatten()

    def inputs(self, x: Tensor) -> Tensor:
        """Return the columns (B, N, H, tiles, L, D) that tiles see of (B, N, D, H, W)."""
        seen = x.permute(0, 1, 3, 4, 2).index_select(3, self.columns.flatten())
        return seen.unflatten(3, (-1, self.width))

    def tap_row(self, tiles: Tensor, row: int) -> Tensor:
        """Return what all rows of outputs see of :meth:`inputs` through one row of taps."""
        return tiles.index_select(2, self.rows[row])

    def outputs(self, x: Tensor) -> Tensor:
        """Return a map (B, N, D, H, W) as tiles of outputs (B, N, H, tiles, T, D)."""
        return x.permute(0, 1, 3, 4, 2).index_select(3, self.order).unflatten(3, (-1, self.size))

    def join(self, tiles: Tensor) -> Tensor:
        """Return the map (B, N, D, H, W) of tiles (B, N, H, tiles, T, D)."""
        return tiles.flatten(3, 4).index_select(3, self.back).permute(0, 1, 4, 2, 3)

    def biases(self, table: Tensor) -> Tensor:
        """Return what a row of taps adds to the logits: (N, H, tiles, T, L).

        Args:
            table: Biases (N, Kh, Kw, Kw): places of the row, then places and taps of the column.
        """
        entries = F.pad(table.flatten(2), (0, 1), value=LOWEST)
        by_row = entries.index_select(1, self.row_places)
        added = by_row.index_select(2, self.entries)
        return added.unflatten(2, (-1, self.size, self.width))


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Window
) -> tuple[Tensor, Tensor]:
    """See :func:`mmrednet.ops.local_attention`; the second result is the logarithm of the sum.

    Args:
        query: Tensor (B, N, D, H, W).
        key: Tensor (B, N, D, H, W).
        value: Tensor (B, N, Dv, H, W).
        bias: Tensor (N, K * K) of :func:`mmrednet.ops.attention.bias_by_place`, or None.
        window: Window with the border 'shift'.
    """
    rows, columns = window.kernel
    height, width = query.shape[-2:]
    if bias is None:
        bias = query.new_zeros(1, window.taps**2)
    tables = bias.unflatten(1, (rows, columns, rows, columns))
    tiles = ShiftedTiles(window, TILE, height, width, query.device)
    queries, keys = tiles.outputs(query), tiles.inputs(key)
    values = tiles.inputs(F.pad(value, (0, 0, 0, 0, 0, 1), value=1.0))
    softmax = RunningSoftmax()
    for row in range(rows):
        logits = queries @ tiles.tap_row(keys, row).mT + tiles.biases(tables[:, :, :, row])
        softmax.add(logits, tiles.tap_row(values, row))
    result, logsumexp = softmax.result()
    return tiles.join(result), tiles.join(logsumexp).squeeze(2)
