"""The operators as modules: (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""

from ..packages import require

require('mmrednet.layers', 'mmengine', 'mmcv')

from .involution import Involution
from .spatial import build_spatial

__all__ = ['Involution', 'build_spatial']
