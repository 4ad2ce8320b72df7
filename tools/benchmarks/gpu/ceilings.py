"""Peak rates of a chip, measured in the same run as the times that are compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cases import Work
from .measure import Clock

# programs, chains of a program, and multiply-adds of a chain in one measurement
PROGRAMS, CHAINS, ROUNDS = 1 << 14, 1024, 4096


@dataclass
class Ceilings:
    """Peak rates of a chip.

    Args:
        bandwidth: Bytes per second, read and written by a copy.
        matrix: Operations per second of matrix products, by dtype.
        vector: Operations per second of float32 multiply-adds outside the matrix unit.
    """

    bandwidth: float
    matrix: dict[torch.dtype, float]
    vector: float

    def floors(self, work: Work, dtype: torch.dtype) -> tuple[float, float]:
        """Return the least seconds for moving the bytes and for the operations of some work."""
        # the matrix unit and the vector unit may compute at the same time
        computing = max(work.matrix / self.matrix[dtype], work.vector / self.vector)
        return work.bytes / self.bandwidth, computing


def ceilings(clock: Clock, dtypes: Sequence[torch.dtype]) -> Ceilings | None:
    """Measure the ceilings: a large copy, large matrix products, long chains of multiply-adds.

    The result is None in a dry run.
    """
    # random data: a chip may run faster on zeros
    size = 1 << (8 if clock.dry else 30)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy = clock.milliseconds([lambda: target.copy_(source)])
    matrix = _matrix_rates(clock, dtypes)
    if copy is None:
        return None
    # Triton is needed on a GPU alone
    from .chains import multiply_adds

    factors = torch.rand(PROGRAMS * CHAINS, device=clock.device) / 2
    chains = clock.milliseconds([lambda: multiply_adds(factors, CHAINS, ROUNDS)])
    if chains is None:
        return None
    # times are milliseconds; a copy moves its bytes twice, a multiply-add is two operations
    return Ceilings(2e3 * size / copy, matrix, 2e3 * len(factors) * ROUNDS / chains)


def _matrix_rates(clock: Clock, dtypes: Sequence[torch.dtype]) -> dict[torch.dtype, float]:
    """Return the operations per second of matrix products by dtype; in float32 those of TF32."""
    edge = 16 if clock.dry else 8192
    rates = {}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('high')
    try:
        for dtype in dtypes:
            first = torch.randn(edge, edge, device=clock.device).to(dtype)
            second = torch.randn(edge, edge, device=clock.device).to(dtype)
            spent = clock.milliseconds([lambda first=first, second=second: first @ second])
            if spent is not None:
                rates[dtype] = 2e3 * edge**3 / spent
    finally:
        torch.set_float32_matmul_precision(precision)
    return rates
