"""Pictures of what a network sees: kernels of involution, detections and segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..layers import Involution
from .panels import COLOURS, captioned, display_image, grid, with_legend, with_objects


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
        height: Height of the panels in pixels. Default: 256.

    Returns:
        (about height, about height * W / H * (1 + len(maps)), 3), uint8, BGR.
    """
    size = (round(image.shape[1] * height / image.shape[0]), height)
    base = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    panels = [captioned(base, 'image')]
    for name, values in maps.items():
        heat = values[0].float().mean(0).cpu().numpy()
        # a constant map has no range to divide by
        span = max(float(heat.max() - heat.min()), 1e-12)
        heat = (heat - heat.min()) / span
        # cubic interpolation leaves the range of its input
        heat = cv2.resize(heat, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
        colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_JET)
        panels.append(captioned(cv2.addWeighted(base, 0.5, colours, 0.5, 0), name))
    ends = np.array([[0, 255]], np.uint8)
    least, greatest = cv2.applyColorMap(ends, cv2.COLORMAP_JET)[0].tolist()
    entries = [('least sum', tuple(least)), ('greatest', tuple(greatest))]
    return with_legend(grid(panels, len(panels)), entries)


def draw_detections(
    model: Any,
    dataset: Sequence,
    indices: Sequence[int],
    *,
    scale: int = 3,
    columns: int = 2,
    score_thr: float = 0.5,
) -> np.ndarray:
    """Draw images with the ground truth on the left and the detections on the right, and below them
    a legend of the classes.

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
        ValueError: There are no indices, or the model predicts no boxes.
    """
    _check_indices(indices)
    classes = model.dataset_meta['classes']
    palette = _palette(model.dataset_meta.get('palette'), len(classes))
    panels = []
    labels: set[int] = set()
    for index in indices:
        item = dataset[index]
        sample = _predict(model, item)
        if 'pred_instances' not in sample:
            raise ValueError(
                f'model must predict boxes, {type(model).__name__} gives {sample.keys()}.'
            )
        image = cv2.resize(display_image(item), None, fx=scale, fy=scale)
        confident = sample.pred_instances[sample.pred_instances.scores >= score_thr]
        truth = sample.get('gt_instances', {})
        halves = {
            f'image {index}: {"truth" if "bboxes" in truth else "no truth"}': truth,
            'prediction': confident,
        }
        for caption, instances in halves.items():
            if 'bboxes' in instances:
                labels.update(instances.labels.tolist())
            panel = _with_instances(image, instances, classes, palette, scale)
            panels.append(captioned(panel, caption))
    entries = [(classes[label], palette[label]) for label in sorted(labels)]
    return with_legend(grid(panels, 2 * columns), entries)


def _with_instances(
    image: np.ndarray,
    instances: Any,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    scale: int,
) -> np.ndarray:
    """Return an enlarged image with instances of mmdet, whose boxes fit the image before."""
    if 'bboxes' not in instances:
        return image
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * scale
    labels = instances.labels.tolist()
    texts = [classes[label] for label in labels]
    if 'scores' in instances:
        scores = instances.scores.tolist()
        texts = [f'{text} {score:.2f}' for text, score in zip(texts, scores, strict=True)]
    masks = None
    if 'masks' in instances:
        masks = _enlarged_masks(instances.masks, *image.shape[:2])
    colours = [palette[label] for label in labels]
    return with_objects(image, boxes.cpu().numpy(), texts, colours, masks)


def _palette(palette: Any, count: int) -> list[tuple[int, int, int]]:
    """Return the colours of the classes, distinct ones if the data set states none for them."""
    # data sets with classes of their own inherit COCO's colours; mmdet knows names such as 'random'
    if not palette or isinstance(palette, str) or len(palette) != count:
        palette = [COLOURS[index % len(COLOURS)] for index in range(count)]
    return [tuple(colour) for colour in palette]


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
    _check_indices(indices)
    classes = model.dataset_meta['classes']
    # labels are bytes; those without a colour, such as 255 for ignored pixels, are black
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = _palette(model.dataset_meta.get('palette'), len(classes))
    panels = []
    labels: set[int] = set()
    for index in indices:
        item = dataset[index]
        sample = _predict(model, item)
        truth = sample.gt_sem_seg.data[0].numpy()
        prediction = sample.pred_sem_seg.data[0].numpy()
        labels.update(np.unique(truth).tolist(), np.unique(prediction).tolist())
        row = {
            f'image {index}': display_image(item),
            'truth': palette[truth],
            'prediction': palette[prediction],
        }
        for caption, panel in row.items():
            enlarged = cv2.resize(panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            panels.append(captioned(enlarged, caption))
    names = {label: name for label, name in enumerate(classes) if label in labels}
    if labels - set(names):
        names[255] = 'ignored'
    entries = [(name, tuple(palette[label].tolist())) for label, name in names.items()]
    return with_legend(grid(panels, 3), entries)


def _check_indices(indices: Sequence[int]) -> None:
    if not len(indices):
        raise ValueError('indices must name at least one image, got none.')


def _predict(model: Any, item: dict[str, Any]) -> Any:
    """Return the data sample of one item of a data set, with the model's predictions."""
    batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    with torch.no_grad():
        return model.test_step(batch)[0].cpu()
