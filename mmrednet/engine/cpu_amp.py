"""Mixed precision on a CPU: autocast to bfloat16, which needs no loss scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper, whose forward runs under autocast to bfloat16 on the CPU.

    bfloat16 has the range of float32, so that gradients need no scale. Arguments: see mmengine's
    OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast, and what accumulation of gradients needs."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
