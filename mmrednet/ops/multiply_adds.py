"""How many multiply-adds the operators take, from the shapes of their arguments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Shape = Sequence[int]


def aggregate(value: Shape, weight: Shape) -> int:
    """Return B * G * K * Ho * Wo * D for values (B, G, D, ...) and weights (B, G, K, Ho, Wo); of
    scatter as well.
    """
    return math.prod(weight) * value[2]


def correlate(query: Shape, taps: int) -> int:
    """Return B * G * D * Ho * Wo * K for queries (B, G, D, Ho, Wo) and K taps."""
    return math.prod(query) * taps


def involution(value: Shape, hidden: Shape, weight: Shape) -> Counter[str]:
    """Count involution with its kernels made inside, as the 1x1 convolution and the aggregation
    that it equals.

    Args:
        value: (B, G, D, H, W).
        hidden: (B, R, Ho, Wo), of which the kernels are made.
        weight: (G * K, R).
    """
    kernels = weight[0] * hidden[0] * math.prod(hidden[2:])
    return Counter(conv=kernels * hidden[1], aggregate=kernels * value[2])


def attention(
    query: Shape, value: Shape, rows: Shape | None, columns: Shape | None, taps: int
) -> Counter[str]:
    """Count local attention as the correlation, the products with embeddings and the aggregation
    that it equals.

    Args:
        query: (B, N, D, Ho, Wo).
        value: (B, N, Dv, H, W).
        rows: (N, D / 2, Kh), embeddings of rows, met one by one, or None.
        columns: (N, D / 2, Kw), embeddings of columns, or None.
        taps: K.
    """
    positions = query[0] * math.prod(query[3:])
    counts = Counter(
        correlate=correlate(query, taps), aggregate=positions * query[1] * taps * value[2]
    )
    if rows is not None and columns is not None:
        counts['einsum'] = positions * (math.prod(rows) + math.prod(columns))
    return counts


def axial_attention(query: Shape, value: Shape, terms: int, value_position: bool) -> Counter[str]:
    """Count attention along a line as the products of all pairs of positions that it equals.

    Args:
        query: (B, N, D / 2, L).
        value: (B, N, D, L).
        terms: of the logits.
        value_position: whether positions are added to the values.
    """
    pairs = query[0] * query[1] * query[3] ** 2
    return Counter(einsum=pairs * (terms * query[2] + (1 + value_position) * value[2]))
