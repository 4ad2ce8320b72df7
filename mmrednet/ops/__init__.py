"""Functions over tensors: arithmetic of a position and its neighbours. Imports torch alone."""

from .attention import attend, local_attention
from .axial import axial_attention
from .depthwise import depthwise_conv2d
from .difference_attention import local_difference_attention
from .dispatch import require_kernels
from .involution import local_involution
from .local import active_kernels, local_aggregate, local_correlate, local_scatter
from .window import Window

__all__ = [
    'Window',
    'active_kernels',
    'attend',
    'axial_attention',
    'depthwise_conv2d',
    'local_aggregate',
    'local_attention',
    'local_correlate',
    'local_difference_attention',
    'local_involution',
    'local_scatter',
    'require_kernels',
]
