"""Attention-like operators for detectors and segmenters of the OpenMMLab stack."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = '0.1.0'

# public functions and the module that defines each; it is imported when the function is first used,
# so that `import mmrednet` loads neither torch nor the OpenMMLab stack
_FUNCTIONS = {
    'fuse': 'mmrednet.fusion',
    'keep_memory': 'mmrednet.memory',
    'register_flop_handles': 'mmrednet.analysis',
    'safe_loading': 'mmrednet.checkpoints.safe_loading',
}


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_FUNCTIONS[name]), name)
