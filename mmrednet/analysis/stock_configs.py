"""The ResNet-50 configs of the installed mmdet and mmseg, and how our backbones fit them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from .image_network import ImageNetwork

# backbones that a ResNet-50 config names
RESNETS = ('ResNet', 'ResNetV1c', 'ResNetV1d')
# registered names of our backbones
BACKBONES = (
    'SpatialResNet',
    'RedNet',
    'SASAResNet',
    'LRNet',
    'AxialResNet',
    'SAN',
    'VAN',
    'MSCAN',
)


@dataclass(frozen=True)
class StockConfig:
    """A config of a framework with a ResNet-50.

    Args:
        path: Path of the file.
        scope: The framework, 'mmdet' or 'mmseg'.
        model: Its ``model``.
    """

    path: Path
    scope: str
    model: dict

    @property
    def name(self) -> str:
        """Folder and name of the file."""
        return f'{self.path.parent.name}/{self.path.name}'


def stock_configs(scope: str, match: str = '') -> Iterator[StockConfig]:
    """Yield the ResNet-50 configs that an installed framework brings along.

    Configs that cannot be read here, because they need another package, are left out.

    Args:
        scope: 'mmdet' or 'mmseg'.
        match: Text that the path must have. Default: '', all configs.
    """
    spec = find_spec(scope)
    if spec is None or spec.origin is None:
        return
    for path in sorted((Path(spec.origin).parent / '.mim' / 'configs').rglob('*.py')):
        if '_base_' in path.parts or match not in str(path):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                cfg = Config.fromfile(path)
        except Exception:  # noqa: BLE001, S112
            continue
        model = cfg.get('model')
        if isinstance(model, dict) and resnet50s(model):
            # detectors that learn from a teacher download its weights when they are built
            if 'teacher_ckpt' in model:
                model['teacher_ckpt'] = None
            yield StockConfig(path, scope, model)


def resnet50s(model: dict) -> list[dict]:
    """Return the configs of the ResNet-50 backbones of a model, also of a teacher in a wrapper."""
    backbones = []
    backbone = model.get('backbone')
    if isinstance(backbone, dict) and backbone.get('depth') == 50:
        type_name = str(backbone.get('type')).rpartition('.')[2]
        if type_name in RESNETS:
            backbones.append(backbone)
    for value in model.values():
        if isinstance(value, dict) and value is not backbone:
            backbones += resnet50s(value)
    return backbones


def with_backbone(model: dict, type_name: str) -> dict:
    """Return the config of a model whose ResNet-50 has another type, and else is as it was."""
    model = copy.deepcopy(model)
    for backbone in resnet50s(model):
        backbone['type'] = type_name
    return model


def build(model: dict, scope: str, device: str = 'meta') -> nn.Module:
    """Build a model of a framework, without memory on the meta device.

    Args:
        model: Config of the model. It stays as it is.
        scope: 'mmdet' or 'mmseg'.
        device: Device of the parameters. Default: 'meta'.
    """
    model = copy.deepcopy(model)
    with (
        warnings.catch_warnings(),
        torch.device(device),
        MODELS.switch_scope_and_registry(scope) as registry,
    ):
        warnings.simplefilter('ignore')
        return registry.build(model)


def failure(model: dict, scope: str) -> str | None:
    """Return why a model cannot be built, in one line; None if it can."""
    try:
        build(model, scope)
    except Exception as error:  # noqa: BLE001
        return f'{type(error).__name__}: {" ".join(str(error).split())}'
    return None


def forward_failure(model: dict, scope: str, size: int = 64) -> str | None:
    """Return why a model cannot compute an image on the CPU, in one line; None if it can.

    Args:
        model: Config of the model.
        scope: 'mmdet' or 'mmseg'.
        size: Height and width of the image. Default: 64.
    """
    try:
        network = build(model, scope, 'cpu').eval()
        with torch.no_grad():
            # a few proposals run all layers that a thousand do
            ImageNetwork(network, proposals=4)(torch.zeros(1, 3, size, size))
    except Exception as error:  # noqa: BLE001
        return f'{type(error).__name__}: {" ".join(str(error).split())}'
    return None


def head_types(model: dict) -> set[str]:
    """Return the types of the heads of a model, also inside of others; its own type without any."""
    types = _inner_heads(model)
    return types or {str(model.get('type'))}


def _inner_heads(cfg: Any, name: str = '') -> set[str]:
    types = set()
    if isinstance(cfg, dict):
        if name.endswith('head') and 'type' in cfg:
            types.add(str(cfg['type']))
        for key, value in cfg.items():
            types |= _inner_heads(value, key)
    elif isinstance(cfg, list | tuple):
        for item in cfg:
            types |= _inner_heads(item, name)
    return types


def one_of_each_head(configs: Iterable[StockConfig]) -> Iterator[StockConfig]:
    """Yield the configs with a head that none before has."""
    covered: set[str] = set()
    for config in configs:
        types = head_types(config.model)
        if not types <= covered:
            covered |= types
            yield config
