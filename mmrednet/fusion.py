"""Fold batch norms into the layers before them, an explicit step before deployment."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.hooks import Hook
from mmengine.model import Sequential
from mmengine.runner import Runner
from torch import Tensor, nn

from .layers.axial import AxialAttention1d
from .layers.involution import Involution
from .layers.plain import BATCH_NORMS, is_plain


def fuse(model: nn.Module) -> nn.Module:
    """Fold batch norms of a model in eval mode into the layers before them, in place.

    A convolution takes the norm behind it into its weight and bias, by mmcv's ``fuse_conv_bn``. An
    :class:`mmrednet.layers.Involution` takes the norm, and the ReLU behind the norm, into its
    kernel. An :class:`mmrednet.layers.AxialAttention1d` takes its norms of queries, keys and values
    and of its result into its projection. Norms and activations that were taken become
    ``nn.Identity``. Outputs stay the same up to rounding. Calling it again changes nothing.

    A layer, a norm or an activation with hooks, a parametrization or a wrapper is left as it is.
    So is one that several modules share.

    Args:
        model: Any model of the OpenMMLab stack or of torch. A layer and the norm behind it must be
            children of one module, registered one directly after the other. A ReLU must follow in
            a Sequential, or in a module that lists the names of layer, norm and activation in an
            attribute ``consecutive``.

    Returns:
        The same model.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError(
            'model must be in eval mode, since folded norms cannot follow a batch: call '
            f'model.eval() first, got {type(model).__name__} with training=True.'
        )
    owners = Counter(id(child) for module in model.modules() for child in module._modules.values())
    shared = {child for child, count in owners.items() if count > 1}
    for module in list(model.modules()):
        _fold_axial(module, shared)
        _fold_activations(module, shared)
        _fold_norms(module, shared)
    return model


def _fold_axial(module: nn.Module, shared: set[int]) -> None:
    """Let axial attention take its norms, except that of the logits."""
    if type(module) is not AxialAttention1d or not is_plain(module.qkv_transform, nn.Conv1d):
        return
    norms = [module.bn_qkv, module.bn_output]
    if any(id(child) in shared for child in (module.qkv_transform, *norms)):
        return
    if all(is_plain(norm, nn.BatchNorm1d, *BATCH_NORMS) and _is_fixed(norm) for norm in norms):
        module.fold(*map(_scale_and_shift, norms))


def _fold_activations(module: nn.Module, shared: set[int]) -> None:
    """Let involutions take the norm and the ReLU behind them."""
    for layer_name, norm_name, act_name in _triples(module):
        layer, norm, act = (module._modules[name] for name in (layer_name, norm_name, act_name))
        if not isinstance(layer, Involution) or not is_plain(act, nn.ReLU):
            continue
        if _can_fold(layer, norm, shared):
            layer.fold(*_scale_and_shift(norm), relu=True)
            module._modules[norm_name] = nn.Identity()
            module._modules[act_name] = nn.Identity()


def _triples(module: nn.Module) -> list[tuple[str, ...]]:
    """Return the names of three children that are certainly applied one after another."""
    if type(module) in (nn.Sequential, Sequential):
        names = list(module._modules)
    else:
        # the order of registration does not tell where a block adds its input
        names = list(getattr(module, 'consecutive', ()))
    return list(zip(names, names[1:], names[2:], strict=False))


def _fold_norms(module: nn.Module, shared: set[int]) -> None:
    """Let convolutions and involutions take the norms behind them."""
    if isinstance(module, ConvModule) and 'conv, norm' not in ', '.join(module.order):
        # its children are registered in one order, whatever the order of their calls
        return
    children: list[tuple[str, Any]] = list(module._modules.items())
    for (layer_name, layer), (norm_name, norm) in pairwise(children):
        if not _can_fold(layer, norm, shared):
            continue
        if isinstance(layer, Involution):
            layer.fold(*_scale_and_shift(norm), relu=False)
        else:
            # mmcv pairs children by their order alone, so it is given one pair
            module._modules[layer_name] = fuse_conv_bn(nn.Sequential(layer, norm))[0]
        module._modules[norm_name] = nn.Identity()


def _can_fold(layer: Any, norm: Any, shared: set[int]) -> bool:
    if not is_plain(layer, nn.Conv2d, Involution) or not is_plain(norm, *BATCH_NORMS):
        return False
    if id(layer) in shared or id(norm) in shared:
        return False
    is_fixed = _is_fixed(norm)
    if isinstance(layer, Involution):
        channels, is_free = layer.groups * layer.group_channels, layer.scale is None
        return is_fixed and is_free and norm.num_features == channels
    return is_fixed and norm.num_features == layer.out_channels


def _is_fixed(norm: Any) -> bool:
    # a norm without running statistics looks at its batch in eval mode too
    return not norm.training and norm.running_mean is not None and norm.affine


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand of a batch norm in eval mode, in float32 or wider."""
    mean, variance = norm.running_mean, norm.running_var
    dtype = torch.promote_types(variance.dtype, torch.float32)
    scale = (variance.to(dtype) + norm.eps).rsqrt() * norm.weight.detach()
    return scale, norm.bias.detach() - mean * scale


class FuseHook(Hook):
    """Test a folded copy of the model, made when its weights have been loaded and averaged."""

    # after hooks that swap weights, such as mmengine's EMAHook
    priority = 'LOWEST'

    def before_test_epoch(self, runner: Runner) -> None:
        """Replace the model of the runner by a folded copy."""
        model = copy.deepcopy(runner.model)
        # networks of mmdet return nothing from eval()
        model.eval()
        runner.model = fuse(model)
