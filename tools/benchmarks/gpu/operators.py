"""Lines of the table for all contestants of one case: times, floors, memory, and differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..cases import Case
from .ceilings import Ceilings
from .contestants import CONTEXT
from .errors import relative_error, worst
from .measure import Clock
from .table import Pass, row


def steps(function: Callable, case: Case) -> tuple[Callable, Callable]:
    """Return the forward pass and both passes as functions without arguments.

    Both passes compute the gradients of all inputs and of a contestant's own ``leaves``.
    """
    inputs = list(case.inputs.values())
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    all_leaves = leaves + getattr(function, 'leaves', [])

    def forward() -> Tensor:
        with torch.inference_mode():
            return function(*inputs)

    def both() -> tuple[Tensor | None, ...]:
        result = function(*leaves)
        return result, *torch.autograd.grad(result, all_leaves, case.grad, allow_unused=True)

    return forward, both


def difference(results: Sequence[Tensor | None], reference: Sequence[Tensor]) -> float:
    """Return the largest relative difference of all tensors, or infinity if one is missing."""
    errors = []
    for result, expected in zip(results, reference, strict=True):
        if result is None:
            return float('inf')
        errors.append(relative_error(result, expected))
    return worst(errors)


def _floors(
    name: str,
    case: Case,
    dtype: torch.dtype,
    limits: Ceilings | None,
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Return the floors of the forward pass and of both passes for a contestant."""
    works = CONTEXT.get(name, lambda case: (case.forward, case.backward))
    if limits is None or works is None:
        return None, None
    forward, backward = works(case)
    return limits.floors(forward, dtype), limits.floors(forward + backward, dtype)


def time_operator(
    clock: Clock,
    sets: Sequence[Case],
    contestants: dict[str, Callable],
    dtype: torch.dtype,
    limits: Ceilings | None,
) -> Iterator[str]:
    """Yield a line for every contestant of one case; where it cannot run, the line says why.

    Args:
        clock: Clock of the measurement.
        sets: Sets of inputs of the case, over which measurements rotate.
        contestants: Functions of the inputs, by name. The first is the reference.
        dtype: Dtype of the inputs.
        limits: Peak rates of the chip, or None in a dry run.
    """
    reference: list[Tensor] = []
    for name, function in contestants.items():
        if clock.late:
            return
        forward, both = (Pass(floors=floors) for floors in _floors(name, sets[0], dtype, limits))
        peak = error = None
        note = ''
        try:
            forwards, boths = zip(*(steps(function, case) for case in sets), strict=True)
            forward.spent = clock.milliseconds(forwards)
            results = [None if tensor is None else tensor.detach() for tensor in boths[0]()]
            reference = reference or results
            # contestants for context compute another function
            error = None if name in CONTEXT else difference(results, reference)
            both.spent = clock.milliseconds(boths)
            peak = clock.peak_bytes(boths[0])
        except Exception as failure:  # noqa: BLE001
            # the first line says what failed; a bar would end the cell
            reason = (str(failure).strip().splitlines() or [''])[0].replace('|', '/')
            note = f'does not run: {type(failure).__name__} {reason[:60]!r}'
        yield row(sets[0].name, name, dtype, forward, both, peak, error, note)
        clock.release()
