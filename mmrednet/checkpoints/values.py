"""Which tensors of a file can be weights: finite floating point numbers, beside counters and tables
of places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# single numbers count something; these are tables of integers
INDICES = ('flatten_index', 'relative_position_index')


def check_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Check tensors that are loaded or written.

    Raises:
        CheckpointError: some are not finite, or no floating point numbers.
    """
    wrong = {name: str(value.dtype) for name, value in state.items() if _is_no_float(name, value)}
    if wrong:
        raise CheckpointError(
            f'{path}: weights must be floating point, got {len(wrong)} other tensors: '
            f'{dict(list(wrong.items())[:5])}.'
        )
    broken = [name for name, value in state.items() if _is_not_finite(value)]
    if broken:
        raise CheckpointError(
            f'{path}: weights must be finite, got NaN or infinity in {len(broken)} of {len(state)} '
            f'tensors: {broken[:5]}.'
        )


def unfit_among(unused: Mapping[str, Tensor]) -> list[str]:
    """Return a line that names the tensors which are no weights, none if all are."""
    names = [
        name for name, value in unused.items() if _is_no_float(name, value) or _is_not_finite(value)
    ]
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return (
        [f'not used, and not finite or no floating point numbers: {", ".join(names[:5])}{more}']
        if names
        else []
    )


def _is_no_float(name: str, value: Tensor) -> bool:
    return value.dtype not in WEIGHT_DTYPES and value.dim() > 0 and not name.endswith(INDICES)


def _is_not_finite(value: Tensor) -> bool:
    return value.is_floating_point() and not bool(value.isfinite().all())
