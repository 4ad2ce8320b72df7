"""Fold norms, scales and activations into the layers beside them, an explicit step before
deployment.
"""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import Any

from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.hooks import Hook
from mmengine.model import Sequential
from mmengine.runner import Runner
from torch import nn

from .backbones.van import VANBlock
from .backbones.van_folding import FoldedVANBlock, parts_to_fold
from .layers.axial import AxialAttention1d
from .layers.depth_wise import DepthWiseConv2d
from .layers.fixed_norm import is_fixed, scale_and_shift
from .layers.fused import FusedConv2d, FusedLinear
from .layers.involution import Involution
from .layers.local_relation import LocalRelation
from .layers.plain import has_pointwise_kernel, is_plain


def fuse(model: nn.Module) -> nn.Module:
    """Fold batch norms of a model in eval mode into the layers before them, in place.

    A convolution takes the norm behind it into its weight and bias, by mmcv's ``fuse_conv_bn``. So
    does the last convolution of a :class:`mmrednet.layers.LocalRelation`. An
    :class:`mmrednet.layers.Involution` takes the norm, and the ReLU behind the norm, into its
    kernel. An :class:`mmrednet.layers.AxialAttention1d` takes its norms of queries, keys and values
    and of its result into its projection. Norms and activations that were taken become
    ``nn.Identity``. A block of VAN or MSCAN becomes a
    :class:`mmrednet.backbones.van_folding.FoldedVANBlock`: its 1x1 convolutions take the norms
    before them and the scales behind them.

    A linear layer becomes a :class:`mmrednet.layers.FusedLinear`, and a 1x1 convolution a
    :class:`mmrednet.layers.FusedConv2d`. They apply a ReLU or GELU behind them as well.

    Outputs stay the same up to rounding. Calling it again changes nothing. A layer, a norm or an
    activation with hooks, a parametrization or a wrapper is left as it is. So is one that several
    modules share.

    Args:
        model: Any model of the OpenMMLab stack or of torch. A layer and the norm behind it must be
            children of one module, registered one directly after the other. An activation must
            follow in a Sequential, in mmcv's ConvModule, or in a module that lists the names of
            layer, norm and activation in an attribute ``consecutive``.

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
        _fold_blocks(module, shared)
    for module in list(model.modules()):
        _fold_axial(module, shared)
        _fold_activations(module, shared)
        _fold_norms(module, shared)
    kept = shared | _read_by_parents(model)
    for module in list(model.modules()):
        _fuse_layers(module, kept)
    return model


def _fold_axial(module: nn.Module, shared: set[int]) -> None:
    """Let axial attention take its norms, except that of the logits."""
    if type(module) is not AxialAttention1d or not is_plain(module.qkv_transform, nn.Conv1d):
        return
    norms = [module.bn_qkv, module.bn_output]
    if any(id(child) in shared for child in (module.qkv_transform, *norms)):
        return
    if all(map(is_fixed, norms)):
        module.fold(*map(scale_and_shift, norms))


def _fold_blocks(module: nn.Module, shared: set[int]) -> None:
    """Replace blocks of VAN whose norms and scales their convolutions can take."""
    for name, block in module._modules.items():
        if not isinstance(block, VANBlock) or not is_plain(block, VANBlock):
            continue
        parts = parts_to_fold(block)
        if parts is not None and shared.isdisjoint(map(id, [block, *parts])):
            module._modules[name] = FoldedVANBlock(block).eval()


def _fold_activations(module: nn.Module, shared: set[int]) -> None:
    """Let involutions take the norm and the ReLU behind them."""
    names = _consecutive(module)
    for layer_name, norm_name, act_name in zip(names, names[1:], names[2:], strict=False):
        layer, norm, act = (module._modules[name] for name in (layer_name, norm_name, act_name))
        if not isinstance(layer, Involution) or not is_plain(act, nn.ReLU):
            continue
        if _can_fold(layer, norm, shared):
            layer.fold(*scale_and_shift(norm), relu=True)
            module._modules[norm_name] = nn.Identity()
            module._modules[act_name] = nn.Identity()


def _consecutive(module: nn.Module) -> list[str]:
    """Return the names of children that are certainly applied one after another."""
    if type(module) in (nn.Sequential, Sequential):
        return list(module._modules)
    if type(module) is ConvModule and module.order == ('conv', 'norm', 'act'):
        names = ['conv', getattr(module, 'norm_name', None), 'activate']
        return [name for name in names if name in module._modules]
    # the order of registration does not tell where a block adds its input
    return list(getattr(module, 'consecutive', ()))


def _read_by_parents(model: nn.Module) -> set[int]:
    """Return the ids of the modules that a module reads instead of calling them."""
    return {
        id(child)
        for module in model.modules()
        for name in getattr(module, 'read_children', ())
        for child in getattr(module, name).modules()
    }


def _fuse_layers(module: nn.Module, kept: set[int]) -> None:
    """Replace linear layers and 1x1 convolutions, and let them take the activation behind them."""
    activations = _activations(module, kept)
    children: list[tuple[str, Any]] = list(module._modules.items())
    for name, child in children:
        if id(child) in kept:
            continue
        act_name, activation = activations.get(name, (None, 'none'))
        if is_plain(child, nn.Linear):
            module._modules[name] = FusedLinear.of(child, activation)
        elif is_plain(child, nn.Conv2d) and has_pointwise_kernel(child):
            module._modules[name] = FusedConv2d.of(child, activation)
        else:
            continue
        if act_name is not None:
            module._modules[act_name] = nn.Identity()


def _activations(module: nn.Module, kept: set[int]) -> dict[str, tuple[str, str]]:
    """Return name and function of the activation directly behind each child that has one."""
    # what was folded left identities behind
    names = [
        name for name in _consecutive(module) if not is_plain(module._modules[name], nn.Identity)
    ]
    activations = {}
    for layer_name, act_name in pairwise(names):
        act = getattr(module, act_name)
        if id(act) in kept:
            continue
        if is_plain(act, nn.ReLU):
            activations[layer_name] = (act_name, 'relu')
        elif is_plain(act, nn.GELU) and act.approximate == 'none':
            activations[layer_name] = (act_name, 'gelu')
    return activations


def _fold_norms(module: nn.Module, shared: set[int]) -> None:
    """Let convolutions, involutions and local relations take the norms behind them."""
    if isinstance(module, ConvModule) and 'conv, norm' not in ', '.join(module.order):
        # its children are registered in one order, whatever the order of their calls
        return
    children: list[tuple[str, Any]] = list(module._modules.items())
    for (layer_name, layer), (norm_name, norm) in pairwise(children):
        if not _can_fold(layer, norm, shared):
            continue
        if isinstance(layer, Involution):
            layer.fold(*scale_and_shift(norm), relu=False)
        elif isinstance(layer, LocalRelation):
            layer.project = _folded(layer.project, norm)
        else:
            module._modules[layer_name] = _folded(layer, norm)
        module._modules[norm_name] = nn.Identity()


def _folded(convolution: nn.Module, norm: nn.Module) -> Any:
    # mmcv pairs children by their order alone, so it is given one pair
    return fuse_conv_bn(nn.Sequential(convolution, norm))[0]


def _can_fold(layer: Any, norm: Any, shared: set[int]) -> bool:
    if id(layer) in shared or id(norm) in shared:
        return False
    if is_plain(layer, LocalRelation):
        return _can_fold(layer.project, norm, shared)
    if not is_plain(layer, nn.Conv2d, DepthWiseConv2d, Involution) or not is_fixed(norm):
        return False
    if isinstance(layer, Involution):
        channels = layer.groups * layer.group_channels
        return layer.scale is None and norm.num_features == channels
    return norm.num_features == layer.out_channels


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
