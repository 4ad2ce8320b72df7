"""Sums over a window as products of small matrices, which every runtime has.

A row of outputs is cut into tiles of T columns. Through one row of taps, a tile sees L = stride *
(T - 1) + dilation * (Kw - 1) + 1 columns of the input. The sum over these taps is the product of a
T x L matrix, which is zero off a band, and the L columns. Only the L columns of each tile and the
matrices of one row of taps are stored, where an unfolded input has all taps of all positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Window


class Tiles:
    """How the outputs of a window are cut into tiles.

    Args:
        window: Window over the map.
        size: Number T of outputs of a tile.
        columns: Number Wo of outputs of a row.
    """

    def __init__(self, window: Window, size: int, columns: int) -> None:
        if window.border != 'zero':
            raise ValueError(
                f"windows with border='zero' alone have a portable form, got {window.border!r}."
            )
        self.window, self.size, self.columns = window, size, columns
        self.count = (columns + size - 1) // size
        reach = window.dilation[1] * (window.kernel[1] - 1) + 1
        # columns of the input that a tile sees
        self.width = window.stride[1] * (size - 1) + reach
        # a band is made of rows of this length, see `band`
        self.row_length = self.width + window.stride[1]

    def inputs(self, x: Tensor, *, fill: float = 0.0) -> Tensor:
        """Return the columns (B, G, H + padding, tiles, L, D) that tiles see of (B, G, D, H, W).

        Args:
            x: The map.
            fill: Value outside of the map.
        """
        rows, columns = self.window.padding
        # the last tile may reach beyond the last output
        extra = columns + self.window.stride[1] * (self.size - 1)
        pads = (0, 0, columns, extra, rows, rows)
        return self.gather(F.pad(x.permute(0, 1, 3, 4, 2), pads, value=fill))

    def gather(self, padded: Tensor) -> Tensor:
        """Return the columns of all tiles of a padded map (B, G, H', W', D)."""
        step = self.window.stride[1] * self.size
        first = torch.arange(self.count, device=padded.device) * step
        index = first[:, None] + torch.arange(self.width, device=padded.device)
        tiles = padded.index_select(3, index.flatten())
        return tiles.unflatten(3, (self.count, self.width))

    def tap_row(self, tiles: Tensor, row: int, outputs: int) -> Tensor:
        """Return what all rows of outputs see through one row of taps.

        Args:
            tiles: The result of :meth:`inputs`.
            row: Number of the row of taps.
            outputs: Number Ho of rows of outputs.
        """
        first, stride = row * self.window.dilation[0], self.window.stride[0]
        if stride == 1:
            return tiles.narrow(2, first, outputs)
        # not a slice, whose end would depend on the size of the map
        index = torch.arange(outputs, device=tiles.device) * stride + first
        return tiles.index_select(2, index)

    def spread(self, taps: Tensor, fill: float = 0.0) -> Tensor:
        """Return a row of taps (..., Kw) as a row of a band: (..., L + stride).

        Args:
            taps: One entry for each tap of a row.
            fill: Value off the band.
        """
        step = self.window.dilation[1]
        if step > 1:
            taps = F.pad(taps.unsqueeze(-1), (0, step - 1), value=fill).flatten(-2)
        # negative where the zeros behind the last tap are too many
        return F.pad(taps, (0, self.row_length - taps.shape[-1]), value=fill)

    def band(self, rows: Tensor) -> Tensor:
        """Return the matrices (..., T, L) of rows (..., T, L + stride) that :meth:`spread` made.

        Rows of L + stride entries, read as rows of L, move by the stride against the row above.
        """
        flat = rows.flatten(-2)[..., : self.size * self.width]
        return flat.unflatten(-1, (self.size, self.width))

    def taps(self, matrices: Tensor) -> Tensor:
        """Return the entries (..., T, Kw) of the band of matrices (..., T, L)."""
        stride, step = self.window.stride[1], self.window.dilation[1]
        flat = F.pad(matrices.flatten(-2), (0, self.size * stride))
        rows = flat.unflatten(-1, (self.size, self.row_length))
        return rows[..., : step * (self.window.kernel[1] - 1) + 1 : step]

    def outputs(self, x: Tensor, *, fill: float = 0.0, ones: bool = False) -> Tensor:
        """Return a map (B, G, D, Ho, Wo) at the outputs, as tiles (B, G, Ho, tiles, T, D).

        Args:
            x: The map.
            fill: Value beyond the last output.
            ones: If True, a channel of ones is appended, and ``fill`` must be 1.
        """
        pads = (0, int(ones), 0, self.size - 1)
        padded = F.pad(x.permute(0, 1, 3, 4, 2), pads, value=fill)
        return padded.narrow(3, 0, self.count * self.size).unflatten(3, (self.count, self.size))

    def join(self, tiles: Tensor) -> Tensor:
        """Return the map (B, G, D, Ho, Wo) of tiles (B, G, Ho, tiles, T, D)."""
        return tiles.flatten(3, 4).narrow(3, 0, self.columns).permute(0, 1, 4, 2, 3)
