"""The operators as modules: (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""

from ..packages import require

require('mmrednet.layers', 'mmengine', 'mmcv')

from .hamburger import Hamburger
from .involution import Involution
from .large_kernel import LargeKernelAttention, MultiScaleConvAttention
from .spatial import build_spatial

__all__ = ['Hamburger', 'Involution', 'LargeKernelAttention', 'MultiScaleConvAttention', 'build_spatial']
