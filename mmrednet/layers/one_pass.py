"""A layer, the norm behind it, what is added and a ReLU in one pass over memory, where nothing needs what lies between.

On a CPU each of these is bound by memory, not by arithmetic, once maps outgrow the caches. In inference oneDNN, which
computes torch's convolutions there, can do all of it while a result is in registers, and so can involution's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


def takes_affine(forward: Callable) -> Callable:
    """Mark a ``forward(x, scale, shift, *, relu)`` that scales and shifts its channels and applies ReLU by itself."""
    forward.takes_affine = True  # type: ignore[attr-defined]
    return forward


def one_pass(x: Tensor, layer: nn.Module, norm: nn.Module | None = None, act: nn.Module | None = None,
             added: Tensor | None = None) -> Tensor:
    """Return ``act(norm(layer(x)) + added)``.

    Norms are folded anew in every call, so weights may change at any time. With gradients, off the CPU, under autocast,
    while a program is traced, and where a module has hooks or is of another type, the modules are called one by one.

    Args:
        x: (B, C, H, W).
        layer: a convolution, mmcv's ConvModule or an involution gains; any other module may stand here.
        norm: a batch norm in eval mode or an Identity gains; None is no norm.
        act: a ReLU gains; None is no activation.
        added: of the shape of the result, or None.
    """
    if _may_fuse(x, layer, norm, act):
        if type(layer) is ConvModule and norm is act is added is None and _is_plain(layer):
            parts: list[Any] = [layer.conv, layer.norm, layer.activate if layer.with_activation else None]
            return one_pass(x, *parts)
        if type(layer) is nn.Conv2d and _pays(x, layer, norm):
            return _convolve(x, layer, norm, act, added)
        if hasattr(layer.forward, 'takes_affine') and isinstance(norm, _BatchNorm) and added is None:
            return layer(x, *_affine(norm), relu=act is not None)
    out = layer(x)
    if norm is not None:
        out = norm(out)
    if added is not None:
        out = out.add_(added)
    return out if act is None else act(out)


def _may_fuse(x: Tensor, layer: nn.Module, norm: nn.Module | None, act: nn.Module | None) -> bool:
    if torch.is_grad_enabled() or type(x) is not Tensor or x.device.type != 'cpu' or torch.is_autocast_enabled('cpu'):
        return False
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    # torch's FLOP counter is one of these hooks
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return False
    modules = [module for module in (layer, norm, act) if module is not None]
    if any(module._forward_hooks or module._forward_pre_hooks or 'forward' in vars(module) for module in modules):
        return False
    return _is_affine(norm) and (act is None or type(act) is nn.ReLU)


def _is_affine(norm: nn.Module | None) -> bool:
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.running_mean is not None
    return norm is None or type(norm) is nn.Identity


def _is_plain(layer: ConvModule) -> bool:
    return layer.order == ('conv', 'norm', 'act') and not layer.with_explicit_padding


def _pays(x: Tensor, conv: nn.Conv2d, norm: nn.Module | None) -> bool:
    """Return whether a norm is worth folding: that writes the weights once more, which exceed small maps.

    Folded weights of half precision would be rounded a second time.
    """
    if not isinstance(norm, _BatchNorm):
        return True
    if conv.weight.dtype not in (torch.float32, torch.float64):
        return False
    outputs = x.shape[0] * x.shape[-2] * x.shape[-1] // (conv.stride[0] * conv.stride[1])
    return outputs >= conv.weight[0].numel()


def _convolve(x: Tensor, conv: nn.Conv2d, norm: nn.Module | None, act: nn.Module | None,
              added: Tensor | None) -> Tensor:
    weight, bias = conv.weight, conv.bias
    if isinstance(norm, _BatchNorm):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
                                            norm.bias)
    if act is not None and added is None and _suits_onednn(x, conv):
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups, 'relu', [], '')
    out = conv._conv_forward(x, weight, bias)
    if added is not None:
        out = out.add_(added)
    return out if act is None else out.relu_()


def _suits_onednn(x: Tensor, conv: nn.Conv2d) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    tensors = [x, conv.weight] if conv.bias is None else [x, conv.weight, conv.bias]
    floats = all(tensor.dtype == torch.float32 and tensor.device.type == 'cpu' for tensor in tensors)
    return floats and x.dim() == 4 and conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what a batch norm in eval mode multiplies with and then adds, in float32 or wider."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance = norm.running_var.to(torch.promote_types(norm.running_var.dtype, torch.float32))
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
