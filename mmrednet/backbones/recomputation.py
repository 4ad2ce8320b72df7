"""Blocks that the backward pass computes again, without a trace of the second computation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ..layers.plain import is_plain
from ..ops.tracing import is_captured
from ..ops.transforms import is_transformed

# for each buffer its module, its name and a copy of it
Buffers = list[tuple[nn.Module, str, Tensor]]


def recomputed(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``, whose intermediate results are made again in the backward pass.

    The second computation starts from the buffers that the first one started from, and leaves no
    trace in them: a batch norm counts the batch once, and the power iteration of a spectral norm
    gives the same weight again.

    Args:
        module: Module that the function computes with.
        function: Function of one tensor.
        x: Its argument, which has a gradient.
    """
    # torch.compile plans the recomputation itself, and updates buffers once
    if torch.compiler.is_compiling():
        return torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
    buffers = _copies(module)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _Replaced(buffers)

    return torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False, context_fn=contexts)


def keeping_input(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    """Return ``second(first(x))``, and keep x alone for the backward pass.

    That pass computes ``first`` again where it is GELU in front of a linear layer: it takes little
    time, and its result takes as much memory as x.
    """
    is_recorded = torch.is_grad_enabled() and x.requires_grad
    # a hook would see two calls
    are_plain = is_plain(first, nn.GELU) and is_plain(second, nn.Linear)
    if not is_recorded or not are_plain or is_captured(x) or is_transformed([x]):
        return second(first(x))
    # torch stops it when it has what the gradients need, which is before the linear layer
    return torch.utils.checkpoint.checkpoint(
        lambda features: second(first(features)), x, use_reentrant=False, preserve_rng_state=False
    )


def _copies(module: nn.Module) -> Buffers:
    # a module in eval mode changes no buffer
    owners = [owner for owner in module.modules() if owner.training]
    return [
        (owner, name, buffer.clone())
        for owner in owners
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]


class _Replaced:
    """Context in which modules work on copies of their buffers.

    Writing the old values back would change tensors that the graph may have stored. A graph that
    is kept enters the context once for every backward pass.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.originals: list[Tensor | None] = []

    def __enter__(self) -> None:
        self.originals = [owner._buffers[name] for owner, name, _ in self.buffers]
        for owner, name, copy in self.buffers:
            owner._buffers[name] = copy.clone()

    def __exit__(self, *_: object) -> None:
        for (owner, name, _copy), original in zip(self.buffers, self.originals, strict=True):
            owner._buffers[name] = original
