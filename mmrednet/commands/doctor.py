"""Print versions, kernels and whether every operator gives the right results here.

The report ends with what to do about each problem. It names no folder and no user: paste it into a
bug report. Kernels that are missing are compiled first, which takes about a minute.

Exit status: 0, nothing is wrong; 1, something is.
"""

from __future__ import annotations

import sys
import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from importlib import import_module

from ..diagnosis.sections import Problem, Section, scrubbed

WIDTH = 100
# modules of mmrednet.diagnosis, and the function of each that returns a section
EXAMINATIONS = (
    ('versions', 'examine_versions'),
    ('kernels', 'examine_kernels'),
    ('mmcv_operators', 'examine_mmcv'),
    ('operators', 'examine_operators'),
)
REPORT = 'If the message does not say what to do, please report all of this.'


def make_parser() -> ArgumentParser:
    """Return the parser of the command, which has no options."""
    return ArgumentParser(
        prog='mmrednet doctor',
        description=__doc__,
        epilog='example:\n  mmrednet doctor',
        formatter_class=RawDescriptionHelpFormatter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine and print the report.

    Args:
        argv: Arguments of the command. Default: None, those of the process.

    Returns:
        The exit status.
    """
    make_parser().parse_args(argv)
    problems: list[Problem] = []
    for section in examine():
        print(scrubbed('\n'.join(section.lines())), end='\n\n', flush=True)
        problems += section.problems
    print(scrubbed(summary(problems)))
    return 1 if problems else 0


def examine() -> Iterator[Section]:
    """Yield the sections of the report."""
    for module, function in EXAMINATIONS:
        try:
            # imported here: without torch the command still prints its help
            yield getattr(import_module(f'mmrednet.diagnosis.{module}'), function)()
        except Exception as error:  # noqa: BLE001
            # whatever is wrong with this machine, the other sections are printed
            text = f'The {module} cannot be examined: {type(error).__name__}: {error}'
            yield Section(module.capitalize(), problems=[Problem(text, REPORT)])


def summary(problems: list[Problem]) -> str:
    """Return what to do about each problem, as text."""
    if not problems:
        return 'No problems were found.'
    # names of files and commands stay whole
    wrapper = textwrap.TextWrapper(
        WIDTH, subsequent_indent='   ', break_long_words=False, break_on_hyphens=False
    )
    lines = ['What to do']
    for number, problem in enumerate(problems, 1):
        lines += wrapper.wrap(f'{number}. {problem.text}')
        # commands stay on one line, to be copied
        lines.append(f'   {problem.remedy}')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
