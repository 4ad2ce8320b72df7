"""What ``mmengine.hub.get_model('mmrednet::...')`` calls, under the name that it asks for."""

from __future__ import annotations

from importlib.util import find_spec

from .engine import HOSTS, register_host


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register the classes of the installed frameworks; ours are registered when they are named.

    Args:
        init_default_scope: True to build names without a scope from mmseg, or from mmdet where
            mmseg is missing. Parts of configs that inherit from mmdet have its scope in them.
            Default: True.
    """
    for scope in HOSTS:
        if find_spec(scope) is not None:
            register_host(scope, init_default_scope=init_default_scope)
