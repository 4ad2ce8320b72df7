"""Heads of mmdet and mmseg with spatial operators.

The names are always registered, as functions that build the heads. mmdet or mmseg is imported when
one of its heads is first used. If it is missing, an error says how to install it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from ..packages import require
from ..registry import MODELS

# name -> (framework, module)
_HEADS = {
    'LightHamHead': ('mmseg', 'ham_head'),
    'SpatialFCNMaskHead': ('mmdet', 'mask_head'),
    'SpatialRetinaHead': ('mmdet', 'retina_head'),
    'SpatialRPNHead': ('mmdet', 'rpn_head'),
}
__all__ = list(_HEADS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HEADS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    framework, module = _HEADS[name]
    require(f'mmrednet.{name}', framework, 'mmcv')
    return getattr(import_module(f'.{module}', __name__), name)


def _register(name: str) -> None:
    def build(**kwargs: Any) -> nn.Module:
        return __getattr__(name)(**kwargs)

    build.__name__ = build.__qualname__ = name
    MODELS.register_module(name=name, module=build)


for _name in _HEADS:
    _register(_name)
