"""The lines of the final table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

HEADER = (
    '| what | contestant | dtype | forward, ms | floors, ms: bytes / operations | of copy '
    'bandwidth | '
    'forward and backward, ms | floors, ms: bytes / operations | of copy bandwidth | peak MiB | '
    'differs by |\n'
    f'|{"---|" * 11}'
)
NOTHING = '–'


@dataclass
class Pass:
    """The time of a pass and its floors.

    Args:
        spent: Time in milliseconds, or None where it was not measured.
        floors: Least seconds for its bytes and for its operations, or None where they are unknown.
    """

    spent: float | None = None
    floors: tuple[float, float] | None = None

    def cells(self) -> list[str]:
        """Return the time, the floors, and the bandwidth as a share of a copy's."""
        if self.floors is None:
            return [_number(self.spent), NOTHING, NOTHING]
        moving, computing = (1e3 * floor for floor in self.floors)
        share = NOTHING if self.spent is None else f'{100 * moving / self.spent:.0f} %'
        return [_number(self.spent), f'{moving:.3f} / {computing:.3f}', share]


# of a pass that is not run
UNTIMED = Pass()


def _number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f'{value:.{digits}f}'


def row(
    what: str,
    contestant: str,
    dtype: torch.dtype | str,
    forward: Pass = UNTIMED,
    both: Pass = UNTIMED,
    peak: int | None = None,
    error: float | None = None,
    note: str = '',
) -> str:
    """Return one line of the table.

    Args:
        what: Name of the case.
        contestant: Name of the contestant.
        dtype: Dtype of the inputs.
        forward: Forward pass.
        both: Forward and backward pass.
        peak: Peak memory of both passes in bytes.
        error: Largest relative difference from the reference.
        note: Text that replaces the error, such as why a contestant cannot run.
    """
    cells = [
        what,
        contestant,
        str(dtype).removeprefix('torch.'),
        *forward.cells(),
        *both.cells(),
        _number(None if peak is None else peak / 2**20, 1),
        note or (NOTHING if error is None else f'{error:.1e}'),
    ]
    return f'| {" | ".join(cells)} |'
