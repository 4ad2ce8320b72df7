"""Whether a fused operator may read the weight of a child module instead of calling the child."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model.utils import _BatchNormXd
from torch import nn
from torch.nn.modules import module as module_hooks

from .fused import FusedConv2d

# attributes that replace a computation when they are set on an instance
PATCHES = ('forward', '_conv_forward')

# mmengine makes a SyncBatchNorm on one device its private class. To ask it for one would import
# the compiled operators of mmcv
BATCH_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    _BatchNormXd,
)

# counters of FLOPs, whose hooks note which module runs: they count what runs in place of a child
COUNTERS = (
    'torch.utils.module_tracker',
    'mmengine.analysis.jit_analysis',
    'fvcore.nn.jit_analysis',
)


def is_plain(module: nn.Module | None, *types: type[nn.Module]) -> bool:
    """Return whether a module is exactly of one of these types and is called without side effects.

    An operator may then use the parameters of the module and skip its ``forward``. In all other
    cases the module has to be called:

    * subclasses and wrappers, such as LoRA and layers for quantisation-aware training, compute
      something else. So do parametrized modules, for which torch makes a subclass.
    * Hooks observe or change the call. Pruning, and the older weight and spectral norms, are
      hooks. Those of FLOP counters do not matter: they count the fused operator.
    * A ``forward`` may be replaced on one instance.
    """
    if module is None or type(module) not in types:
        return False
    if any(name in module.__dict__ for name in PATCHES):
        return False
    tables = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        module_hooks._global_forward_hooks,
        module_hooks._global_forward_pre_hooks,
        module_hooks._global_backward_hooks,
        module_hooks._global_backward_pre_hooks,
    )
    return not any(_matters(hook) for table in tables for hook in table.values())


def _matters(hook: Callable) -> bool:
    return getattr(hook, '__module__', None) not in COUNTERS


def plain_pointwise(module: Any) -> nn.Conv2d | None:
    """Return the 1x1 convolution that a module consists of, or None if it has to be called.

    Args:
        module: A convolution, or mmcv's ConvModule around one without a norm and an activation.
    """
    if is_plain(module, ConvModule):
        if module.with_norm or module.with_activation or module.with_explicit_padding:
            return None
        module = module.conv
    if not is_plain(module, nn.Conv2d, FusedConv2d) or not has_pointwise_kernel(module):
        return None
    is_convolution = getattr(module, 'activation', 'none') == 'none'
    return module if is_convolution and module.stride == (1, 1) else None


def has_pointwise_kernel(convolution: nn.Conv2d) -> bool:
    """Return whether an output of a convolution depends on one position of its input."""
    is_pointwise = convolution.kernel_size == (1, 1) and convolution.groups == 1
    return is_pointwise and convolution.padding == (0, 0)
