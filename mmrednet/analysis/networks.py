"""Networks that can be counted, built from a config or from the name of a backbone."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry
from torch import nn

from .. import backbones
from ..backbones.base import PyramidBackbone
from ..engine import HOSTS, load_config, read_config
from ..registry import MODELS
from .image_network import ImageNetwork, UnrunnableError

# (H, W) of the image, unless the config has one
DETECTION_SHAPE, CLASSIFICATION_SHAPE = (800, 1280), (224, 224)
# suffixes of files that are no configs
DATA_SUFFIXES = ('.yaml', '.yml', '.json', '.pth')
# children of the backbones of mmdet and mmseg that belong to a numbered stage
STAGE = re.compile(r'(layers?|stages?|blocks?|patch_embed|norm|downsample_layers)[._]?\d+(?=\.|$)')


def build_network(
    source: str | dict,
    *,
    options: dict[str, Any] | None = None,
    proposals: int = 1000,
    classes: int | None = None,
) -> tuple[ImageNetwork, tuple[int, int]]:
    """Build a model without data and weights, and find the size of its input.

    Args:
        source: Path of a config for mmdet or mmseg, or of one whose ``model`` is a backbone;
            registered name of a backbone, such as 'mmrednet.VAN'; or config dict of a backbone.
        options: Dotted keys and values to change in the config, below ``model`` for a backbone.
        proposals: Number of proposals, see :class:`ImageNetwork`. Default: 1000.
        classes: Number of classes of a classifier, see :class:`ImageNetwork`. Default: None.

    Returns:
        The network in eval mode, and (H, W): ``data_preprocessor.size`` if a config has it,
        800 x 1280 for other detectors and segmenters, 224 x 224 for backbones and classifiers.

    Raises:
        FileNotFoundError: The config does not exist.
        TypeError: The config imports classes instead of naming them.
        UnrunnableError: The model cannot be built.
        ValueError: ``classes`` is given for a model with heads or is below 1, ``proposals`` is
            below 1, ``options`` change nothing of a backbone, or ``source`` is neither a config nor
            a registered name.
    """
    for name, value in dict(proposals=proposals, classes=classes).items():
        if value is not None and value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}.')
    cfg = _config_of(source, options or {})
    _check_type(cfg, source)
    scope = _scope_of(cfg)
    model = _build(cfg, scope)
    if classes is not None and hasattr(model, 'data_preprocessor'):
        raise ValueError(
            f'classes is for backbones alone, got {classes=} for {type(model).__name__}.'
        )
    network = ImageNetwork(model, proposals=proposals, classes=classes)
    is_classifier = not network.has_heads or scope not in HOSTS
    default_shape = CLASSIFICATION_SHAPE if is_classifier else DETECTION_SHAPE
    height, width = cfg.model.get('data_preprocessor', {}).get('size') or default_shape
    return network.eval(), (int(height), int(width))


def _config_of(source: str | dict, options: dict[str, Any]) -> Config:
    if isinstance(source, str) and Path(source).suffix == '.py':
        cfg = read_config(source, options=options)
        if 'default_scope' in cfg:
            # a model of a framework, whose classes must be registered
            return load_config(source, options=options)
    elif isinstance(source, str) and _looks_like_path(source):
        raise ValueError(
            'source must be a config whose name ends in .py, or the registered name of a backbone '
            f"such as 'mmrednet.VAN', got {source!r}."
        )
    else:
        model = dict(type=source) if isinstance(source, str) else dict(source)
        cfg = Config(dict(model=model))
        cfg.merge_from_dict(options)
    stray = [key for key in options if key.split('.')[0] != 'model']
    if stray:
        raise ValueError(
            "options of a backbone must be below 'model', as in model.depth=26, got "
            f'{", ".join(stray)}.'
        )
    return cfg


def _looks_like_path(source: str) -> bool:
    return '/' in source or Path(source).suffix in DATA_SUFFIXES or Path(source).exists()


def _check_type(cfg: Config, source: Any) -> None:
    type_name = cfg.get('model', {}).get('type')
    if type_name is None:
        raise ValueError(f'a config must have model.type to be counted, got none in {source!r}.')
    if not isinstance(type_name, str):
        raise TypeError(
            f"model.type must be a registered name such as 'mmdet.ResNet', got {type_name} in "
            f'{source!r}: configs that import classes are not read here.'
        )


def _scope_of(cfg: Config) -> str:
    """Return the framework of a config: its default scope, or the prefix of the model's type."""
    scope, dot, _ = cfg.model.type.partition('.')
    return cfg.get('default_scope', scope if dot else 'mmrednet')


def _build(cfg: Config, scope: str) -> nn.Module:
    if scope in HOSTS:
        context = ROOT_MODELS.switch_scope_and_registry(scope)
    else:
        context = nullcontext(MODELS)
    with context as registry:
        try:
            known = registry.get(cfg.model.type) is not None
        except KeyError:
            known = False
        if not known:
            examples = ', '.join(f'mmrednet.{name}' for name in backbones.__all__)
            raise ValueError(
                f'model.type must be a registered name, as {examples} are, got {cfg.model.type!r}.'
            )
        return _build_in(registry, cfg)


def _build_in(registry: Registry, cfg: Config) -> nn.Module:
    try:
        return registry.build(cfg.model)
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise UnrunnableError(f'{cfg.model.type} cannot be built: {reason}') from error


def stage_of(module: str, model: nn.Module) -> str:
    """Return the part of a model that a module belongs to: a stage of the backbone, the neck or a
    head.

    Args:
        module: Name of the module in the model.
        model: Model with a ``backbone``, or a backbone.
    """
    parts = module.split('.')
    backbone = getattr(model, 'backbone', None)
    if backbone is None:
        return _backbone_stage(parts, model)
    if parts[0] == 'backbone':
        return f'backbone.{_backbone_stage(parts[1:], backbone)}'
    # the heads of a second stage are children of roi_head
    depth = 2 if parts[0] == 'roi_head' else 1
    return '.'.join(parts[:depth])


def _backbone_stage(parts: list[str], backbone: nn.Module) -> str:
    """Return the stage of a module of a backbone, whose name is split at dots."""
    if isinstance(backbone, PyramidBackbone):
        for index, names in enumerate(backbone.stage_names, 1):
            if parts and parts[0] in names:
                return f'stage{index}'
        return 'stem'
    match = STAGE.match('.'.join(parts))
    return match.group(0) if match else 'stem'
