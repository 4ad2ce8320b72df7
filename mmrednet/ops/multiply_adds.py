"""Number of multiply-adds of the operators, from the shapes of their arguments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Shape = Sequence[int]


def aggregate(value: Shape, weight: Shape) -> int:
    """Count aggregate or scatter: B * G * K * Ho * Wo * D.

    Args:
        value: Shape (B, G, D, H, W).
        weight: Shape (B, G, K, Ho, Wo).
    """
    return math.prod(weight) * value[2]


def correlate(query: Shape, taps: int) -> int:
    """Count correlate: B * G * D * Ho * Wo * K.

    Args:
        query: Shape (B, G, D, Ho, Wo).
        taps: Number K of taps of the window.
    """
    return math.prod(query) * taps


def involution(value: Shape, hidden: Shape, weight: Shape) -> Counter[str]:
    """Count involution as a 1x1 convolution, which generates the kernels, and an aggregation.

    Args:
        value: Shape (B, G, D, H, W).
        hidden: Shape (B, R, Ho, Wo) of the features that generate the kernels.
        weight: Shape (G * K, R) of the generator's weight.
    """
    kernels = weight[0] * hidden[0] * math.prod(hidden[2:])
    return Counter(conv=kernels * hidden[1], aggregate=kernels * value[2])


def attention(
    query: Shape, value: Shape, rows: Shape | None, columns: Shape | None, taps: int
) -> Counter[str]:
    """Count local attention as a correlation, products with embeddings and an aggregation.

    Args:
        query: Shape (B, N, D, Ho, Wo).
        value: Shape (B, N, Dv, H, W).
        rows: Shape (N, D / 2, Kh) of the embeddings of rows, or None.
        columns: Shape (N, D / 2, Kw) of the embeddings of columns, or None.
        taps: Number K of taps of the window.
    """
    positions = query[0] * math.prod(query[3:])
    counts = Counter(
        correlate=correlate(query, taps), aggregate=positions * query[1] * taps * value[2]
    )
    # a query meets each row and each column once: Kh + Kw products instead of Kh * Kw
    if rows is not None and columns is not None:
        counts['einsum'] = positions * (math.prod(rows) + math.prod(columns))
    return counts


def line_pairs(length: int, span: int) -> int:
    """Count the pairs of positions of a line that are at most span // 2 apart.

    Args:
        length: Number of positions.
        span: Length of the window around a position, or 0 for the whole line.
    """
    reach = min(span // 2, length - 1) if span else length - 1
    # less a triangle at each end
    return length * (2 * reach + 1) - reach * (reach + 1)


def axial_attention(
    query: Shape, value: Shape, terms: int, value_position: bool, span: int = 0
) -> Counter[str]:
    """Count attention along lines as products of all pairs of positions within a span.

    Args:
        query: Shape (B, N, E, L).
        value: Shape (B, N, D, L).
        terms: Number of terms of the logits.
        value_position: If True, values have position embeddings.
        span: Length of the window around a position, or 0 for whole lines. Default: 0.
    """
    pairs = query[0] * query[1] * line_pairs(query[3], span)
    return Counter(einsum=pairs * (terms * query[2] + (1 + value_position) * value[2]))


def vector_attention(
    query: Shape, value: Shape, weight1: Shape, weight2: Shape, taps: int, patchwise: bool
) -> Counter[str]:
    """Count vector attention as two 1x1 convolutions and an aggregation.

    Args:
        query: Shape (B, R, Ho, Wo).
        value: Shape (B, C, H, W).
        weight1: Shape (M, F) of the weight of the first convolution.
        weight2: Shape (O, M) of the weight of the last convolution.
        taps: Number K of taps of the window.
        patchwise: Whether an output has one vector of features, and not one for each tap.
    """
    positions = query[0] * math.prod(query[2:])
    vectors = positions if patchwise else positions * taps
    return Counter(
        conv=vectors * (math.prod(weight1) + math.prod(weight2)),
        aggregate=positions * taps * value[1],
    )


def depthwise(outputs: Shape, weight: Shape) -> int:
    """Count a depth-wise convolution: B * C * Ho * Wo * Kh * Kw.

    Args:
        outputs: Shape (B, C, Ho, Wo).
        weight: Shape (C, 1, Kh, Kw).
    """
    return math.prod(outputs) * math.prod(weight[2:])
