"""Necks: a pyramid of feature maps to another."""

from ..packages import require

require('mmrednet.necks', 'mmengine', 'mmcv')

from .fpn import SpatialFPN

__all__ = ['SpatialFPN']
