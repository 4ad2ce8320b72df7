"""Do something once another package is imported, by whomever, without importing it here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Call ``action`` now if the module ``name`` is imported already, else right after it is; never if it never is."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Listener(name, action))


class _Listener(MetaPathFinder):
    """Finds one module as the others do, and lets its first import end with an action."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.action, self.asking = name, action, False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
                  ) -> ModuleSpec | None:
        if fullname != self.name or self.asking:
            return None
        self.asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                # whoever asks for the spec alone leaves the listener where it is
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.action()
            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
