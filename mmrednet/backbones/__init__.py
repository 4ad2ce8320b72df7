"""Backbones: an image to a pyramid of feature maps."""

from ..packages import require

require('mmrednet.backbones', 'mmengine', 'mmcv')

from .base import PyramidBackbone
from .rednet import RedNet
from .resnet import SpatialResNet

__all__ = ['PyramidBackbone', 'RedNet', 'SpatialResNet']
