"""Backbones: an image to a pyramid of feature maps."""

from ..packages import require

require('mmrednet.backbones', 'mmengine', 'mmcv')

from .base import PyramidBackbone
from .mscan import MSCAN
from .rednet import RedNet
from .resnet import SpatialResNet
from .van import VAN

__all__ = ['MSCAN', 'VAN', 'PyramidBackbone', 'RedNet', 'SpatialResNet']
