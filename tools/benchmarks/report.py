"""Output of benchmarks: printed, and appended to a markdown file if asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Report:
    """Prints lines and tables, and appends them to a file.

    Args:
        path: File to append to, or None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def write(self, text: str) -> None:
        """Write lines."""
        print(text, flush=True)
        if self.path:
            with self.path.open('a') as file:
                file.write(f'{text}\n')

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a markdown table and an empty line."""
        self.write(f'| {" | ".join(columns)} |')
        self.write(f'|{"---|" * len(columns)}')
        for row in rows:
            self.write(f'| {" | ".join(row)} |')
        self.write('')
