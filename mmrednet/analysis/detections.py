"""Detections beside the ground truth, drawn by mmdet's visualizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
import torch


def draw_detections(
    model: Any,
    dataset: Sequence,
    indices: Sequence[int],
    *,
    scale: int = 3,
    columns: int = 2,
    score_thr: float = 0.5,
) -> np.ndarray:
    """Draw what a detector finds on images of a data set: each image twice, the ground truth on the
    left.

    Args:
        model: a detector of mmdet, with ``dataset_meta`` set.
        dataset: of mmdet, with ground truth; its images must have one size.
        indices: which of its images to draw; rows are filled up to a multiple of ``columns`` by
            leaving images out.
        scale: how much to enlarge images, so that labels on small ones can be read.
        columns: pairs side by side.
        score_thr: the least score of a detection to draw.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: there are fewer indices than columns.
    """
    from mmdet.visualization import DetLocalVisualizer

    if len(indices) < columns:
        raise ValueError(
            f'indices must be at least as many as columns, got {len(indices)} and {columns=}.'
        )
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = model.dataset_meta
    panels = []
    for index in indices[: len(indices) // columns * columns]:
        item = dataset[index]
        with torch.no_grad():
            sample = model.test_step(
                dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
            )[0].cpu()
        for instances in (sample.gt_instances, sample.pred_instances):
            boxes = instances.bboxes
            instances.bboxes = getattr(boxes, 'tensor', boxes) * scale
        image = mmcv.imrescale(mmcv.imread(sample.img_path, channel_order='rgb'), float(scale))
        visualizer.add_datasample(f'image {index}', image, sample, pred_score_thr=score_thr)
        panels.append(visualizer.get_image())
    rows = [
        np.concatenate(panels[start : start + columns], 1)
        for start in range(0, len(panels), columns)
    ]
    return np.concatenate(rows)
