"""Looking inside networks."""

from ..packages import require

require('mmrednet.analysis', 'mmengine', 'mmcv')

from .detections import draw_detections
from .kernel_maps import draw_kernel_maps, kernel_maps
from .segmentations import draw_segmentations
from .timing import medians

__all__ = ['draw_detections', 'draw_kernel_maps', 'draw_segmentations', 'kernel_maps', 'medians']
