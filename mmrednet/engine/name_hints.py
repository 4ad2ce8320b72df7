"""The registered name that a config may have meant by a misspelt one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine import registry as registries
from mmengine.registry import DefaultScope, Registry

from ..spelling import nearest

# mmengine's error for a name that no registry has
UNREGISTERED = re.compile(r'(\S+) is not in the (?:\S+::)?(.+?) registry')


@contextmanager
def named_types() -> Iterator[None]:
    """Let errors for misspelt types in a config name the nearest registered one.

    The context may decorate the main function of a script.

    Raises:
        KeyError: In place of mmengine's, which names the misspelt type alone.
    """
    try:
        yield
    except KeyError as error:
        match = UNREGISTERED.search(str(error.args[0]))
        hint = None if match is None else nearest_type(match[1], match[2])
        if match is None or hint is None:
            raise
        raise KeyError(
            f'type={match[1]!r} in the config is no registered {match[2]}; did you mean {hint!r}?'
        ) from error


def nearest_type(name: str, registry_name: str) -> str | None:
    """Return the registered name that is most like another one, as a config has to write it.

    Args:
        name: Misspelt name, with or without the scope.
        registry_name: Name of the registry, such as 'model' or 'task util'.
    """
    spellings: dict[str, str] = {}
    for registry in _same_name(registry_name):
        for registered in registry.module_dict:
            spellings.setdefault(registered, _spelling(registry, registered))
    match = nearest(name.rpartition('.')[2], spellings)
    return spellings[match] if match else None


def _same_name(registry_name: str) -> list[Registry]:
    """Return mmengine's registry of a name and its children, those of the config's scope first."""
    roots = [value for value in vars(registries).values() if isinstance(value, Registry)]
    related: list[Registry] = []
    for root in roots:
        if root.name == registry_name and root not in related:
            related += [root, *root.children.values()]
    for registry in related:
        if registry.scope == 'mmrednet':
            # ours are registered when they are first asked for
            registry.import_from_location()
    scopes = (_default_scope(), 'mmengine', 'mmrednet')
    return sorted(related, key=lambda registry: _rank(registry.scope, scopes))


def _rank(scope: str, scopes: tuple[str | None, ...]) -> int:
    return scopes.index(scope) if scope in scopes else len(scopes)


def _default_scope() -> str | None:
    scope = DefaultScope.get_current_instance()
    return None if scope is None else scope.scope_name


def _spelling(registry: Registry, name: str) -> str:
    """Return a registered name with its scope, unless that is the config's or mmengine's."""
    if registry.scope in (_default_scope(), 'mmengine'):
        return name
    return f'{registry.scope}.{name}'
