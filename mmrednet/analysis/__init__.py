"""Counting what networks cost, and drawing what they see."""

from ..packages import require

require('mmrednet.analysis', 'mmengine', 'mmcv')

from .attention_drawing import draw_attention_maps
from .attention_maps import attention_layers, attention_maps
from .class_activation import class_activation
from .counting import count_network
from .drawing import draw_detections, draw_segmentations
from .model_image import ModelImage, model_image
from .networks import build_network
from .operator_handles import register_flop_handles
from .panoptic_drawing import draw_panoptics

__all__ = [
    'ModelImage',
    'attention_layers',
    'attention_maps',
    'build_network',
    'class_activation',
    'count_network',
    'draw_attention_maps',
    'draw_detections',
    'draw_panoptics',
    'draw_segmentations',
    'model_image',
    'register_flop_handles',
]
