"""Panoptic-DeepLab and Axial-DeepLab: panoptic segmentation as an mmdet detector.

The names are always registered, as functions that build the models. mmdet is imported when one is
first used. If it is missing, an error says how to install it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from ..packages import require
from ..registry import MODELS

# name -> module
_MODELS = {
    'PanopticDeepLab': 'detector',
    'PanopticInference': 'inference',
    'PanopticTTAModel': 'tta',
}
__all__ = list(_MODELS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODELS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    require(f'mmrednet.{name}', 'mmdet', 'mmcv')
    return getattr(import_module(f'.{_MODELS[name]}', __name__), name)


def _register(name: str) -> None:
    def build(**kwargs: Any) -> nn.Module:
        return __getattr__(name)(**kwargs)

    build.__name__ = build.__qualname__ = name
    MODELS.register_module(name=name, module=build)


for _name in ('PanopticDeepLab', 'PanopticTTAModel'):
    _register(_name)
