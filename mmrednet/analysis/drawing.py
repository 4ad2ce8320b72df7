"""Pictures of detections and segmentations beside the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np

from .panels import (
    captioned,
    check_indices,
    display_image,
    grid,
    palette_of,
    predict_item,
    with_legend,
    with_objects,
)

# longest side of a drawn photograph in pixels, wide enough for the text of a label
PHOTOGRAPH = 384


def draw_detections(
    model: Any,
    dataset: Sequence,
    indices: Sequence[int],
    *,
    scale: float | None = None,
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
        scale: Factor to enlarge the images by. Default: that which makes the longest side of each
            image 384 pixels long.
        columns: Number of images in a row. Default: 2.
        score_thr: Score below which a detection is not drawn. Default: 0.5.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        ValueError: There are no indices, or the model predicts no boxes.
    """
    check_indices(indices)
    classes = model.dataset_meta['classes']
    palette = palette_of(model.dataset_meta.get('palette'), len(classes))
    panels = []
    labels: set[int] = set()
    for index in indices:
        item = dataset[index]
        sample = predict_item(model, item)
        if 'pred_instances' not in sample:
            raise ValueError(
                f'model must predict boxes, {type(model).__name__} gives {sample.keys()}.'
            )
        image = display_image(item)
        factor = scale or PHOTOGRAPH / max(image.shape[:2])
        image = mmcv.imrescale(image, float(factor))
        confident = sample.pred_instances[sample.pred_instances.scores >= score_thr]
        truth = sample.get('gt_instances', {})
        halves = {
            f'image {index}: {"truth" if "bboxes" in truth else "no truth"}': truth,
            'prediction': confident,
        }
        for caption, instances in halves.items():
            if 'bboxes' in instances:
                labels.update(instances.labels.tolist())
            panel = _with_instances(image, instances, classes, palette, factor)
            panels.append(captioned(panel, caption))
    entries = [(classes[label], palette[label]) for label in sorted(labels)]
    return with_legend(grid(panels, 2 * columns), entries)


def _with_instances(
    image: np.ndarray,
    instances: Any,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    scale: float,
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
    classes = model.dataset_meta['classes']
    # labels are bytes; those without a colour, such as 255 for ignored pixels, are black
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = palette_of(model.dataset_meta.get('palette'), len(classes))
    panels = []
    labels: set[int] = set()
    for index in indices:
        item = dataset[index]
        sample = predict_item(model, item)
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
