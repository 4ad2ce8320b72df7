"""What a chip gives: the rates that times are compared with, measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .measure import Clock
from .problems import Work

# of one measurement: programs of so many chains of so many multiply-adds
PROGRAMS, CHAINS, ROUNDS = 1 << 14, 1024, 4096


@dataclass
class Ceilings:
    """Bytes per second read and written by a copy; operations per second of matrix products and of
    multiply-adds.

    ``matrix`` is that of the matrix unit for each dtype, ``vector`` that of float32 numbers
    multiplied one by one.
    """

    bandwidth: float
    matrix: dict[torch.dtype, float]
    vector: float

    def floors(self, work: Work, dtype: torch.dtype) -> tuple[float, float]:
        """Return the seconds that moving and that computing take at least; the units may compute
        side by side.
        """
        return work.bytes / self.bandwidth, max(
            work.matrix / self.matrix[dtype], work.vector / self.vector
        )


def ceilings(clock: Clock, dtypes: Sequence[torch.dtype]) -> Ceilings | None:
    """Measure the ceilings, on random data: a large copy, large matrix products, long chains of
    multiply-adds.
    """
    size = 1 << (8 if clock.dry else 30)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy = clock.milliseconds([lambda: target.copy_(source)])
    matrix = _matrix_rates(clock, dtypes)
    if copy is None:
        return None
    from .chains import multiply_adds

    factors = torch.rand(PROGRAMS * CHAINS, device=clock.device) / 2
    chains = clock.milliseconds([lambda: multiply_adds(factors, CHAINS, ROUNDS)])
    return (
        None
        if chains is None
        else Ceilings(2e3 * size / copy, matrix, 2e3 * len(factors) * ROUNDS / chains)
    )


def _matrix_rates(clock: Clock, dtypes: Sequence[torch.dtype]) -> dict[torch.dtype, float]:
    """Return the operations per second of products of each dtype on the matrix unit: in float32
    those of TF32.
    """
    edge, rates, precision = 16 if clock.dry else 8192, {}, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('high')
    try:
        for dtype in dtypes:
            first, second = (
                torch.randn(edge, edge, device=clock.device).to(dtype) for _ in range(2)
            )
            spent = clock.milliseconds([lambda first=first, second=second: first @ second])
            if spent is not None:
                rates[dtype] = 2e3 * edge**3 / spent
    finally:
        torch.set_float32_matmul_precision(precision)
    return rates
