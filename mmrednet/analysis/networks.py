"""Networks that can be counted: from a config or a registered name to a module that maps an image
to tensors.
"""

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

# (H, W) where a config says nothing
DETECTION_SHAPE, CLASSIFICATION_SHAPE = (800, 1280), (224, 224)
# endings of files that are no configs
DATA = ('.yaml', '.yml', '.json', '.pth')
# children of stock backbones that belong to a numbered stage
STAGE = re.compile(r'(layers?|stages?|blocks?|patch_embed|norm|downsample_layers)[._]?\d+(?=\.|$)')


def build_network(
    source: str | dict,
    *,
    options: dict[str, Any] | None = None,
    proposals: int = 1000,
    classes: int | None = None,
) -> tuple[ImageNetwork, tuple[int, int]]:
    """Build a model without data and weights, and say at which size its config means it to be used.

    Args:
        source: path of a config for mmdet or mmseg, or of one whose ``model`` is a backbone; the
            registered name of a backbone, such as 'mmrednet.VAN'; or a dict to build a backbone of.
        options: dotted keys and values to change in the config; those of a name are below
            ``model``.
        proposals: see :class:`ImageNetwork`.
        classes: see :class:`ImageNetwork`.

    Returns:
        The network and (H, W): ``data_preprocessor.size`` where a config has it, 800 x 1280 for
        other detectors and segmenters, 224 x 224 for backbones and classifiers.

    Raises:
        FileNotFoundError: a config is not there.
        TypeError: a config imports classes instead of naming them.
        UnrunnableError: the model cannot be built.
        ValueError: ``classes`` is given for a model with heads or is below 1, ``proposals`` is
            below 1, ``options`` change nothing of a backbone, or ``source`` is neither a config nor
            a registered name.
    """
    for name, value in dict(proposals=proposals, classes=classes).items():
        if value is not None and value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}.')
    cfg = _config_of(source, options or {})
    _check_type(cfg, source)
    named = cfg.model.type.split('.')[0] if '.' in cfg.model.type else 'mmrednet'
    scope = cfg.get('default_scope', named)
    model = _build(cfg, scope)
    if classes is not None and hasattr(model, 'data_preprocessor'):
        raise ValueError(
            f'classes is for backbones alone, got {classes=} for {type(model).__name__}.'
        )
    network = ImageNetwork(model, proposals=proposals, classes=classes)
    default = DETECTION_SHAPE if network.has_heads and scope in HOSTS else CLASSIFICATION_SHAPE
    height, width = cfg.model.get('data_preprocessor', {}).get('size') or default
    return network.eval(), (int(height), int(width))


def _config_of(source: str | dict, options: dict[str, Any]) -> Config:
    if isinstance(source, str) and Path(source).suffix == '.py':
        cfg = read_config(source, options=options)
        if 'default_scope' in cfg:
            return load_config(source, options=options)
    elif isinstance(source, str) and (
        '/' in source or Path(source).suffix in DATA or Path(source).exists()
    ):
        raise ValueError(
            'source must be a config whose name ends in .py, or the registered name of a backbone '
            'such as '
            f"'mmrednet.VAN', got {source!r}."
        )
    else:
        cfg = Config(dict(model=dict(source) if isinstance(source, dict) else dict(type=source)))
        cfg.merge_from_dict(options)
    stray = [key for key in options if key.split('.')[0] != 'model']
    if stray:
        raise ValueError(
            "options of a backbone must be below 'model', as in model.depth=26, got "
            f'{", ".join(stray)}.'
        )
    return cfg


def _check_type(cfg: Config, source: Any) -> None:
    kind = cfg.get('model', {}).get('type')
    if kind is None:
        raise ValueError(f'a config must have model.type to be counted, got none in {source!r}.')
    if not isinstance(kind, str):
        raise TypeError(
            f"model.type must be a registered name such as 'mmdet.ResNet', got {kind} in "
            f'{source!r}: '
            'configs that import classes are not read here.'
        )


def _build(cfg: Config, scope: str) -> nn.Module:
    known = ROOT_MODELS.switch_scope_and_registry(scope) if scope in HOSTS else nullcontext(MODELS)
    with known as registry:
        if registry.get(cfg.model.type) is None:
            ours = ', '.join(f'mmrednet.{name}' for name in backbones.__all__)
            raise ValueError(
                f'model.type must be a registered name, as {ours} are, got {cfg.model.type!r}.'
            )
        return _built(cfg, registry)


def _built(cfg: Config, registry: Registry) -> nn.Module:
    try:
        return registry.build(cfg.model)
    except Exception as error:
        raise UnrunnableError(
            f'{cfg.model.type} cannot be built: {" ".join(str(error).split())}'
        ) from error


def stage_of(module: str, model: nn.Module) -> str:
    """Return the part of a model that a module belongs to: a stage of its backbone, its neck or a
    head.

    Args:
        module: its name in the model.
        model: with a ``backbone``, or one itself.
    """
    backbone = getattr(model, 'backbone', None)
    parts = module.split('.')
    if backbone is not None and parts[0] != 'backbone':
        return '.'.join(parts[:2] if parts[0] == 'roi_head' else parts[:1])
    prefix, owner, inner = (
        ('', model, parts) if backbone is None else ('backbone.', backbone, parts[1:])
    )
    if isinstance(owner, PyramidBackbone):
        stages = [
            index for index, names in enumerate(owner.stage_names, 1) if inner and inner[0] in names
        ]
        return f'{prefix}stage{stages[0]}' if stages else f'{prefix}stem'
    found = STAGE.match('.'.join(inner))
    return prefix + (found.group(0) if found else 'stem')
