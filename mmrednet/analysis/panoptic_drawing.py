"""Pictures of panoptic maps: a colour for each instance, contours, and hatched void."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import mmcv
import numpy as np

from ..datasets.id_map import INSTANCE_OFFSET
from .panels import (
    captioned,
    check_indices,
    display_image,
    grid,
    palette_of,
    predict_item,
    with_legend,
)

# shades of the hatching of void, and its period in pixels
HATCHING, PERIOD = ((120, 120, 120), (165, 165, 165)), 8
# golden ratio: successive multiples of it lie far apart on a circle
GOLDEN = 0.618034


def segment_colours(segments: Sequence[Mapping], palette: Sequence, things: frozenset[int]) -> list:
    """Return a colour (RGB) for each segment.

    Stuff has the colour of its class. Instances of a class differ in hue and brightness around it.

    Args:
        segments: Segments with ``category``.
        palette: Colour (RGB) of each class.
        things: Classes of things.
    """
    colours, counts = [], dict.fromkeys(things, 0)
    for segment in segments:
        category = segment['category']
        colour = tuple(palette[category])
        if category in things:
            colour = _vary(colour, counts[category])
            counts[category] += 1
        colours.append(colour)
    return colours


def _vary(colour: Sequence[int], number: int) -> tuple[int, ...]:
    """Return the colour of the n-th instance of a class of this colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    # the first instance has the colour itself
    shift = (number * GOLDEN + 0.5) % 1 - 0.5
    hue = (hue + 0.16 * shift) % 1
    # dark colours and greys hardly change with the hue
    saturation = min(max(saturation, 0.35), 1)
    value = min(max(value, 0.45) * (1 + 0.7 * shift), 1)
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def paint_segments(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[Mapping],
    colours: Sequence,
    *,
    opacity: float = 0.65,
) -> np.ndarray:
    """Paint segments over an image, with black contours. What belongs to none is hatched.

    Args:
        image: Image (H, W, 3), uint8, RGB.
        ids: Map of segment ids (h, w) of any size.
        segments: Segments with ``id``.
        colours: Colour (RGB) of each segment.
        opacity: Weight of the colours. Default: 0.65.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    height, width = image.shape[:2]
    ids = cv2.resize(ids.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    rows, columns = np.mgrid[:height, :width]
    stripes = (rows + columns) // (PERIOD // 2) % 2
    paint = np.array(HATCHING, float)[stripes]
    is_void = np.ones(ids.shape, bool)
    for segment, colour in zip(segments, colours, strict=True):
        mask = ids == segment['id']
        paint[mask] = colour
        is_void &= ~mask
    weight = np.where(is_void, 1, opacity)[..., None]
    painted = weight * paint + (1 - weight) * image
    painted[_contours(ids)] = 0
    return painted.round().astype(np.uint8)


def _contours(ids: np.ndarray) -> np.ndarray:
    """Return the mask (H, W) of pixels whose right or lower neighbour has another id."""
    mask = np.zeros(ids.shape, bool)
    mask[:, :-1] |= ids[:, 1:] != ids[:, :-1]
    mask[:-1] |= ids[1:] != ids[:-1]
    return mask


def panoptic_panels(
    image: np.ndarray, sample: Any, meta: Mapping, *, truth: bool = True, prediction: bool = True
) -> tuple[dict[str, np.ndarray], set[int]]:
    """Return panels of an image, its truth and its prediction, as far as the sample has them.

    Args:
        image: Image (H, W, 3), uint8, RGB.
        sample: Data sample with ``gt_panoptic_seg`` or ``pred_panoptic_seg``.
        meta: Metainfo of the data set.
        truth: Whether to draw the truth. Default: True.
        prediction: Whether to draw the prediction. Default: True.

    Returns:
        The panels by their titles, and the classes in them; -1 is void.
    """
    classes = list(meta['classes'])
    palette = palette_of(meta.get('palette'), len(classes))
    # a model without a checkpoint does not know which classes are things
    things = frozenset(map(classes.index, meta.get('thing_classes', ())))
    maps = {}
    if truth and 'gt_panoptic_seg' in sample and sample.get('segments_info') is not None:
        maps['truth'] = (_ids(sample.gt_panoptic_seg), sample.segments_info)
    if prediction and 'pred_panoptic_seg' in sample:
        ids = _ids(sample.pred_panoptic_seg)
        maps['prediction'] = (ids, _predicted_segments(sample, ids, len(classes)))
    panels, labels = {'image': image}, set[int]()
    for title, (ids, segments) in maps.items():
        colours = segment_colours(segments, palette, things)
        panels[title] = paint_segments(image, ids, segments, colours)
        labels.update(segment['category'] for segment in segments)
        if not np.isin(ids, [segment['id'] for segment in segments]).all():
            labels.add(-1)
    return panels, labels


def _predicted_segments(sample: Any, ids: np.ndarray, void: int) -> Sequence[Mapping]:
    stated = sample.get('pred_segments_info')
    if stated is not None:
        return stated
    present = [int(value) for value in np.unique(ids) if value != void]
    return [dict(id=value, category=value % INSTANCE_OFFSET) for value in present]


def with_panoptic_legend(picture: np.ndarray, labels: set[int], meta: Mapping) -> np.ndarray:
    """Return a picture and, below it, a legend of classes.

    Args:
        picture: Picture (H, W, 3), uint8.
        labels: Classes to name; -1 is void.
        meta: Metainfo of the data set.
    """
    entries: list[tuple[str, tuple[int, int, int]]] = []
    palette = palette_of(meta.get('palette'), len(meta['classes']))
    for label, name in enumerate(meta['classes']):
        if label in labels:
            entries.append((name, palette[label]))
    if -1 in labels:
        entries.append(('void', HATCHING[0]))
    return with_legend(picture, entries)


def draw_panoptics(
    model: Any, dataset: Sequence, indices: Sequence[int], *, scale: int = 2
) -> np.ndarray:
    """Draw a row for each image: the image, its truth and its prediction, and below them a legend.

    Args:
        model: Panoptic detector of mmdet, with ``dataset_meta`` set.
        dataset: Data set with panoptic truth.
        indices: Indices of the images to draw. Smaller images are filled up with white.
        scale: Factor to enlarge the images by. Default: 2.

    Returns:
        (H, W, 3), uint8, RGB. Void is hatched.

    Raises:
        ValueError: There are no indices.
    """
    check_indices(indices)
    panels: list[np.ndarray] = []
    labels: set[int] = set()
    columns = 1
    for index in indices:
        item = dataset[index]
        sample = predict_item(model, item)
        image = mmcv.imrescale(display_image(item), float(scale))
        row, present = panoptic_panels(image, sample, model.dataset_meta)
        labels |= present
        columns = len(row)
        for title, panel in row.items():
            name = f'image {index}' if title == 'image' else title
            panels.append(captioned(panel, name))
    return with_panoptic_legend(grid(panels, columns), labels, model.dataset_meta)


def _ids(pixels: Any) -> np.ndarray:
    """Return the map (H, W) of PixelData."""
    ids = pixels.sem_seg
    return np.asarray(ids.cpu() if hasattr(ids, 'cpu') else ids)[0]
