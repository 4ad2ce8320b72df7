"""A layer and the norm behind it in one pass over memory, where nothing needs what lies between.

On a CPU a norm and a ReLU are bound by memory, not by arithmetic, once maps outgrow the caches. In
inference a norm can be part of the weights of a convolution, and both can be part of involution's
kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import Sequential
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

# fewer numbers are normed faster than what a norm multiplies with is found
LEAST_SAVED = 1 << 18


def takes_affine(forward: Callable) -> Callable:
    """Mark a ``forward(x, scale, shift, *, relu)`` that scales and shifts its channels and applies
    ReLU by itself.
    """
    forward.takes_affine = True  # type: ignore[attr-defined]
    return forward


def one_pass(
    x: Tensor,
    layer: nn.Module,
    norm: nn.Module | None = None,
    act: nn.Module | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """Return ``act(norm(layer(x)) + added)``.

    Norms are folded anew in every call, so weights may change at any time. With gradients, off the
    CPU, under autocast, while a program is traced, and where a module has hooks or is of another
    type, the modules are called one by one.

    Args:
        x: (B, C, H, W).
        layer: a convolution, mmcv's ConvModule or an involution gains; any other module may stand
            here.
        norm: a batch norm in eval mode gains; None is no norm.
        act: a ReLU behind an involution gains; None is no activation.
        added: of the shape of the result, or None.
    """
    if (
        type(layer) is ConvModule
        and norm is act is added is None
        and _is_plain(layer)
        and may_open(layer, x)
    ):
        parts: list[Any] = [
            layer.conv,
            layer.norm,
            layer.activate if layer.with_activation else None,
        ]
        return one_pass(x, *parts)
    affine = hasattr(layer.forward, 'takes_affine') and added is None
    if (
        isinstance(norm, _BatchNorm)
        and _infers(x)
        and _pays(x, layer, affine)
        and _may_fuse(layer, norm, act)
    ):
        if affine:
            return layer(x, *_affine(norm), relu=act is not None)
        return _finished(_convolve(x, layer, norm), act, added)
    out = layer(x)
    return _finished(out if norm is None else norm(out), act, added)


def _finished(out: Tensor, act: nn.Module | None, added: Tensor | None) -> Tensor:
    if added is not None:
        out = out.add_(added)
    return out if act is None else act(out)


def may_open(container: nn.Module, x: Tensor) -> bool:
    """Return whether the modules of a Sequential or a ConvModule may be called without it: nobody
    looks at it.
    """
    return (
        type(container) in (nn.Sequential, Sequential, ConvModule)
        and _infers(x)
        and _is_unobserved(container)
    )


def _infers(x: Tensor) -> bool:
    if (
        torch.is_grad_enabled()
        or type(x) is not Tensor
        or x.device.type != 'cpu'
        or torch.is_autocast_enabled('cpu')
    ):
        return False
    return not torch.jit.is_tracing() and not torch.compiler.is_compiling()


def _may_fuse(layer: nn.Module, norm: _BatchNorm, act: nn.Module | None) -> bool:
    if (
        norm.training
        or norm.running_mean is None
        or type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm)
    ):
        return False
    modules = (layer, norm) if act is None else (layer, norm, act)
    return all(map(_is_unobserved, modules)) and (act is None or type(act) is nn.ReLU)


def _is_unobserved(module: nn.Module) -> bool:
    # torch's FLOP counter is a hook on all modules
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
    )
    return not hooked and 'forward' not in vars(module)


def _is_plain(layer: ConvModule) -> bool:
    return layer.order == ('conv', 'norm', 'act') and not layer.with_explicit_padding


def _pays(x: Tensor, layer: nn.Module, affine: bool) -> bool:
    """Return whether a norm is worth computing with what is before it, which an operator may take
    or a convolution.

    That takes some microseconds, and of a convolution the weights are written once more; those of
    half precision would be rounded a second time.
    """
    if affine:
        return x.numel() >= LEAST_SAVED
    if type(layer) is not nn.Conv2d or layer.weight.dtype not in (torch.float32, torch.float64):
        return False
    places = x.shape[0] * x.shape[-2] * x.shape[-1] // (layer.stride[0] * layer.stride[1])
    return places * layer.out_channels - layer.weight.numel() >= LEAST_SAVED


def _convolve(x: Tensor, conv: Any, norm: _BatchNorm) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return conv._conv_forward(
        x,
        *fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        ),
    )


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what a batch norm in eval mode multiplies with and then adds, in float32 or wider."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance = norm.running_var.to(torch.promote_types(norm.running_var.dtype, torch.float32))
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
