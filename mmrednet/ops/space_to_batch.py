"""Dilated depth-wise convolution as a dense one over the positions that its taps see.

With dilation d, an output sees only positions whose distance from it is a multiple of d. A feature
map therefore consists of d x d smaller ones that do not interact. Convolving each of them without
dilation gives the same numbers, by CPU kernels that are much faster than those for a dilation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dilated_depth_wise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve every channel with a kernel of its own and keep the size of the feature map.

    Args:
        x: Feature map (B, C, H, W).
        weight: Kernels (C, 1, Kh, Kw) of odd sizes.
        bias: Summand (C,) of each channel, or None.
        dilation: Distance between neighbouring taps.

    Returns:
        (B, C, H, W), contiguous or channels-last as ``x``.
    """
    height, width = x.shape[-2:]
    # zeros at the end, which the padding of the convolution continues
    padded = F.pad(x, (0, -width % dilation, 0, -height % dilation))
    padding = [size // 2 for size in weight.shape[-2:]]
    parts = space_to_batch(padded, dilation)
    result = F.conv2d(parts, weight, bias, padding=padding, groups=len(weight))
    return batch_to_space(result, dilation)[..., :height, :width]


def space_to_batch(x: Tensor, step: int) -> Tensor:
    """Return the maps (B * step * step, C, H / step, W / step) of positions ``step`` apart.

    The result is contiguous or channels-last as the input.
    """
    cells = x.unflatten(3, (-1, step)).unflatten(2, (-1, step))
    if _is_channels_last(x):
        return cells.permute(0, 3, 5, 2, 4, 1).flatten(0, 2).movedim(-1, 1)
    return cells.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def batch_to_space(x: Tensor, step: int) -> Tensor:
    """Undo :func:`space_to_batch`."""
    parts = x.unflatten(0, (-1, step, step))
    if _is_channels_last(x):
        return parts.permute(0, 4, 1, 5, 2, 3).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
    return parts.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


def _is_channels_last(x: Tensor) -> bool:
    # a map of one channel or one pixel is both
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
