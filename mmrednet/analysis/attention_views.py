r"""Views of what an operator applies: formulas that turn ``attention(x)`` into maps.

With weights w of output position i and tap j, and p = |w| / sum over j of |w|:

    kernel-sum   sum over j of w_ij
    entropy      - sum over j of p_ij log p_ij, divided by the logarithm of the number of taps
    distance     sum over j of p_ij |j - i|, in pixels of the image
    query        w_ij of one chosen i, at the positions of its taps j
    gate         the factor itself
    points       the places where the taps of one chosen i sample, with their factors
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.attention import (
    Attention,
    AxisWeights,
    Gate,
    PositionWeights,
    SamplingPoints,
    TapWeights,
)


class Grid(NamedTuple):
    """The feature map that an operator sees.

    Args:
        size: Height and width of the feature map.
        pitch: Rows and columns of the image for each row and column of the feature map.
        at: Chosen point as fractions (row, column) of height and width of the feature map, in
            [0, 1).
    """

    size: tuple[int, int]
    pitch: tuple[float, float] = (1.0, 1.0)
    at: tuple[float, float] = (0.5, 0.5)

    def position(self, outputs: torch.Size | tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the chosen point on (Ho, Wo) output positions."""
        row, column = (int(share * count) for share, count in zip(self.at, outputs, strict=True))
        return row, column


def kernel_sum(attention: TapWeights, grid: Grid) -> Tensor:
    """Return the sum (B, G, Ho, Wo) of every position's kernel (figure 3 of Li et al., CVPR 2021).

    A softmax sums to one everywhere, so this is a view of other weights.
    """
    return attention.weight.sum(2)


def tap_shares(attention: PositionWeights) -> tuple[Tensor, int]:
    """Return the share of every tap in the sum of magnitudes, and the dimension of the taps."""
    dim = 2 if isinstance(attention, TapWeights) else 4
    magnitude = attention.weight.abs().to(
        torch.promote_types(attention.weight.dtype, torch.float32)
    )
    # positions without any weight have no share
    return magnitude / magnitude.sum(dim, keepdim=True).clamp_min(1e-30), dim


def entropy(attention: PositionWeights, grid: Grid) -> Tensor:
    """Return the entropy (B, G, Ho, Wo) of the shares, 1 where all taps count alike."""
    shares, dim = tap_shares(attention)
    terms = torch.special.entr(shares)
    return terms.sum(dim) / math.log(max(2, shares.shape[dim]))


def distance(attention: PositionWeights, grid: Grid) -> Tensor:
    """Return the mean distance (B, G, Ho, Wo) of the taps from their position, in pixels of the
    image.
    """
    shares, dim = tap_shares(attention)
    return (shares * _lengths(attention, grid).to(shares)).sum(dim)


def _lengths(attention: PositionWeights, grid: Grid) -> Tensor:
    """Return the distance of every tap: (K, Ho, Wo), or (H, W, L) along an axis."""
    if isinstance(attention, AxisWeights):
        is_row = attention.axis == 'width'
        position = torch.arange(attention.weight.shape[-1], dtype=torch.float64)
        lengths = (position[:, None] - position).abs() * grid.pitch[is_row]
        return lengths[None] if is_row else lengths[:, None]
    moves = []
    for axis, taps in enumerate(attention.taps(*grid.size)):
        centre = torch.arange(taps.shape[1]) * attention.window.stride[axis]
        moves.append((taps - centre) * grid.pitch[axis])
    rows, columns = moves
    squares = rows.square()[:, None, :, None] + columns.square()[None, :, None, :]
    return squares.sqrt().flatten(0, 1)


def spread(attention: PositionWeights, mass: Tensor, size: tuple[int, int]) -> Tensor:
    """Distribute the mass of every output position to the positions that it takes from.

    Args:
        attention: Weights over taps or along an axis.
        mass: Mass of the outputs, of shape (B, G or 1, Ho, Wo).
        size: Height and width of the feature map.

    Returns:
        Tensor of shape (B, G, H, W): the sum over outputs i of w_ij times their mass.
    """
    weight = attention.weight
    if isinstance(attention, AxisWeights):
        equation = 'bnhwl,bnhw->bnhl' if attention.axis == 'width' else 'bnhwl,bnhw->bnlw'
        return torch.einsum(equation, weight, mass.to(weight).expand(weight.shape[:4]))
    rows, columns = (taps.to(weight.device) for taps in attention.taps(*size))
    is_row, is_column = (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1])
    index = rows[:, None, :, None] * size[1] + columns[None, :, None, :]
    valid = (is_row[:, None, :, None] & is_column[None, :, None, :]).flatten(0, 1)
    shares = (weight * mass.to(weight).unsqueeze(2))[..., valid]
    result = weight.new_zeros(*weight.shape[:2], size[0] * size[1])
    return result.index_add(2, index.flatten(0, 1)[valid], shares).unflatten(2, size)


def query(attention: PositionWeights | tuple[PositionWeights, ...], grid: Grid) -> Tensor:
    """Return the weights (B, G, H, W) of the chosen position, where its taps lie.

    Of several parts that follow one another it is what reaches the position through all of them,
    each averaged over its heads.
    """
    if isinstance(attention, PositionWeights):
        return spread(attention, chosen_position(attention, grid), grid.size)
    parts = [_averaged(part) for part in attention]
    mass = chosen_position(parts[-1], grid)
    for part in reversed(parts):
        mass = spread(part, mass, grid.size)
    return mass


def _averaged(attention: PositionWeights) -> PositionWeights:
    return attention._replace(weight=attention.weight.mean(1, keepdim=True))


def chosen_position(attention: PositionWeights, grid: Grid) -> Tensor:
    """Return one at the chosen position, and zero elsewhere: (B, 1, Ho, Wo)."""
    weight = attention.weight
    outputs = weight.shape[-2:] if isinstance(attention, TapWeights) else weight.shape[2:4]
    mass = weight.new_zeros(len(weight), 1, *outputs)
    row, column = grid.position(outputs)
    mass[..., row, column] = 1
    return mass


def gate(attention: Gate, grid: Grid) -> Tensor:
    """Return the factors, of shape (B, C or 1, H or 1, W or 1)."""
    return attention.factor


def points(attention: SamplingPoints, grid: Grid) -> Tensor:
    """Return row, column and factor (B, G, K, 3) of the taps of the chosen position.

    Row and column are fractions of height and width of the feature map.
    """
    row, column = grid.position(attention.factor.shape[-2:])
    places = attention.place[..., row, column]
    # the centre of a position lies half a position from its border
    fractions = (places + 0.5) / places.new_tensor(grid.size)
    return torch.cat([fractions, attention.factor[..., row, column, None]], 3)


class View(NamedTuple):
    """A view and the kinds of attention that have it.

    Args:
        function: Maps an attention and a :class:`Grid` to the values to draw.
        kinds: Classes of attention that have the view.
        scale: What the values are, for the colour bar.
    """

    function: Callable[..., Tensor]
    kinds: tuple[type, ...]
    scale: str


# the first view of a kind is its default
VIEWS = {
    'kernel-sum': View(kernel_sum, (TapWeights,), 'sum of the kernel'),
    'distance': View(distance, (TapWeights, AxisWeights), 'mean distance in pixels'),
    'entropy': View(entropy, (TapWeights, AxisWeights), 'entropy, 1 is uniform'),
    'query': View(query, (TapWeights, AxisWeights), 'weight'),
    'gate': View(gate, (Gate,), 'factor'),
    'points': View(points, (SamplingPoints,), 'factor'),
}
# made of all layers together, see attention_maps.py
ROLLOUT = 'rollout'
# of colour bars
SCALES = {
    **{name: view.scale for name, view in VIEWS.items()},
    ROLLOUT: 'share of the point',
    'eigen-cam': 'first component of the feature map',
    'grad-cam': 'feature map times gradient',
}


def views_of(attention: Attention | tuple[Attention, ...]) -> list[str]:
    """Return the names of the views of an attention, the default one first."""
    if not isinstance(attention, Attention):
        has_weights = all(isinstance(part, PositionWeights) for part in attention)
        return ['query', ROLLOUT] if has_weights else []
    names = [name for name, view in VIEWS.items() if isinstance(attention, view.kinds)]
    if isinstance(attention, TapWeights) and attention.sums_to_one:
        names.remove('kernel-sum')
    # made of all layers together
    return [*names, ROLLOUT] if isinstance(attention, PositionWeights) else names
