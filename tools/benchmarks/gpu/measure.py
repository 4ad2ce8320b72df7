"""Times by device events, and peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

# time of one measurement
SECONDS = 0.15
# sets of inputs of one measurement, at most
MOST_SETS = 64


@dataclass
class Clock:
    """A device to measure on. A dry clock runs everything once and measures nothing."""

    device: str
    dry: bool
    deadline: float = float('inf')

    @property
    def late(self) -> bool:
        """Whether the time given to the whole report is over."""
        return time.monotonic() > self.deadline

    def sets(self, size: int) -> int:
        """Return the number of sets of inputs, of so many bytes each, that a measurement needs."""
        if self.dry:
            return 1
        # together three times the second-level cache, so that no set is found in it
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        return max(2, min(MOST_SETS, 1 + 3 * cache // max(1, size)))

    def milliseconds(
        self, calls: Sequence[Callable[[], object]], graph: bool = True
    ) -> float | None:
        """Return the median time of one call, or None in a dry run.

        Calls take turns, each on its own inputs, in a CUDA graph where that works.
        """
        # twice: the first calls compile kernels and allocate memory
        for call in (*calls, *calls):
            call()
        if self.dry:
            return None
        torch.cuda.synchronize()
        turn = _captured(calls) if graph else None
        if turn is None:
            turn = lambda: [call() for call in calls]  # noqa: E731
        first_time = _timed(turn)
        rounds = max(5, min(200, int(1e3 * SECONDS / first_time)))
        return statistics.median(_timed(turn) for _ in range(rounds)) / len(calls)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the peak memory of a call above what was allocated, or None in a dry run."""
        call()
        if self.dry:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def release(self) -> None:
        """Give cached memory back to the device."""
        if not self.dry:
            # torch may refuse to after a capture that failed
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


def _timed(turn: Callable[[], object]) -> float:
    """Return the milliseconds of a function on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    turn()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object] | None:
    """Return the replay of a CUDA graph of all calls, or None where they cannot be captured."""
    # a graph leaves out the time that Python needs to launch kernels
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay
