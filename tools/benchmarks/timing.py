"""Times that can be compared: contestants take turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

# rounds that do not count: caches and allocators are cold
WARM_UP = 2


def medians(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Call each contestant once per round, so that other load on the machine falls on all of them.

    Args:
        contestants: Functions to time, by name.
        rounds: Number of rounds. Two more come first and do not count.
        clock: Function that returns seconds. Default: the wall clock.

    Returns:
        The median seconds of each contestant.

    Raises:
        ValueError: There is no round.
    """
    if rounds < 1:
        raise ValueError(f'rounds must be at least 1, got {rounds}.')
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + WARM_UP):
        for name, function in contestants.items():
            start = clock()
            function()
            if turn >= WARM_UP:
                times[name].append(clock() - start)
    return {name: float(np.median(values)) for name, values in times.items()}
