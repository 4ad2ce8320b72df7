"""Leaves of ``torch.fx``: functions and modules that a trace records as single nodes.

``torch.fx.symbolic_trace`` runs a network on proxies, which have neither a shape nor a dtype. What
looks at either has to be a leaf.

``torch.export`` runs it on tensors whose sizes may be symbols: what branches on a size asks
``is_open``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import fx

Function = TypeVar('Function', bound=Callable)


def is_open(size: Sequence[int]) -> bool:
    """Return whether a program is exported for feature maps of any size, instead of this one."""
    # torch.fx records sizes that cannot be looked at
    if not torch.compiler.is_exporting():
        return False
    return any(isinstance(length, torch.SymInt) for length in size)


def is_captured(x: Any) -> bool:
    """Return whether a program is being traced, which should record what the layers say.

    Args:
        x: Input of a layer.
    """
    is_proxy = isinstance(x, fx.Proxy)
    return is_proxy or torch.jit.is_tracing() or torch.compiler.is_compiling()


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
