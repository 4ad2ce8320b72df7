"""Backbones: an image to a pyramid of feature maps."""

from ..packages import require

require('mmrednet.backbones', 'mmengine', 'mmcv')

from .axial_resnet import AxialResNet
from .base import PyramidBackbone
from .lrnet import LRNet
from .mscan import MSCAN
from .rednet import RedNet
from .resnet import SpatialResNet
from .san import SAN
from .sasa_resnet import SASAResNet
from .van import VAN

__all__ = [
    'MSCAN',
    'SAN',
    'VAN',
    'AxialResNet',
    'LRNet',
    'PyramidBackbone',
    'RedNet',
    'SASAResNet',
    'SpatialResNet',
]
