"""Transforms of whole images that mmcv does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform

from ..registry import TRANSFORMS

# as in torchvision; the share of rectangles that do not fit is small
TRIES = 10


@TRANSFORMS.register_module()
class RandomResizedCrop(BaseTransform):
    """Cut a rectangle of random area and shape and resize it (Szegedy et al., CVPR 2015).

    Args:
        size: Side of the result, a square.
        area: Least and greatest share of the image. Default: (0.08, 1).
        ratio: Least and greatest width over height. Default: (3 / 4, 4 / 3).

    Raises:
        ValueError: A range is empty.
    """

    def __init__(
        self,
        size: int,
        area: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        if size < 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                'size must be positive, area in (0, 1] and ratio positive, each from least to '
                f'greatest, got {size=}, {area=}, {ratio=}.'
            )
        self.size, self.area, self.ratio = size, area, ratio

    def transform(self, results: dict) -> dict:
        """Replace the image."""
        image = results['img']
        top, left, height, width = self.rectangle(*image.shape[:2])
        crop = image[top : top + height, left : left + width]
        results['img'] = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        results['img_shape'] = (self.size, self.size)
        return results

    def rectangle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a random rectangle.

        If no try fits into the image, it is the largest square in the centre.
        """
        for _ in range(TRIES):
            area = height * width * np.random.uniform(self.area[0], self.area[1])
            # uniform on a logarithmic scale: as often wide as high
            ratio = math.exp(np.random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            new_width, new_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < new_width <= width and 0 < new_height <= height:
                return (
                    np.random.randint(height - new_height + 1),
                    np.random.randint(width - new_width + 1),
                    new_height,
                    new_width,
                )
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side


@TRANSFORMS.register_module()
class RandomErasing(BaseTransform):
    """Fill a random rectangle with noise (Zhong et al., AAAI 2020).

    Args:
        prob: Probability of a rectangle. Default: 0.25.
        area: Least and greatest share of the image. Default: (0.02, 1 / 3).
        ratio: Least and greatest height over width. Default: (0.3, 10 / 3).
    """

    def __init__(
        self,
        prob: float = 0.25,
        area: Sequence[float] = (0.02, 1 / 3),
        ratio: Sequence[float] = (0.3, 10 / 3),
    ) -> None:
        self.prob = prob
        # only the rectangle of the crop is used, whose ratio is width over height
        self.crop = RandomResizedCrop(1, area, [1 / ratio[1], 1 / ratio[0]])

    def transform(self, results: dict) -> dict:
        """Replace the image."""
        if np.random.uniform() < self.prob:
            image = results['img'].copy()
            top, left, height, width = self.crop.rectangle(*image.shape[:2])
            patch = image[top : top + height, left : left + width]
            # normalised by ImageNet's mean and deviation, this is standard normal noise
            patch[:] = np.clip(np.random.normal(120, 58, patch.shape), 0, 255)
            results['img'] = image
        return results


@TRANSFORMS.register_module()
class PackImage(BaseTransform):
    """Make tensors of the image, (3, H, W), and of its label."""

    def transform(self, results: dict) -> dict:
        """Return ``inputs`` and ``data_samples``."""
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        return dict(inputs=torch.from_numpy(image), data_samples=torch.tensor(results['gt_label']))
