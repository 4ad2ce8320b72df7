"""Networks of few channels: every family, operator and kind of model that is exported.

They export in seconds to minutes. What they show of an operator holds for any number of channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS as REGISTRY
from torch import nn

from mmrednet.engine import load_config
from mmrednet.layers import OPERATORS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RESNET = dict(depth=26, base_channels=16)
PYRAMID = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
# width, depths, ratio of the feed-forward networks, no scales of branches, no dropping of them
NAT = (32, (1, 1, 1, 1), 2, None, 0.0)
SASA = dict(type='StandAloneSelfAttention', kernel_size=3, num_heads=2)
LOCAL_RELATION = dict(type='LocalRelation', kernel_size=3)
FAMILIES: dict[str, dict[str, Any]] = {
    'RedNet-26': dict(type='mmrednet.RedNet', depth=26, base_channels=32),
    'SASA-26': dict(type='mmrednet.SASAResNet', spatial_cfg=SASA, **RESNET),
    'SASA-26, attention stem': dict(
        type='mmrednet.SASAResNet', spatial_cfg=SASA, stem='attention', **RESNET
    ),
    'LR-Net-26': dict(
        type='mmrednet.LRNet', spatial_cfg=LOCAL_RELATION, operator_channels=16, **RESNET
    ),
    'SAN10 pairwise': dict(type='mmrednet.SAN', base_channels=32, kernel_sizes=(3,) * 5),
    'SAN10 patchwise': dict(
        type='mmrednet.SAN', relation='patchwise', base_channels=32, kernel_sizes=(3,) * 5
    ),
    'Axial-ResNet-26': dict(type='mmrednet.AxialResNet', arch=0.25, depth=26),
    'Axial-ResNet-26, axial stem, spans': dict(
        type='mmrednet.AxialResNet', arch=0.25, depth=26, stem='axial', span=5
    ),
    'VAN': dict(type='mmrednet.VAN', arch=PYRAMID),
    'MSCAN': dict(type='mmrednet.MSCAN', arch=PYRAMID),
    'NAT': dict(type='mmrednet.NAT', arch=NAT),
    'DiNAT': dict(type='mmrednet.DiNAT', arch=NAT, dilations=((2,), (3,), (2,), (1,))),
    'DiNAT_s': dict(type='mmrednet.DiNATs', arch=NAT, dilations=((2,), (1,), (1,), (1,))),
}


def with_operator(name: str) -> dict[str, Any]:
    """Return the config of a ResNet with an operator in its second stage."""
    operator = dict(type=name, **OPERATORS[name].example)
    stages = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    return dict(type='mmrednet.SpatialResNet', spatial_cfg=[None, operator], **stages, **RESNET)


BACKBONES: dict[str, dict[str, Any]] = {
    **FAMILIES,
    **{f'ResNet-26, {name}': with_operator(name) for name in OPERATORS},
}
# an operator in the stem and in the last stage: each further configuration takes seconds to export
LAST_STAGE = {'model.backbone.spatial_cfg': [None, None, None, dict(type='Involution')]}
REDNET = {
    **LAST_STAGE,
    'model.backbone.depth': 26,
    'model.backbone.base_channels': 32,
    'model.backbone.init_cfg': None,
}
REDNET_FPN = {
    **REDNET,
    'model.neck.in_channels': [128, 256, 512, 1024],
    'model.neck.out_channels': 32,
}
# config of a model, and its options
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    'Faster R-CNN': ('shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py', LAST_STAGE),
    'RetinaNet': (
        'rednet/retinanet_rednet50_fpn_1x_coco.py',
        {
            **REDNET_FPN,
            'model.bbox_head.in_channels': 32,
            'model.bbox_head.feat_channels': 32,
            'model.bbox_head.stacked_convs': 1,
        },
    ),
    'Mask R-CNN': (
        'rednet/mask-rcnn_rednet50_inv-fpn-rpn-mask_1x_coco.py',
        {
            **REDNET_FPN,
            'model.rpn_head.in_channels': 32,
            'model.rpn_head.feat_channels': 32,
            'model.roi_head.bbox_roi_extractor.out_channels': 32,
            'model.roi_head.mask_roi_extractor.out_channels': 32,
            'model.roi_head.bbox_head.in_channels': 32,
            'model.roi_head.bbox_head.fc_out_channels': 64,
            'model.roi_head.mask_head.in_channels': 32,
            'model.roi_head.mask_head.conv_out_channels': 32,
        },
    ),
    'UPerNet': (
        'rednet/upernet_rednet50_4xb2-80k_cityscapes-512x1024.py',
        {
            **REDNET,
            'model.decode_head.in_channels': [128, 256, 512, 1024],
            'model.decode_head.channels': 32,
            'model.auxiliary_head': None,
        },
    ),
    'Semantic FPN': (
        'rednet/fpn_rednet50_inv-fpn_4xb2-80k_cityscapes-512x1024.py',
        {
            **REDNET_FPN,
            'model.decode_head.in_channels': [32] * 4,
            'model.decode_head.channels': 32,
        },
    ),
    'SegNeXt': ('streets/segnext_mscan-narrow_streets.py', {}),
    'Panoptic-DeepLab': (
        'shapes/panoptic-deeplab_r26-narrow_shapes.py',
        LAST_STAGE,
    ),
    'classifier': ('shapes/rednet26-narrow_single-shapes.py', LAST_STAGE),
}
# Parts of the names of weights, and the deviation that makes scores and boxes differ from each
# other, as those of a trained model do. With larger ones in a detector of two stages, the scores
# of several boxes are 1 up to rounding, and which of them suppresses the others is arbitrary.
DEVIATIONS = {
    ('retina_cls.w', 'conv_seg.w'): 0.3,
    ('fc_cls.w',): 0.1,
    ('rpn_cls.w',): 0.03,
    ('fc_reg.w', 'rpn_reg.w', 'retina_reg.w'): 0.05,
}


def build_backbone(name: str) -> nn.Module:
    """Return a backbone of ``BACKBONES`` in eval mode, with random weights."""
    torch.manual_seed(0)
    model = REGISTRY.build(BACKBONES[name])
    # in two lines: not every network returns itself from eval()
    model.eval()
    return model


def build_model(config: str | Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return a model in eval mode with random weights, and its config.

    Args:
        config: Path of the config.
        options: Dotted keys and values that change it.
    """
    torch.manual_seed(0)
    cfg = load_config(str(config), options=options)
    with REGISTRY.switch_scope_and_registry(cfg.get('default_scope', 'mmengine')) as registry:
        model = registry.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        for parts, deviation in DEVIATIONS.items():
            if any(part in name for part in parts):
                nn.init.normal_(parameter, std=deviation)
    model.eval()
    return model, cfg
