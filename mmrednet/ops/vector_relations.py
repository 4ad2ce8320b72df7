"""Relations between the centre of a window and its neighbours, with reflection at the border.

Vector attention (Zhao et al., CVPR 2020) maps these features to weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .window import Window


class Relation(NamedTuple):
    """A relation delta between the centre of a window and its neighbours.

    Args:
        features: Maps the query (B, R, 1, L) and the keys (B, R, K, L) to features: (B, F, K, L) of
            every neighbour, or (B, F, 1, L) of the whole patch.
        feature_count: Maps R and K to the number of features F.
    """

    features: Callable[[Tensor, Tensor], Tensor]
    feature_count: Callable[[int, int], int]


def _concatenate_pair(query: Tensor, keys: Tensor) -> Tensor:
    return torch.cat([query.expand_as(keys), keys], 1)


def _concatenate_patch(query: Tensor, keys: Tensor) -> Tensor:
    return torch.cat([query.squeeze(2), keys.flatten(1, 2)], 1).unsqueeze(2)


def _clique_product(query: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum('brjl,brkl->bjkl', keys, keys).flatten(1, 2).unsqueeze(2)


PAIRWISE = {
    'subtraction': Relation(lambda query, keys: query - keys, lambda r, k: r),
    'summation': Relation(lambda query, keys: query + keys, lambda r, k: r),
    'concatenation': Relation(_concatenate_pair, lambda r, k: 2 * r),
    'hadamard': Relation(lambda query, keys: query * keys, lambda r, k: r),
    'dot_product': Relation(
        lambda query, keys: (query * keys).sum(1, keepdim=True), lambda r, k: 1
    ),
}
PATCHWISE = {
    'concatenation': Relation(_concatenate_patch, lambda r, k: r * (k + 1)),
    'star_product': Relation(
        lambda query, keys: (query * keys).sum(1).unsqueeze(2), lambda r, k: k
    ),
    'clique_product': Relation(_clique_product, lambda r, k: k * k),
}


def find_relation(name: str, patchwise: bool) -> Relation:
    """Return a relation by its name.

    Args:
        name: Name of the relation.
        patchwise: If True, the relation is one of a whole patch.

    Raises:
        ValueError: There is no such relation.
    """
    relations = PATCHWISE if patchwise else PAIRWISE
    if name not in relations:
        raise ValueError(f'relation must be one of {list(relations)}, got {name!r}.')
    return relations[name]


def _reflect(position: Tensor, length: int) -> Tensor:
    """Return positions that lie beyond the ends of an axis, reflected at the ends.

    Positions far beyond an end are reflected again and again, which ``F.pad`` does not do.
    """
    if length == 1:
        return torch.zeros_like(position)
    # a tensor: of a symbolic number ONNX takes no remainder
    period = position.new_full((), 2 * (length - 1))
    phase = position % period
    return torch.minimum(phase, period - phase)


def _reflected_taps(window: Window, axis: int, length: int, outputs: Tensor) -> Tensor:
    """Return the reflected positions (taps, outputs) of the taps along an axis.

    Args:
        window: Window over the map.
        axis: Axis of the map, 0 for rows and 1 for columns.
        length: Length of the map along the axis.
        outputs: Indices of outputs along the axis.
    """
    tap = torch.arange(window.kernel[axis], device=outputs.device)
    start = outputs * window.stride[axis] - window.padding[axis]
    return _reflect(start + window.dilation[axis] * tap[:, None], length)


def reflected_rows(x: Tensor, window: Window, rows: tuple[int, int]) -> Tensor:
    """Continue a map (B, C, H, W) by reflection, and return what some rows of outputs look at.

    Args:
        x: The map.
        window: Window over the map.
        rows: First row of the outputs, and the end of their rows.
    """
    first, last = rows[0] * window.stride[0], (rows[1] - 1) * window.stride[0]
    reach = window.dilation[0] * (window.kernel[0] - 1)
    row = torch.arange(first, last + reach + 1, device=x.device) - window.padding[0]
    padding = window.padding[1]
    column = torch.arange(-padding, x.shape[3] + padding, device=x.device)
    row_index, column_index = _reflect(row, x.shape[2]), _reflect(column, x.shape[3])
    return x.index_select(2, row_index).index_select(3, column_index)


def neighbours(x: Tensor, window: Window, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the neighbours (B, C, K, L) of L outputs on a map (B, C, H, W).

    Args:
        x: The map.
        window: Window over the map.
        rows: Rows of the outputs.
        columns: Columns of the outputs. The outputs are at all pairs of a row and a column.
    """
    row_index = _reflected_taps(window, 0, x.shape[2], rows)
    column_index = _reflected_taps(window, 1, x.shape[3], columns)
    by_row = x.index_select(2, row_index.flatten()).unflatten(2, (window.kernel[0], -1))
    both = by_row.index_select(4, column_index.flatten()).unflatten(4, (window.kernel[1], -1))
    # (B, C, tap row, row, tap column, column)
    return both.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def features(
    query: Tensor,
    key: Tensor,
    relation: Relation,
    position_channels: int,
    window: Window,
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    """Return what gamma sees: (B, F, K, L), or (B, F, 1, L) of a whole patch.

    Args:
        query: Tensor (B, R + P, Ho, Wo).
        key: Tensor (B, R + P, H, W).
        relation: Relation of the first R channels.
        position_channels: Number P of channels, the last ones, of which the difference is taken.
        window: Window over the map.
        rows: Rows of the outputs.
        columns: Columns of the outputs.
    """
    centre = query.index_select(2, rows).index_select(3, columns).flatten(2).unsqueeze(2)
    keys = neighbours(key, window, rows, columns)
    if position_channels == 0:
        return relation.features(centre, keys)
    channels = query.shape[1] - position_channels
    content = relation.features(centre[:, :channels], keys[:, :channels])
    return torch.cat([content, centre[:, channels:] - keys[:, channels:]], 1)
