"""What an examination finds, as text that can be shown to anybody."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from logging import getLogger
from pathlib import Path
from warnings import catch_warnings, simplefilter

# characters that end a part of a path
END = r'\s\'":,;()\\/'
# the folders of an absolute path on Linux or Windows; the last part of the path stays
FOLDERS = re.compile(rf'(?<![\w.:/])(?:[A-Za-z]:[\\/]|~?/)(?:[^{END}]+[\\/])*(?=[^{END}])')


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Args:
        text: Description of what is wrong.
        remedy: Instructions for the user.
    """

    text: str
    remedy: str


@dataclass
class Section:
    """The results of one examination.

    Args:
        title: Title of the section.
        rows: Pairs of a subject and a description.
        problems: Problems that were found.
    """

    title: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the section as lines of text."""
        width = max((len(name) for name, _ in self.rows), default=0)
        return [self.title, *(f'  {name:{width}}  {text}' for name, text in self.rows)]


def scrubbed(text: str) -> str:
    """Return a text without folders and without the name of the user."""
    text = FOLDERS.sub('', text.replace(str(Path.home()), '~'))
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        return text
    return re.sub(rf'\b{re.escape(user)}\b', '<user>', text)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep out what imports and kernels print, log and warn about."""
    logger = getLogger('mmrednet')
    was_disabled = logger.disabled
    with catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        simplefilter('ignore')
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = was_disabled
