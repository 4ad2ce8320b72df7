"""The operators as modules: (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""

from ..packages import require

require('mmrednet.layers', 'mmengine', 'mmcv')

from .axial import AxialAttention, AxialAttention1d
from .conv_adapter import OperatorConv, SpatialConv
from .deformable import DCN, DCNv2
from .fused import FusedConv2d, FusedLinear
from .gates import CBAM, SE
from .hamburger import Hamburger
from .involution import Involution
from .large_kernel import LargeKernelAttention, MultiScaleConvAttention
from .local_relation import LocalRelation
from .neighborhood import NeighborhoodAttention
from .san import SANPairwise, SANPatchwise
from .sasa import AttentionStem, StandAloneSelfAttention
from .spatial import OPERATORS, OperatorChain, build_spatial, spatial_operator

__all__ = [
    'CBAM',
    'DCN',
    'OPERATORS',
    'SE',
    'AttentionStem',
    'AxialAttention',
    'AxialAttention1d',
    'DCNv2',
    'FusedConv2d',
    'FusedLinear',
    'Hamburger',
    'Involution',
    'LargeKernelAttention',
    'LocalRelation',
    'MultiScaleConvAttention',
    'NeighborhoodAttention',
    'OperatorChain',
    'OperatorConv',
    'SANPairwise',
    'SANPatchwise',
    'SpatialConv',
    'StandAloneSelfAttention',
    'build_spatial',
    'spatial_operator',
]
