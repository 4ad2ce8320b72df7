"""Counting what networks cost, and drawing what they see."""

from ..packages import require

require('mmrednet.analysis', 'mmengine', 'mmcv')

from .counting import count_network
from .drawing import draw_detections, draw_kernel_maps, draw_segmentations, kernel_maps
from .networks import build_network
from .operator_handles import register_flop_handles
from .panoptic_drawing import draw_panoptics

__all__ = [
    'build_network',
    'count_network',
    'draw_detections',
    'draw_kernel_maps',
    'draw_panoptics',
    'draw_segmentations',
    'kernel_maps',
    'register_flop_handles',
]
