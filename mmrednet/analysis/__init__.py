"""Looking inside networks, and counting what they take."""

from ..packages import require

require('mmrednet.analysis', 'mmengine', 'mmcv')

from .counting import count_network
from .detections import draw_detections
from .kernel_maps import draw_kernel_maps, kernel_maps
from .networks import build_network
from .segmentations import draw_segmentations

__all__ = [
    'build_network',
    'count_network',
    'draw_detections',
    'draw_kernel_maps',
    'draw_segmentations',
    'kernel_maps',
]
