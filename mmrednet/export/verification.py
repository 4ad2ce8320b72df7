"""Whether a file computes what the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from .programs import largest_error

# largest error of numbers, as a share of the largest; of boxes, as a share of the image
NUMBERS, BOXES = 1e-4, 1e-3
# Share of pixels with the same class; of detections with a counterpart. Not all of them: where two
# classes are equal up to rounding, or a score is at the threshold, either result is right.
PIXELS, DETECTIONS = 0.999, 0.99


def predict(model: Any, task: str, image: np.ndarray) -> list[np.ndarray]:
    """Return what a model predicts by its own code, in the order of the network's outputs.

    Args:
        model: Classifier, detector or segmenter in eval mode.
        task: Name of the task, see :func:`mmrednet.export.networks.network_of`.
        image: Image (1, 3, H, W) from 0 to 255, BGR.
    """
    tensor = torch.from_numpy(image[0])
    if task == 'classification':
        batch = model.data_preprocessor(dict(inputs=[tensor]), False)
        with torch.no_grad():
            return [model(batch['inputs']).softmax(1).numpy()]
    size = tuple(tensor.shape[1:])
    sizes = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    sample = BaseDataElement(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        result = model.test_step(dict(inputs=[tensor], data_samples=[sample]))[0]
    if task == 'segmentation':
        return [result.pred_sem_seg.data.numpy()]
    if task == 'panoptic':
        return [result.pred_panoptic_seg.sem_seg[0].numpy()]
    instances = result.pred_instances
    names = ['bboxes', 'scores', 'labels'] + (['masks'] if task == 'instances' else [])
    return [_array(instances[name]) for name in names]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def difference(
    task: str, outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> tuple[float, float, str]:
    """Return how far outputs are from what was expected, how far they may be, and in which unit.

    Args:
        task: Name of the task.
        outputs: Outputs of a file.
        expected: Outputs of the model, see :func:`predict`.
    """
    if task in ('segmentation', 'panoptic'):
        share = 1 - float(np.mean(outputs[0] == expected[0]))
        return share, 1 - PIXELS, 'of the pixels have another class'
    if task in ('detection', 'instances'):
        share = 1 - matched(outputs, expected)
        return share, 1 - DETECTIONS, 'of the detections have no counterpart'
    return largest_error(outputs, expected), NUMBERS, 'of the largest value'


def matched(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the share of detections with one of the same label, box and score in the other list.

    Args:
        outputs: Boxes (N, 4), scores (N,) and labels (N,).
        expected: The same of other detections.
    """
    total = len(outputs[0]) + len(expected[0])
    if total == 0:
        return 1.0
    # coordinates grow with the image, and so does their rounding
    scale = max(1.0, float(np.abs(np.concatenate([outputs[0], expected[0]])).max()))
    boxes = np.abs(outputs[0][:, None] - expected[0][None]).max(2) / scale
    scores = np.abs(outputs[1][:, None] - expected[1][None])
    same = (boxes < BOXES) & (scores < BOXES) & (outputs[2][:, None] == expected[2][None])
    return float(same.any(1).sum() + same.any(0).sum()) / total


def sample_image(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return a smooth image (1, 3, H, W) from 0 to 255, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator) * 255
    large = torch.nn.functional.interpolate(coarse, tuple(shape), mode='bicubic')
    return large.clamp(0, 255).round().numpy()
