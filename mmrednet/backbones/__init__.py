"""Backbones: an image to a pyramid of feature maps."""

from ..packages import require

require('mmrednet.backbones', 'mmengine', 'mmcv')

from .axial_resnet import AxialResNet
from .base import PyramidBackbone
from .dinat import DiNAT, DiNATs
from .lrnet import LRNet
from .mscan import MSCAN
from .nat import NAT
from .rednet import RedNet
from .resnet import SpatialResNet
from .san import SAN
from .sasa_resnet import SASAResNet
from .van import VAN

# these register the published checkpoint formats of the backbones
from . import (  # noqa: F401
    axial_formats,
    mscan_formats,
    nat_formats,
    rednet_formats,
    resnet_formats,
    san_formats,
    van_formats,
)
from .pretrained_init import load_pretrained

__all__ = [
    'MSCAN',
    'NAT',
    'SAN',
    'VAN',
    'AxialResNet',
    'DiNAT',
    'DiNATs',
    'LRNet',
    'PyramidBackbone',
    'RedNet',
    'SASAResNet',
    'SpatialResNet',
    'load_pretrained',
]
