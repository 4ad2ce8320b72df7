"""The operators as modules: (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""

from ..packages import require

require('mmrednet.layers', 'mmengine', 'mmcv')

from .axial import AxialAttention, AxialAttention1d
from .hamburger import Hamburger
from .involution import Involution
from .large_kernel import LargeKernelAttention, MultiScaleConvAttention
from .local_relation import LocalRelation
from .san import SANPairwise, SANPatchwise
from .sasa import AttentionStem, StandAloneSelfAttention
from .spatial import OperatorChain, build_spatial

__all__ = ['AttentionStem', 'AxialAttention', 'AxialAttention1d', 'Hamburger', 'Involution', 'LargeKernelAttention',
           'LocalRelation', 'MultiScaleConvAttention', 'OperatorChain', 'SANPairwise', 'SANPatchwise',
           'StandAloneSelfAttention', 'build_spatial']
