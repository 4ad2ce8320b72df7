"""Looking inside networks."""

from .kernel_maps import draw_kernel_maps, kernel_maps

__all__ = ['draw_kernel_maps', 'kernel_maps']
