"""Relative errors, where a NaN counts as the largest."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Return the norm of the error over the norm of the reference, in float64."""
    reference = reference.double()
    return float((result.double() - reference).norm() / reference.norm())


def worst(errors: Iterable[float]) -> float:
    """Return the largest error. A NaN is larger than every number."""
    # max alone would return the NaN or not, depending on the order
    return max(errors, key=lambda error: (error != error, error))
