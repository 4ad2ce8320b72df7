"""The backbones that benchmarks compare, and a step of each: inference or training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmrednet import fuse

BASELINE = 'mmdet ResNet-50'
# one of each family
FAMILIES: dict[str, dict[str, Any]] = {
    BASELINE: dict(type='mmdet.ResNet', depth=50),
    'RedNet-50': dict(type='mmrednet.RedNet', depth=50),
    'SASA-50, conv stem': dict(type='mmrednet.SASAResNet', depth=50),
    'LR-Net-50': dict(type='mmrednet.LRNet', depth=50),
    'SAN19 pairwise': dict(type='mmrednet.SAN', depth=19),
    'SAN19 patchwise': dict(type='mmrednet.SAN', depth=19, relation='patchwise'),
    'Axial-ResNet-50-S': dict(type='mmrednet.AxialResNet', arch='s'),
    'Axial-ResNet-50-S, axial stem': dict(
        type='mmrednet.AxialResNet', arch='s', stem='axial', span=15
    ),
    'VAN-b1': dict(type='mmrednet.VAN', arch='b1'),
    'MSCAN-small': dict(type='mmrednet.MSCAN', arch='small'),
    'NAT-Mini': dict(type='mmrednet.NAT', arch='mini'),
}
BACKBONES: dict[str, dict[str, Any]] = {
    **FAMILIES,
    # what the one saves and the other costs
    **{
        f'{name}, norms {way}': dict(cfg, recompute_norms=way == 'again')
        for name, cfg in FAMILIES.items()
        for way in ('kept', 'again')
        if name != BASELINE
    },
    # ResNet-50 in our code
    'SpatialResNet-50': dict(type='mmrednet.SpatialResNet', depth=50),
    'mmseg MSCAN-small': dict(
        type='mmseg.MSCAN',
        embed_dims=[64, 128, 320, 512],
        mlp_ratios=[8, 8, 4, 4],
        depths=[2, 2, 4, 2],
        drop_path_rate=0.1,
        norm_cfg=dict(type='BN'),
    ),
    'mmseg MSCAN-tiny': dict(
        type='mmseg.MSCAN',
        embed_dims=[32, 64, 160, 256],
        mlp_ratios=[8, 8, 4, 4],
        depths=[3, 3, 5, 2],
        drop_path_rate=0.1,
        norm_cfg=dict(type='BN'),
    ),
    'MSCAN-tiny': dict(type='mmrednet.MSCAN', arch='tiny'),
    # without its strips, to see what they cost
    'MSCAN-tiny, strips of 1': dict(
        type='mmrednet.MSCAN',
        arch='tiny',
        spatial_cfg=dict(type='MultiScaleConvAttention', strip_sizes=(1,)),
    ),
}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}
# weights and features; autocast has float32 weights
PRECISIONS = ('float32', 'bfloat16', 'autocast')


def build(name: str, in_channels: int = 3) -> nn.Module:
    """Return a backbone in training mode, with random weights.

    Args:
        name: Key of ``BACKBONES``.
        in_channels: Number of channels of the image. Default: 3.
    """
    from mmdet.utils import register_all_modules as register_mmdet
    from mmseg.utils import register_all_modules as register_mmseg

    register_mmdet(init_default_scope=False)
    register_mmseg(init_default_scope=False)
    cfg = dict(BACKBONES[name], in_channels=in_channels)
    scope = cfg['type'].split('.')[0]
    if scope != 'mmseg':
        cfg['init_cfg'] = None
    with MODELS.switch_scope_and_registry('mmdet' if scope == 'mmrednet' else scope) as registry:
        return registry.build(cfg)


def multiply_adds(name: str, shape: Sequence[int], in_channels: int = 3) -> int:
    """Return the multiply-adds of a backbone for one image of (H, W)."""
    # tensors without data: nothing is computed. mmseg's networks cannot be built from them
    model = build(name, in_channels).to('meta')
    model.eval()
    image = torch.zeros(1, in_channels, *shape, device='meta')
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


def prepare(
    model: nn.Module, *, train: bool, folded: bool, layout: str, precision: str
) -> nn.Module:
    """Return a copy of a backbone, ready for :func:`step`.

    Args:
        model: Backbone.
        train: Whether it is to be trained.
        folded: Whether :func:`mmrednet.fuse` folds its norms. Networks to be trained keep them.
        layout: Key of ``LAYOUTS``.
        precision: One of ``PRECISIONS``.
    """
    model = copy.deepcopy(model)
    # networks of mmdet return nothing from train()
    model.train(train)
    if folded and not train:
        model = fuse(model)
    if precision == 'bfloat16':
        model = model.bfloat16()
    return model.to(memory_format=LAYOUTS[layout])


def make_image(
    batch: int, channels: int, shape: Sequence[int], *, layout: str, precision: str
) -> Tensor:
    """Return a random image (batch, channels, H, W) for a backbone of :func:`prepare`."""
    image = torch.randn(batch, channels, *shape)
    if precision == 'bfloat16':
        image = image.bfloat16()
    return image.contiguous(memory_format=LAYOUTS[layout])


def step(model: nn.Module, image: Tensor, *, train: bool, precision: str) -> Callable[[], Any]:
    """Return a forward pass without gradients, or with the backward pass, as a function."""
    autocast = torch.autocast('cpu', torch.bfloat16, enabled=precision == 'autocast')

    def infer() -> Any:
        with torch.inference_mode(), autocast:
            return model(image)

    def learn() -> None:
        model.zero_grad()
        with autocast:
            loss = sum(output.float().mean() for output in model(image))
        loss.backward()

    return learn if train else infer
