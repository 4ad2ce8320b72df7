"""The argument parser of the subcommands."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ..cli import COMMANDS


class CommandParser(argparse.ArgumentParser):
    """A parser whose ``--help`` ends with the example of the table of commands.

    Args:
        name: Name of the subcommand.
        description: Text of ``--help``, with its line breaks.
    """

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f'mmrednet {name}',
            description=description,
            epilog=f'example:\n  {COMMANDS[name].example}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse the command line.

        torch's launchers give the rank of the process in LOCAL_RANK or, if they are old, as an
        option. mmengine reads the variable.
        """
        parsed = super().parse_args(args, namespace)
        if 'local_rank' in parsed:
            os.environ.setdefault('LOCAL_RANK', str(parsed.local_rank))
        return parsed
