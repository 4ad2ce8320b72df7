"""Leaves of ``torch.fx``: functions and modules that a trace records as single nodes.

``torch.fx.symbolic_trace`` runs a network on proxies, which have neither a shape nor a dtype. What
looks at either has to be a leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import fx

Function = TypeVar('Function', bound=Callable)


def leaf_function(function: Function) -> Function:
    """Let ``torch.fx`` record calls of a function without looking into it."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy('call_function', call, args, kwargs)
        return function(*args, **kwargs)

    return cast(Function, call)


def leaf_module(forward: Function) -> Function:
    """Let ``torch.fx`` record calls of a module without looking into it.

    Args:
        forward: The module's method, which takes one tensor.
    """

    @functools.wraps(forward)
    def call(self: Any, x: Any) -> Any:
        if isinstance(x, fx.Proxy):
            tracer: Any = x.tracer
            return tracer.create_proxy('call_module', tracer.path_of_module(self), (x,), {})
        return forward(self, x)

    return cast(Function, call)
