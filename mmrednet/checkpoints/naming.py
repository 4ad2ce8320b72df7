"""Pairs of name fragments, theirs and ours, that are read in both directions.

In a fragment ``{n}`` stands for a number, a leading ``^`` for the start of the name and a trailing
``$`` for its end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

Pairs = tuple[tuple[str, str], ...]


@functools.cache
def _compiled(fragment: str, replacement: str) -> tuple[re.Pattern[str], str]:
    start, end = '^' * fragment.startswith('^'), '$' * fragment.endswith('$')
    body = re.sub(
        r'\\{(\w+)\\}', r'(?P<\1>\\d+)', re.escape(fragment.removeprefix('^').removesuffix('$'))
    )
    template = re.sub(r'{(\w+)}', r'\\g<\1>', replacement.removeprefix('^').removesuffix('$'))
    return re.compile(f'{start}{body}{end}'), template


def rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Replace the first fragment of each pair by the second one, pair after pair."""
    for fragment, replacement in pairs:
        pattern, template = _compiled(fragment, replacement)
        name = pattern.sub(template, name)
    return name


def inverse(pairs: Pairs) -> Pairs:
    """Return the pairs that undo these."""
    return tuple((ours, theirs) for theirs, ours in reversed(pairs))
