"""Times that can be compared: contestants take turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

Name = TypeVar('Name', bound=Hashable)

# rounds that do not count: caches and allocators are cold
WARM_UP = 2


def measure_rounds(
    contestants: Mapping[Name, Callable[[], object]],
    rounds: int,
    budget: float | None = None,
    clock: Callable[[], float] | None = None,
    *,
    untimed: int = 0,
) -> dict[Name, list[float]]:
    """Call each contestant once per round, so that other load on the machine falls on all of them.

    Args:
        contestants: Functions to time, by name.
        rounds: Number of rounds. Two more come first and do not count.
        budget: Seconds after which no further round begins. One round counts in any case. Default:
            no limit.
        clock: Function that returns seconds. Default: None, the wall clock.
        untimed: Number of calls in a turn before the one that is timed. Threads of another runtime
            may wait busily for a moment after its turn. Default: 0.

    Returns:
        The seconds of each contestant in each round that counts.

    Raises:
        ValueError: There is no round.
    """
    if rounds < 1:
        raise ValueError(f'rounds must be at least 1, got {rounds}.')
    times: dict[Name, list[float]] = {name: [] for name in contestants}
    # looked up at the call, so that tests can replace the clock
    clock = clock or time.perf_counter
    begin = time.perf_counter()
    for turn in range(rounds + WARM_UP):
        for name, function in contestants.items():
            for _ in range(untimed):
                function()
            start = clock()
            function()
            if turn >= WARM_UP:
                times[name].append(clock() - start)
        if budget and turn >= WARM_UP and time.perf_counter() - begin > budget:
            break
    return times


def medians(
    contestants: Mapping[Name, Callable[[], object]],
    rounds: int,
    budget: float | None = None,
    **options: Any,
) -> dict[Name, float]:
    """Return the median seconds of each contestant. See :func:`measure_rounds`."""
    times = measure_rounds(contestants, rounds, budget, **options)
    return {name: float(np.median(values)) for name, values in times.items()}
