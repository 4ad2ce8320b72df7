"""The name that a user may have meant by a misspelt one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like another one; None if no name is like it."""
    lower = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[matches[0]] if matches else None


def unknown_argument(owner: type, name: str, foreign: Mapping[str, str]) -> TypeError:
    """Return the error for an argument that a class does not have.

    Args:
        owner: Class that the user wrote.
        name: Name of the argument.
        foreign: Arguments of stock ResNets, and why they have no meaning for the class.
    """
    names: set[str] = set()
    for base in owner.__mro__:
        if '__init__' in vars(base) and base is not object:
            names.update(inspect.signature(vars(base)['__init__']).parameters)
    names -= {'self', 'args', 'kwargs'}
    match = nearest(name, names)
    message = f'{owner.__name__} has no argument {name!r}'
    if name in foreign:
        message += f', which is for ResNets alone: here {foreign[name]}. Leave it out by '
        message += '_delete_=True in the backbone'
    elif match:
        message += f'; did you mean {match!r}?'
    else:
        message += f'; it has {", ".join(sorted(names))}.'
    return TypeError(message)
