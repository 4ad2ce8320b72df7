"""Attention-like operators for detectors and segmenters of the OpenMMLab stack."""

from typing import Any

__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
    # imported on first use, because it needs mmcv
    if name == 'fuse':
        from .fusion import fuse

        return fuse
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
