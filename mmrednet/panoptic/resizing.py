"""Predictions of a stride of 4 at the size of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .losses import Predictions

FACTORS = ('exact', 'integer', 'stride')


class Upsampling:
    """Bilinear upsampling, in which offsets grow with the map.

    Args:
        align_corners: True if corners are aligned. Default: True.
        factor: Factor of the offsets. 'exact' is (H - 1) / (h - 1) along each axis, 'integer' is
            (H - 1) // (h - 1) of the height for both. 'stride' is the stride of the map, whose
            upsampled map is cut to the size of the image. Default: 'exact'.

    Raises:
        ValueError: ``factor`` has no such value.
    """

    def __init__(self, *, align_corners: bool = True, factor: str = 'exact') -> None:
        if factor not in FACTORS:
            raise ValueError(f'factor must be one of {FACTORS}, got {factor!r}.')
        self.align_corners, self.factor = align_corners, factor

    def __call__(self, predictions: Predictions, size: Sequence[int]) -> Predictions:
        """Return predictions (B, ..., H, W) for a batch of images of ``size``."""
        small = predictions.offset.shape[2:]
        if self.factor == 'stride':
            stride = -(-size[0] // small[0])
            factors: tuple[float, float] = (stride, stride)
            target = [stride * length for length in small]
        else:
            target = list(size)
            factors = self.factors(small, size)
        # half precision cannot tell neighbouring pixels of a large image apart
        full = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in predictions]
        large = [resize(x, target, self.align_corners) for x in full]
        semantic, heat, offset = (x[..., : size[0], : size[1]] for x in large)
        return Predictions(semantic, heat, scale_offset(offset, factors))

    def factors(self, small: Sequence[int], size: Sequence[int]) -> tuple[float, float]:
        """Return the factors of rows and columns. A map of one row or column counts as two."""
        steps = [max(length - 1, 1) for length in small]
        if self.factor == 'integer':
            factor = (size[0] - 1) // steps[0]
            return factor, factor
        return (size[0] - 1) / steps[0], (size[1] - 1) / steps[1]


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Return the map (B, C, h, w) at another size, by bilinear interpolation."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode='bilinear', align_corners=align_corners)


def scale_offset(offset: Tensor, factors: Sequence[float]) -> Tensor:
    """Return offsets (B, 2, H, W) times the factors of rows and columns."""
    rows, columns = factors
    return torch.stack([offset[:, 0] * rows, offset[:, 1] * columns], 1)
