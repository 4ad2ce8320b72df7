"""Functions over tensors: arithmetic of a pixel and its neighbours. Imports torch alone."""

from .local import active_kernels, local_aggregate, local_correlate, local_scatter
from .window import Window

__all__ = ['Window', 'active_kernels', 'local_aggregate', 'local_correlate', 'local_scatter']
