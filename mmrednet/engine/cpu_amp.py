"""Mixed precision on a CPU: autocast to bfloat16, which needs no loss scale."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

# functions of mmcv that know no bfloat16 on a CPU, in the modules that look them up
FLOAT32_OPERATORS = (('mmcv.ops.nms', 'nms'), ('mmcv.ops.roi_align', 'roi_align'))


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper, whose forward runs under autocast to bfloat16 on the CPU.

    bfloat16 has the range of float32, so that gradients need no scale. Arguments: see mmengine's
    OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast, and what accumulation of gradients needs."""
        with ExitStack() as stack:
            stack.enter_context(super().optim_context(model))
            stack.enter_context(torch.autocast('cpu', torch.bfloat16))
            for module, name in FLOAT32_OPERATORS:
                stack.enter_context(_in_float32(module, name))
            yield


@contextmanager
def _in_float32(module_name: str, name: str) -> Iterator[None]:
    """Let a function of a module compute half precision in float32 inside of the context."""
    try:
        module = import_module(module_name)
    except ImportError:
        # mmcv without its compiled operators
        yield
        return
    function = getattr(module, name)
    setattr(module, name, _casting(function))
    try:
        yield
    finally:
        setattr(module, name, function)


def _casting(function: Callable) -> Callable:
    """Return a function that casts its tensors to float32, and its first result back."""

    @functools.wraps(function)
    def cast(first: Tensor, *arguments: Any, **options: Any) -> Any:
        tensors = [x.float() if isinstance(x, Tensor) else x for x in arguments]
        result = function(first.float(), *tensors, **options)
        return result.to(first.dtype) if isinstance(result, Tensor) else result

    return cast
