"""Every way to an operator at one problem: times of both passes, floors, memory, and whether they
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .ceilings import Ceilings
from .contestants import CONTEXT
from .measure import Clock
from .problems import Problem
from .table import Pass, row


def steps(function: Callable, problem: Problem) -> tuple[Callable, Callable]:
    """Return the forward pass, and both passes with gradients for all inputs and for leaves of a
    contestant's own.
    """
    inputs = list(problem.inputs.values())
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    wanted = leaves + getattr(function, 'leaves', [])

    def forward() -> Tensor:
        with torch.inference_mode():
            return function(*inputs)

    def both() -> tuple[Tensor | None, ...]:
        result = function(*leaves)
        return result, *torch.autograd.grad(result, wanted, problem.grad, allow_unused=True)

    return forward, both


def difference(found: Sequence[Tensor | None], reference: Sequence[Tensor]) -> float:
    """Return by how much a result or a gradient differs from ours at most; one that is missing is
    all wrong.
    """
    errors = []
    for have, want in zip(found, reference, strict=True):
        if have is None:
            return float('inf')
        errors.append(float((have.double() - want.double()).norm() / want.double().norm()))
    # a NaN is larger than every number
    return max(errors, key=lambda error: (error != error, error))


def _floors(
    name: str,
    problem: Problem,
    dtype: torch.dtype,
    limits: Ceilings | None,
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Return the floors of the forward pass and of both, for what a contestant computes."""
    count = CONTEXT.get(name, lambda own: (own.forward, own.backward))
    if limits is None or count is None:
        return None, None
    forward, backward = count(problem)
    return limits.floors(forward, dtype), limits.floors(forward + backward, dtype)


def time_operator(
    clock: Clock,
    sets: Sequence[Problem],
    contestants: dict[str, Callable],
    dtype: torch.dtype,
    limits: Ceilings | None,
) -> Iterator[str]:
    """Yield a line for every contestant at one problem; where one cannot run, the line says why."""
    reference: list[Tensor] = []
    for name, function in contestants.items():
        if clock.late:
            return
        forward, both = (Pass(floors=floors) for floors in _floors(name, sets[0], dtype, limits))
        peak = error = None
        note = ''
        try:
            pairs = [steps(function, problem) for problem in sets]
            forward.spent = clock.milliseconds([pair[0] for pair in pairs])
            found = [None if tensor is None else tensor.detach() for tensor in pairs[0][1]()]
            reference = reference or found
            error = None if name in CONTEXT else difference(found, reference)
            both.spent, peak = (
                clock.milliseconds([pair[1] for pair in pairs]),
                clock.peak_bytes(pairs[0][1]),
            )
        except Exception as failure:  # noqa: BLE001
            # the first line says what, and no cell may hold a bar
            reason = (str(failure).strip().splitlines() or [''])[0].replace('|', '/')
            note = f'does not run: {type(failure).__name__} {reason[:60]!r}'
        yield row(sets[0].name, name, dtype, forward, both, peak, error, note)
        clock.release()
