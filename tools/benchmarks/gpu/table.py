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
    """The time of a pass in milliseconds, and the seconds that its bytes and its operations take at
    least.
    """

    spent: float | None = None
    floors: tuple[float, float] | None = None

    def cells(self) -> list[str]:
        """Return the time, the floors and the share of a copy's bandwidth that the bytes of the
        floor are moved at.
        """
        if self.floors is None:
            return [_number(self.spent), NOTHING, NOTHING]
        moving, computing = (1e3 * floor for floor in self.floors)
        share = NOTHING if self.spent is None else f'{100 * moving / self.spent:.0f} %'
        return [_number(self.spent), f'{moving:.3f} / {computing:.3f}', share]


# for what is not run
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
    """Return one line; a note stands in the place of the error."""
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
