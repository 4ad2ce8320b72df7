"""Networks that can be counted: from a config or a registered name to a module that maps an image to tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..backbones.base import PyramidBackbone
from ..engine import HOSTS, load_config, read_config
from ..registry import MODELS

# (H, W) where a config says nothing
DETECTION_SHAPE, CLASSIFICATION_SHAPE = (800, 1280), (224, 224)
# children of stock backbones that belong to a numbered stage
STAGE = re.compile(r'(layers?|stages?|blocks?|patch_embed|norm|downsample_layers)[._]?\d+(?=\.|$)')


class ImageNetwork(nn.Module):
    """A model whose forward takes images alone, and returns the tensors that its heads make of them.

    A two-stage detector gets a stated number of proposals, random boxes on the image, in place of what its first
    stage finds, so that its count does not depend on weights; nothing is suppressed or decoded behind the heads.

    Args:
        model: a detector of mmdet, a segmenter of mmseg, or a backbone.
        proposals: of a two-stage detector, for each image.
        classes: a backbone gets a classifier for this many, behind the mean of its last map; None: it gets none.
    """

    # mmdet's and mmseg's have methods that mypy cannot see
    model: Any

    def __init__(self, model: nn.Module, *, proposals: int = 1000, classes: int | None = None) -> None:
        super().__init__()
        self.model, self.proposals = model, proposals
        self.two_stage = hasattr(model, 'rpn_head') and hasattr(model, 'roi_head')
        self.has_heads = hasattr(model, 'data_preprocessor')
        self.classifier: nn.Module | None = None
        if classes is not None:
            # mmdet's backbones return nothing from eval()
            model.eval()
            with torch.no_grad():
                channels = _tensors(model(torch.zeros(1, 3, 64, 64)))[-1].shape[1]
            self.classifier = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to what the heads, or the stages of a backbone, return."""
        if not self.has_heads:
            outputs = _tensors(self.model(image))
            return outputs if self.classifier is None else [self.classifier(outputs[-1].mean((2, 3)))]
        if self.two_stage:
            maps = self.model.extract_feat(image)
            found = [InstanceData(bboxes=boxes) for boxes in self.boxes(image)]
            return _tensors([self.model.rpn_head(maps), self.model.roi_head(maps, found, _samples(image))])
        return _tensors(self.model(image, mode='tensor'))

    def boxes(self, image: Tensor) -> list[Tensor]:
        """Return boxes (N, 4) of all sizes for each image, the same at every call."""
        height, width = (int(length) for length in image.shape[-2:])
        drawn = torch.rand(self.proposals, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
        return [(drawn * torch.tensor([width, height])).flatten(1)] * len(image)


def _samples(image: Tensor) -> list[Any]:
    from mmdet.structures import DetDataSample

    size = tuple(int(length) for length in image.shape[-2:])
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    return [DetDataSample(metainfo=dict(dict.fromkeys(names, size), scale_factor=(1.0, 1.0))) for _ in image]


def _tensors(outputs: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, Sequence) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def build_network(source: str | dict, *, options: dict[str, Any] | None = None, proposals: int = 1000,
                  classes: int | None = None) -> tuple[ImageNetwork, tuple[int, int]]:
    """Build a model without data and weights, and say at which size its config means it to be used.

    Args:
        source: path of a config for mmdet or mmseg, or of one whose ``model`` is a backbone; the registered name of a
            backbone, such as 'mmrednet.VAN'; or a dict to build a backbone of.
        options: dotted keys and values to change in the config; those of a name are below ``model``.
        proposals: see :class:`ImageNetwork`.
        classes: see :class:`ImageNetwork`.

    Returns:
        The network and (H, W): ``data_preprocessor.size`` where a config has it, 800 x 1280 for other detectors and
        segmenters, 224 x 224 for backbones and classifiers.

    Raises:
        FileNotFoundError: a config is not there.
        ValueError: ``classes`` is given for a model with heads, or ``proposals`` is below 1.
    """
    if proposals < 1:
        raise ValueError(f'proposals must be at least 1, got {proposals}.')
    cfg = _config_of(source, options or {})
    named = cfg.model.type.split('.')[0] if '.' in cfg.model.type else 'mmrednet'
    scope = cfg.get('default_scope', named)
    if scope in HOSTS:
        with ROOT_MODELS.switch_scope_and_registry(scope) as registry:
            model = registry.build(cfg.model)
    else:
        model = MODELS.build(cfg.model)
    network = ImageNetwork(model, proposals=proposals)
    if classes is not None:
        if network.has_heads:
            raise ValueError(f'classes is for backbones alone, got {classes=} for {type(model).__name__}.')
        network = ImageNetwork(model, classes=classes)
    default = DETECTION_SHAPE if network.has_heads and scope in HOSTS else CLASSIFICATION_SHAPE
    height, width = cfg.model.get('data_preprocessor', {}).get('size') or default
    return network.eval(), (int(height), int(width))


def _config_of(source: str | dict, options: dict[str, Any]) -> Config:
    if isinstance(source, str) and Path(source).suffix == '.py':
        cfg = read_config(source, options=options)
        return load_config(source, options=options) if 'default_scope' in cfg else cfg
    cfg = Config(dict(model=dict(source) if isinstance(source, dict) else dict(type=source)))
    cfg.merge_from_dict(options)
    return cfg


def stage_of(module: str, model: nn.Module) -> str:
    """Return the part of a model that a module belongs to: a stage of its backbone, its neck or a head.

    Args:
        module: its name in the model.
        model: with a ``backbone``, or one itself.
    """
    backbone = getattr(model, 'backbone', None)
    parts = module.split('.')
    if backbone is not None and parts[0] != 'backbone':
        return '.'.join(parts[:2] if parts[0] == 'roi_head' else parts[:1]) or 'other'
    prefix, owner, inner = ('', model, parts) if backbone is None else ('backbone.', backbone, parts[1:])
    if isinstance(owner, PyramidBackbone):
        stages = [index for index, names in enumerate(owner.stage_names, 1) if inner and inner[0] in names]
        return f'{prefix}stage{stages[0]}' if stages else f'{prefix}stem'
    found = STAGE.match('.'.join(inner))
    return prefix + (found.group(0) if found else 'stem')
