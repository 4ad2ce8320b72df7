"""Which of our backbones a file fills: its arguments, read from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .fitting import stem_kernel_size
from .formats import Format

State = Mapping[str, Tensor]


def backbone_config(entry: Format, backbone: State) -> dict[str, Any]:
    """Return the config of the backbone that these tensors, in our names, fill.

    Raises:
        CheckpointError: they fill none of the published ones, or the format does not say which.
    """
    if entry.family is None or entry.layout is not None and entry.name == 'rednet-ordered':
        raise CheckpointError(
            f'the names of format {entry.name!r} do not say which network they fill: give its '
            'config (--model).'
        )
    try:
        return dict(type=f'mmrednet.{entry.family}', **_ARGUMENTS[entry.family](entry, backbone))
    except (KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f'the tensors are not those of a published {entry.family}, {error} is not there: give '
            'the config of the network (--model).'
        ) from error


def build_backbone(cfg: dict[str, Any]) -> nn.Module:
    """Return a backbone without storage, for its names and shapes.

    Raises:
        ImportError: mmengine or mmcv are missing.
    """
    from ..registry import MODELS

    with torch.device('meta'):
        return MODELS.build(cfg)


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a network's state dict."""
    return {name: value.shape for name, value in module.state_dict().items()}


def _family(name: str) -> Any:
    from .. import backbones

    return getattr(backbones, name)


def _blocks(backbone: State, stages: str, family: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage; ``stages`` is what the names of stages begin
    with."""
    counts: dict[int, int] = {}
    for name in backbone:
        found = re.match(rf'{stages}(\d)\.(\d+)\.', name)
        if found:
            counts[int(found[1])] = max(counts.get(int(found[1]), 0), int(found[2]) + 1)
    if not counts:
        raise CheckpointError(
            f'a {family} must have stages named {stages!r} and a number, got {list(backbone)[:8]}.'
        )
    return tuple(counts[index] for index in sorted(counts))


def _depth(backbone: State, family: str) -> int:
    counts, known = _blocks(backbone, 'layer', family), _family(family).block_counts
    depth = next((depth for depth, blocks in known.items() if blocks == counts), None)
    if depth is None:
        raise CheckpointError(
            f'the blocks of a published {family} must be one of {known}, got {counts}: give the '
            'config of the network (--model).'
        )
    return depth


def _rednet(_: Format, backbone: State) -> dict[str, Any]:
    size = stem_kernel_size(backbone)
    return dict(
        depth=_depth(backbone, 'RedNet'),
        base_channels=len(backbone['stem.4.conv.weight']),
        **(dict(stem_kernel_size=size) if size else {}),
    )


def _resnet(entry: Format, backbone: State) -> dict[str, Any]:
    gates = [
        kind
        for kind, mark in (('SE', '.se_layer.fc1.weight'), ('CBAM', '.cbam.channel.fc1.weight'))
        if any(name.endswith(mark) for name in backbone)
    ]
    plugins = [dict(cfg=dict(type=f'mmrednet.{kind}'), position='after_conv3') for kind in gates]
    return dict(
        depth=_depth(backbone, 'SpatialResNet'),
        base_channels=len(backbone['conv1.weight']),
        **(dict(plugins=plugins) if plugins else {}),
        # the authors' Caffe network strides in the first convolution
        **(dict(style='caffe') if entry.name == 'se-resnet' else {}),
    )


def _san(_: Format, backbone: State) -> dict[str, Any]:
    relation = 'pairwise' if 'layer0.0.sam.conv_p.weight' in backbone else 'patchwise'
    return dict(depth=_depth(backbone, 'SAN'), relation=relation)


def _axial(_: Format, backbone: State) -> dict[str, Any]:
    factor, archs = len(backbone['conv1.weight']) / 64, _family('AxialResNet').archs
    length = (backbone['layer1.0.height_block.relative'].shape[1] + 1) // 2
    return dict(
        arch=next((name for name, value in archs.items() if value == factor), factor),
        depth=_depth(backbone, 'AxialResNet'),
        input_size=4 * length,
    )


def _van(entry: Format, backbone: State) -> dict[str, Any]:
    depths = _blocks(backbone, 'block', 'VAN')
    dims = tuple(len(backbone[f'norm{index + 1}.weight']) for index in range(len(depths)))
    ratios = tuple(
        len(backbone[f'block{index + 1}.0.mlp.fc1.weight']) // dims[index]
        for index in range(len(depths))
    )
    arch = dict(embed_dims=dims, depths=depths, mlp_ratios=ratios)
    known = _family(entry.family or 'VAN').archs
    return dict(arch=next((name for name, value in known.items() if value == arch), arch))


_ARGUMENTS = {
    'RedNet': _rednet,
    'SpatialResNet': _resnet,
    'SAN': _san,
    'AxialResNet': _axial,
    'VAN': _van,
    'MSCAN': _van,
}
