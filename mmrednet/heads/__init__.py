"""Heads of mmdet with any spatial operator: the only modules that import mmdet.

Without mmdet the names stay known, and building one says what is missing.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ..packages import missing_message
from ..registry import MODELS

__all__ = ['SpatialFCNMaskHead', 'SpatialRPNHead']

_missing = missing_message('mmrednet.heads', 'mmdet')

if _missing is None:
    from .mask_head import SpatialFCNMaskHead
    from .rpn_head import SpatialRPNHead
else:
    def _raise_missing(**_: Any) -> NoReturn:
        raise ImportError(_missing)

    for _name in __all__:
        MODELS.register_module(name=_name, module=_raise_missing)

    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise ImportError(_missing)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
