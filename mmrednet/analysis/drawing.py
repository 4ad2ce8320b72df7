"""Pictures of what a network sees: kernels of involution, detections and segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.registry import VISUALIZERS
from torch import Tensor, nn

from ..layers import Involution
from .panels import check_indices, grid, legend, predict_item, titled


def kernel_maps(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Run a model and return the sum of each position's kernel for each of its involutions.

    Figure 3 of the paper (Li et al., CVPR 2021) shows these sums:

        map[b, g, y, x] = sum over j of  W[b, g, j, y, x]

    Args:
        model: Module with at least one involution.
        inputs: Inputs of its forward.

    Returns:
        The name of each involution, in the order of use, and its map (B, G, Ho, Wo).

    Raises:
        ValueError: The model has no involution.
    """
    maps: dict[str, Tensor] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, Involution):

            def store(
                _: nn.Module, __: tuple, hidden: Tensor, name: str = name, layer: Involution = layer
            ) -> None:
                maps[name] = layer.generate(hidden.detach()).sum(2)

            hooks.append(layer.conv1.register_forward_hook(store))
    if not hooks:
        raise ValueError(
            f'model must have at least one Involution, {type(model).__name__} has none.'
        )
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def draw_kernel_maps(
    image: np.ndarray, maps: dict[str, Tensor], *, height: int = 256
) -> np.ndarray:
    """Draw the image and, beside it, each map on top of the image.

    Each map is averaged over its groups and scaled to its own range, from blue to red.

    Args:
        image: Image (H, W, 3), uint8, BGR.
        maps: Result of :func:`kernel_maps` for this image. The first of the batch is drawn.
        height: Height of the picture in pixels. Default: 256.

    Returns:
        (height, about height * W / H * (1 + len(maps)), 3), uint8, BGR.
    """
    size = (round(image.shape[1] * height / image.shape[0]), height)
    base = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    panels = [titled(base, 'image')]
    for name, values in maps.items():
        heat = values[0].float().mean(0).cpu().numpy()
        # a constant map has no range to divide by
        span = max(float(heat.max() - heat.min()), 1e-12)
        heat = (heat - heat.min()) / span
        # cubic interpolation leaves the range of its input
        heat = cv2.resize(heat, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
        colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_JET)
        panels.append(titled(cv2.addWeighted(base, 0.5, colours, 0.5, 0), name))
    return np.concatenate(panels, 1)


def draw_detections(
    model: Any,
    dataset: Sequence,
    indices: Sequence[int],
    *,
    scale: int = 3,
    columns: int = 2,
    score_thr: float = 0.5,
) -> np.ndarray:
    """Draw images with the ground truth on the left and the detections on the right.

    Args:
        model: Detector of mmdet, with ``dataset_meta`` set.
        dataset: Data set of mmdet with ground truth.
        indices: Indices of the images to draw. Smaller images and an incomplete row are filled up
            with white.
        scale: Factor to enlarge the images by, so that labels on small ones can be read.
            Default: 3.
        columns: Number of images in a row. Default: 2.
        score_thr: Score below which a detection is not drawn. Default: 0.5.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        ValueError: There are no indices.
    """
    check_indices(indices)
    # mmdet's visualizer draws both halves; only the registry imports mmdet
    visualizer = VISUALIZERS.get('mmdet.DetLocalVisualizer')(line_width=2)
    visualizer.dataset_meta = model.dataset_meta
    panels = []
    for index in indices:
        sample = predict_item(model, dataset[index])
        image = mmcv.imrescale(mmcv.imread(sample.img_path, channel_order='rgb'), float(scale))
        height, width = image.shape[:2]
        for instances in (sample.gt_instances, sample.pred_instances):
            boxes = instances.bboxes
            instances.bboxes = getattr(boxes, 'tensor', boxes) * scale
            if 'masks' in instances:
                instances.masks = _enlarged_masks(instances.masks, height, width)
        visualizer.add_datasample(f'image {index}', image, sample, pred_score_thr=score_thr)
        drawn = visualizer.get_image()
        # a detector without ground truth or predictions has one half
        titles = [f'image {index}: truth', 'prediction'][: drawn.shape[1] // width]
        for number, title in enumerate(titles):
            half = slice(number * width, (number + 1) * width)
            drawn[:, half] = titled(drawn[:, half], title)
        panels.append(drawn)
    return grid(panels, min(columns, len(panels)))


def _enlarged_masks(masks: Any, height: int, width: int) -> np.ndarray:
    """Return masks (N, h, w), arrays, tensors or mmdet's bitmaps and polygons, as bool arrays of
    another size.
    """
    if hasattr(masks, 'to_ndarray'):
        masks = masks.to_ndarray()
    arrays = np.asarray(masks, np.uint8)
    enlarged = np.zeros((len(arrays), height, width), bool)
    for index, mask in enumerate(arrays):
        size = (width, height)
        enlarged[index] = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0
    return enlarged


def draw_segmentations(
    model: Any, dataset: Sequence, indices: Sequence[int], *, scale: int = 2
) -> np.ndarray:
    """Draw a row for each image: the image, its ground truth and the predicted labels, and below
    them a legend of the classes.

    Args:
        model: Segmenter of mmseg, with ``dataset_meta`` set.
        dataset: Data set of mmseg with ground truth.
        indices: Indices of the images to draw. Smaller images are filled up with white.
        scale: Factor to enlarge the images by. Default: 2.

    Returns:
        (H, W, 3), uint8, RGB. Ignored pixels are black.

    Raises:
        ValueError: There are no indices.
    """
    check_indices(indices)
    colours = model.dataset_meta['palette']
    # labels are bytes; those without a colour, such as 255 for ignored pixels, are black
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    panels = []
    labels: set[int] = set()
    for index in indices:
        sample = predict_item(model, dataset[index])
        truth = sample.gt_sem_seg.data[0].numpy()
        prediction = sample.pred_sem_seg.data[0].numpy()
        labels.update(np.unique(truth).tolist(), np.unique(prediction).tolist())
        row = {
            f'image {index}': mmcv.imread(sample.img_path, channel_order='rgb'),
            'truth': palette[truth],
            'prediction': palette[prediction],
        }
        for title, panel in row.items():
            enlarged = cv2.resize(panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            panels.append(titled(enlarged, title))
    picture = grid(panels, 3)
    classes = model.dataset_meta['classes']
    names = {label: name for label, name in enumerate(classes) if label in labels}
    if labels - set(names):
        names[255] = 'ignored'
    entries = [(name, palette[label]) for label, name in names.items()]
    strip = legend(entries, picture.shape[1])
    return np.concatenate([picture, strip])
