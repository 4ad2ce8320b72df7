"""Channels in groups, and without them."""

from __future__ import annotations

from torch import Tensor


def join_groups(x: Tensor) -> Tensor:
    """Return (B, G, D, H, W) as (B, G * D, H, W), a view if the layout allows one.

    It is ``x.flatten(1, 2)``, with strides that show the layout. Flattening the dimensions beside
    the batch may give a batch of one any stride, and torch would take the map for contiguous.
    """
    return x.permute(0, 3, 4, 1, 2).flatten(3).movedim(-1, 1)
