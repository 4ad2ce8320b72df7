"""Times by device events, and peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

# of one measurement
SECONDS = 0.15
MOST_SETS = 64


@dataclass
class Clock:
    """Where to measure; a dry one runs everything once and measures nothing."""

    device: str
    dry: bool
    deadline: float = float('inf')

    @property
    def late(self) -> bool:
        """Whether the time given to the whole report is over."""
        return time.monotonic() > self.deadline

    def sets(self, size: int) -> int:
        """Return how many sets of inputs of so many bytes are three times larger than the
        second-level cache.
        """
        if self.dry:
            return 1
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        return max(2, min(MOST_SETS, 1 + 3 * cache // max(1, size)))

    def milliseconds(
        self, calls: Sequence[Callable[[], object]], graph: bool = True
    ) -> float | None:
        """Return the median time of one call; they take turns on their own inputs, in a CUDA graph
        where that works.
        """
        for call in (*calls, *calls):
            call()
        if self.dry:
            return None
        torch.cuda.synchronize()
        turn = (_captured(calls) if graph else None) or (lambda: [call() for call in calls])
        once = _timed(turn)
        rounds = max(5, min(200, int(1e3 * SECONDS / once)))
        return statistics.median(_timed(turn) for _ in range(rounds)) / len(calls)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return how much more memory than before a call needs at once."""
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
        """Give cached memory back, where a device is in a state to do so: a capture that failed may
        forbid it.
        """
        if not self.dry:
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


def _timed(turn: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    turn()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object] | None:
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
