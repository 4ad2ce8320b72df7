"""What a check of data finds: errors that stop a run, and counted warnings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mmengine.logging import print_log

# enough to see what is common to the entries, few enough to read
EXAMPLES = 3


class Findings:
    """Errors and warnings, collected so that one run names all that is wrong.

    Args:
        strict: True if warnings count as errors. Default: False.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def error(self, subject: object, problem: str, examples: Sequence[object] = ()) -> None:
        """Add an error.

        Args:
            subject: File or key of the config.
            problem: What is wrong, and what would be right.
            examples: The entries. They are counted, and the first ones are named.
        """
        self._add(self.errors, subject, problem, examples)

    def warn(self, subject: object, problem: str, examples: Sequence[object] = ()) -> None:
        """Add a warning. Arguments: see :meth:`error`."""
        self._add(self.errors if self.strict else self.warnings, subject, problem, examples)

    def _add(
        self, messages: list[str], subject: object, problem: str, examples: Sequence[object]
    ) -> None:
        message = f'{subject}: {problem}'
        if examples:
            listing = '; '.join(str(example) for example in examples[:EXAMPLES])
            more = ', ...' if len(examples) > EXAMPLES else ''
            message = f'{subject}: {len(examples)} {problem}: {listing}{more}'
        # loaders often share a file
        if message not in messages:
            messages.append(message)

    def report(self) -> None:
        """Log the warnings, and raise the errors.

        Raises:
            ValueError: There are errors.
        """
        for message in self.warnings:
            print_log(message, 'current', level=logging.WARNING)
        if self.errors:
            raise ValueError('the data does not fit:\n  ' + '\n  '.join(self.errors))
