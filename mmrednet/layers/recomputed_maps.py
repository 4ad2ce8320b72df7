"""Maps that the backward pass computes again from what is kept anyway.

A batch norm keeps its input for the backward pass. The layers behind it keep its output, or that of
the ReLU between them, which is as large and takes little time to compute. The same holds for GELU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model.utils import _BatchNormXd
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from ..ops.tracing import is_captured
from ..ops.transforms import is_transformed
from .plain import is_plain


def _batch_norm(norm: Any, x: Tensor) -> Tensor:
    # in training the statistics are those of the batch again; the running ones were updated before
    uses_batch = norm.training or norm.running_mean is None
    mean, variance = (None, None) if uses_batch else (norm.running_mean, norm.running_var)
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, uses_batch, 0.0, norm.eps)


# how a module is computed again: without an effect on it, and with the same result bit by bit
REPEATS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    _BatchNormXd: _batch_norm,
    nn.Conv2d: lambda conv, x: conv._conv_forward(x, conv.weight, conv.bias),
    nn.GELU: lambda gelu, x: F.gelu(x, approximate=gelu.approximate),
    nn.ReLU: lambda _, x: x.relu_(),
}


class _Map:
    """A map that can be computed again. It takes memory only while the backward pass reads it.

    Args:
        source: What it is computed from, a tensor or another such map.
        modules: Modules that are applied to the source.
    """

    def __init__(self, source: Tensor | _Map, modules: tuple[nn.Module, ...]) -> None:
        self.source, self.modules = source, modules
        self.device: str = source.device.type if isinstance(source, Tensor) else source.device
        # a convolution has another dtype under autocast, which has ended when it is computed again
        self.dtype = torch.get_autocast_dtype(self.device)
        self.is_cast = torch.is_autocast_enabled(self.device)
        # how often the backward pass reads it, and how often it still will
        self.reads = self.left = 0
        self.value: Tensor | None = None

    def compute(self) -> Tensor:
        """Return the map."""
        if self.value is None:
            with torch.no_grad(), torch.autocast(self.device, self.dtype, self.is_cast):
                x = self.source.compute() if isinstance(self.source, _Map) else self.source
                for module in self.modules:
                    x = REPEATS[type(module)](module, x)
                self.value = x
        return self.value

    def read(self) -> Tensor:
        """Return the map for one of the reads of the backward pass."""
        value = self.compute()
        self.left -= 1
        if self.left == 0:
            # a graph that is kept is read again
            self.value, self.left = None, self.reads
        return value


class RecomputedMaps:
    """Context in which maps of :func:`recomputed_map` are not kept for the backward pass."""

    _stacks = threading.local()

    def __init__(self) -> None:
        # by the address of their memory, with the version of the map that can be computed
        self.maps: dict[int, tuple[_Map, int | None]] = {}
        # memory that is freed would be given to other tensors
        self.alive: list[Tensor] = []
        self.hooks = saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> RecomputedMaps:
        self.hooks.__enter__()
        self._stack().append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack().pop()
        self.hooks.__exit__(*error)
        self.maps.clear()
        self.alive.clear()

    @classmethod
    def _stack(cls) -> list[RecomputedMaps]:
        if not hasattr(cls._stacks, 'contexts'):
            cls._stacks.contexts = []
        return cls._stacks.contexts

    @classmethod
    def current(cls) -> RecomputedMaps | None:
        """Return the context whose hooks torch calls now, or None.

        They are not called under hooks of others, such as those of ``torch.utils.checkpoint``.
        """
        top = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)
        stack = cls._stack()
        if not stack or top is None:
            return None
        hooks = top(False)
        return stack[-1] if hooks and hooks[0] == stack[-1]._pack else None

    def add(self, x: Tensor, entry: _Map, version: int | None) -> None:
        """Note that a map can be computed again.

        Args:
            x: The map.
            entry: How it is computed.
            version: Its version, which changes when it is overwritten. With None it does not
                matter: it is about to be overwritten by the next module.
        """
        self.maps[_address(x)] = entry, version
        self.alive.append(x)

    def source(self, x: Tensor) -> Tensor | _Map:
        """Return what a map is computed from that is made of x."""
        entry = self._entry(x)
        return x.detach() if entry is None else entry

    def _entry(self, x: Tensor) -> _Map | None:
        entry, version = self.maps.get(_address(x), (None, None))
        return entry if version is None or x._version == version else None

    def _pack(self, x: Tensor) -> Any:
        # tensors of other classes may have no memory of their own
        entry = self._entry(x) if type(x) is Tensor else None
        if entry is None:
            # a graph that held its own output would never be freed
            return x.detach(), x._version
        entry.reads += 1
        entry.left += 1
        return entry, x.shape, x.stride(), x.storage_offset()

    @staticmethod
    def _unpack(packed: Any) -> Tensor:
        kept, *rest = packed
        if isinstance(kept, _Map):
            return kept.read().as_strided(*rest)
        # torch does not look where there are hooks
        if kept._version != rest[0]:
            raise RuntimeError(
                'a tensor that the backward pass needs was overwritten: '
                f'{tuple(kept.shape)} has version {kept._version}, expected {rest[0]}.'
            )
        return kept


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def recomputed_map(
    x: Tensor,
    *modules: nn.Module,
    apply: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x),
) -> Tensor:
    """Return ``modules[-1](... modules[0](x))``, which the backward pass may compute again.

    It does inside :class:`RecomputedMaps`, for modules that :data:`REPEATS` has and that are called
    without side effects. Elsewhere the modules are called and nothing else happens.

    Args:
        x: Input of the first module, which should be kept for the backward pass anyway, or be a
            recomputed map itself.
        modules: A batch norm, GELU or convolution, and a ReLU behind it.
        apply: Function that applies a module. Default: it is called.
    """
    context = None
    can_repeat = all(is_plain(module, *REPEATS) for module in modules)
    if can_repeat and not _overwrites(modules[0]) and _is_recorded(x):
        context = RecomputedMaps.current()
    if context is None:
        for module in modules:
            x = apply(module, x)
        return x
    entry = _Map(context.source(x), modules)
    for module in modules:
        if _overwrites(module):
            # it keeps its result, which has the same memory
            context.add(x, entry, None)
        x = apply(module, x)
    context.add(x, entry, x._version)
    return x


def recomputed_conv_module(x: Tensor, module: nn.Module) -> Tensor:
    """Return ``module(x)``, of mmcv's ConvModule, which the backward pass may compute again.

    That includes the convolution, so that it should be a small one.
    """
    if not is_plain(module, ConvModule):
        return module(x)
    block: Any = module
    is_usual = block.order == ('conv', 'norm', 'act') and block.with_norm and block.with_activation
    # older versions of mmcv do not have it
    is_joined = getattr(block, 'efficient_conv_bn_eval_forward', None) is not None
    if not is_usual or block.with_explicit_padding or is_joined:
        return module(x)
    return recomputed_map(recomputed_map(x, block.conv), block.norm, block.activate)


def _overwrites(module: nn.Module) -> bool:
    return getattr(module, 'inplace', False)


def _is_recorded(x: Tensor) -> bool:
    if is_captured(x) or is_transformed([x]):
        return False
    # maps without memory, as those of the meta device and of empty batches, have no address
    return type(x) is Tensor and not x.is_meta and x.numel() > 0
