"""Predicted labels beside the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch

from .panels import titled


def draw_segmentations(
    model: Any, dataset: Sequence, indices: Sequence[int], *, scale: int = 2
) -> np.ndarray:
    """Draw what a segmenter sees on images of a data set: a row of image, truth and prediction for
    each.

    Args:
        model: a segmenter of mmseg, with ``dataset_meta`` set.
        dataset: of mmseg, with ground truth; its images must have one size.
        indices: which of its images to draw.
        scale: how much to enlarge images.

    Returns:
        (H, W, 3) uint8, RGB; ignored pixels are black.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(model.dataset_meta['palette'])] = model.dataset_meta['palette']
    rows = []
    for index in indices:
        item = dataset[index]
        with torch.no_grad():
            sample = model.test_step(
                dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
            )[0].cpu()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        labels = [maps.data[0].numpy() for maps in (sample.gt_sem_seg, sample.pred_sem_seg)]
        panels = [image, *(palette[map_] for map_ in labels)]
        rows.append(
            np.concatenate(
                [
                    titled(
                        cv2.resize(
                            panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST
                        ),
                        title,
                    )
                    for panel, title in zip(
                        panels, (f'image {index}', 'truth', 'prediction'), strict=True
                    )
                ],
                1,
            )
        )
    return np.concatenate(rows)
