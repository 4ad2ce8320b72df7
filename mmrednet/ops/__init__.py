"""Functions over tensors: arithmetic of a position and its neighbours. Imports torch alone."""

from .attention import attend, local_attention
from .axial import axial_attention
from .depthwise import depthwise_conv2d
from .difference_attention import local_difference_attention
from .dispatch import require_kernels
from .involution import local_involution
from .local import active_kernels, local_aggregate, local_correlate, local_scatter
from .natten import na1d_av, na1d_qk, na2d_av, na2d_qk
from .vector_attention import local_vector_attention
from .vector_mapping import Gamma
from .vector_moments import vector_statistics
from .window import Window

__all__ = [
    'Gamma',
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
    'local_vector_attention',
    'na1d_av',
    'na1d_qk',
    'na2d_av',
    'na2d_qk',
    'require_kernels',
    'vector_statistics',
]
