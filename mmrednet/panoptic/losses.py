"""Losses of Panoptic-DeepLab (Cheng et al., CVPR 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .targets import IGNORE_LABEL, Targets

MEANS = ('nonzero', 'weights')
OFFSET_MEANS = ('values', 'pixels')


class Predictions(NamedTuple):
    """Outputs of the heads.

    Args:
        semantic: Logits of the classes (B, C, H, W).
        heat: Heat map of the centres (B, 1, H, W).
        offset: Rows and columns to the centre (B, 2, H, W), in elements of the map.
    """

    semantic: Tensor
    heat: Tensor
    offset: Tensor


class PanopticLoss:
    r"""The weighted sum of three losses, at the resolution of the targets.

    .. math:: L = \lambda_s \mathrm{CE}_{top}(s) + \lambda_h |h - \hat h|^2 + \lambda_o |o - \hat
              o|_1

    The cross entropy is that of the hardest pixels. The other two are means over the pixels with a
    weight.

    Args:
        semantic_weight: Weight of the cross entropy. Default: 1.
        heat_weight: Weight of the heat map. Default: 200.
        offset_weight: Weight of the offsets. Default: 0.01.
        hardest: Part of the pixels that the cross entropy is taken of, at most 1. Default: 0.2.
        per_image: True if the hardest pixels and all means are those of each image, and then the
            mean of the images is taken; False if the batch counts as one image. Default: True.
        mean: What a sum is divided by: the number of 'nonzero' losses, or the sum of the
            'weights', where the number of the hardest pixels divides the cross entropy.
            Default: 'nonzero'.
        offset_mean: Whether a mean of the offsets counts both 'values' of a pixel, or the 'pixels',
            which doubles the loss. Default: 'values'.

    Raises:
        ValueError: An argument has no such value.
    """

    def __init__(
        self,
        *,
        semantic_weight: float = 1.0,
        heat_weight: float = 200.0,
        offset_weight: float = 0.01,
        hardest: float = 0.2,
        per_image: bool = True,
        mean: str = 'nonzero',
        offset_mean: str = 'values',
    ) -> None:
        if not 0 < hardest <= 1:
            raise ValueError(f'hardest must be above 0 and at most 1, got {hardest}.')
        if mean not in MEANS:
            raise ValueError(f'mean must be one of {MEANS}, got {mean!r}.')
        if offset_mean not in OFFSET_MEANS:
            raise ValueError(f'offset_mean must be one of {OFFSET_MEANS}, got {offset_mean!r}.')
        self.semantic_weight, self.heat_weight = semantic_weight, heat_weight
        self.offset_weight, self.hardest = offset_weight, hardest
        self.per_image, self.mean, self.offset_mean = per_image, mean, offset_mean

    def __call__(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Return the three losses of predictions at the resolution of the targets.

        Args:
            predictions: Outputs of the heads (B, ..., H, W), upsampled.
            targets: Targets of the batch (B, ..., H, W).
        """
        heat = (predictions.heat[:, 0] - targets.heat) ** 2 * targets.heat_weight
        offset = (predictions.offset - targets.offset).abs() * targets.offset_weight[:, None]
        weights = targets.offset_weight[:, None]
        if self.offset_mean == 'values':
            weights = weights.expand_as(offset)
        return dict(
            loss_semantic=self.semantic_weight * self.cross_entropy(predictions.semantic, targets),
            loss_heat=self.heat_weight * self.average(heat, targets.heat_weight),
            loss_offset=self.offset_weight * self.average(offset, weights),
        )

    def cross_entropy(self, logits: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross entropy of the hardest pixels."""
        loss = F.cross_entropy(
            logits, targets.semantic, reduction='none', ignore_index=IGNORE_LABEL
        )
        rows = self._rows(loss * targets.semantic_weight)
        if self.hardest < 1:
            size = self.hardest * rows.shape[1]
            # deeplab2 rounds to the nearest
            count = round(size) if self.per_image else int(size)
            rows = rows.topk(max(count, 1), dim=1, sorted=False).values
        return self.average(rows, torch.ones_like(rows), rows=True)

    def average(self, loss: Tensor, weights: Tensor, rows: bool = False) -> Tensor:
        """Return the mean of weighted losses; 0 if none has a weight."""
        if not rows:
            loss, weights = self._rows(loss), self._rows(weights)
        counted = (loss != 0).to(loss.dtype) if self.mean == 'nonzero' else weights
        # without a weight the sum is 0 as well, and keeps the gradient's path
        return (loss.sum(1) / counted.sum(1).clamp(min=1)).mean()

    def _rows(self, values: Tensor) -> Tensor:
        """Return the values as one row per image, or as one row."""
        return values.flatten(1) if self.per_image else values.reshape(1, -1)
