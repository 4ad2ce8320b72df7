"""Panoptic quality (Kirillov et al., CVPR 2019) of one image, counted in memory.

    PQ = sum of IoU over matches / (TP + FP / 2 + FN / 2) = SQ * RQ

The sums over images and the averages over classes are those of cityscapesscripts, whose script
reads the same counts from files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

try:
    from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import PQStat
except ImportError as error:
    raise ImportError(
        'mmrednet.PanopticMetric needs cityscapesscripts, which cannot be imported. Install: '
        'pip install cityscapesscripts'
    ) from error

# a match needs a greater IoU, and an unmatched prediction is dropped above this share of void
THRESHOLD = 0.5


def segment_positions(ids: np.ndarray, segments: Sequence[Mapping], void: int) -> np.ndarray:
    """Return the position in ``segments`` of each pixel's segment, beginning with 1; 0 is void.

    Args:
        ids: Map of segment ids (H, W).
        segments: Segments with an ``id`` each.
        void: Id of pixels without a segment.

    Raises:
        ValueError: The map has an id without a segment, or a segment has no pixels.
    """
    numbers = [void, *(segment['id'] for segment in segments)]
    unknown = len(numbers)
    table = np.full(max(int(ids.max()), *numbers) + 1, unknown, np.int32)
    table[numbers] = np.arange(len(numbers))
    positions = table[ids]
    areas = np.bincount(positions.ravel(), minlength=unknown + 1)
    if areas[unknown]:
        stray = np.unique(ids[positions == unknown]).tolist()
        raise ValueError(f'a map must have ids of its segments {numbers} alone, got {stray}')
    if not areas[1:unknown].all():
        empty = [numbers[position] for position in range(1, unknown) if not areas[position]]
        raise ValueError(f'segments must have pixels, got segments {empty} without')
    return positions


def count_pairs(truth: np.ndarray, prediction: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return how many pixels each pair of segments shares, (1 + truths, 1 + predictions).

    Args:
        truth: Result of :func:`segment_positions` for the truth.
        prediction: The same for the prediction.
        shape: Shape of the result. Row 0 and column 0 are void.
    """
    pairs = truth.astype(np.int64) * shape[1] + prediction
    return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def match_segments(
    pairs: np.ndarray, truths: Sequence[Mapping], predictions: Sequence[Mapping]
) -> PQStat:
    """Match the segments of one image, by the rules of the official scripts.

    A predicted and a true segment of a class match if their IoU is above 0.5. Pixels that are void
    in the truth do not count in the union. Crowds are neither matched nor missed. An unmatched
    prediction is dropped if more than half of it lies on void and on the crowd of its class.

    Args:
        pairs: Result of :func:`count_pairs`.
        truths: Segments of the truth with ``category`` and ``iscrowd``.
        predictions: Predicted segments with ``category``.

    Returns:
        TP, FP, FN and the sum of IoU for each category.
    """
    true_areas, predicted_areas = pairs.sum(1), pairs.sum(0)
    unions = true_areas[:, None] + predicted_areas - pairs - pairs[0]
    # void has no class
    true_classes = np.array([-1, *(segment['category'] for segment in truths)])
    predicted_classes = np.array([-2, *(segment['category'] for segment in predictions)])
    is_crowd = np.array([False, *(bool(segment['iscrowd']) for segment in truths)])
    can_match = true_classes[:, None] == predicted_classes
    can_match[is_crowd] = False
    ious = np.where(can_match, pairs / np.maximum(unions, 1), 0)
    matches = ious > THRESHOLD
    statistics = PQStat()
    for row, column in np.argwhere(matches):
        entry = statistics[int(true_classes[row])]
        entry.tp += 1
        entry.iou += float(ious[row, column])
    # void is the first row and the first column
    for row in np.flatnonzero(~matches.any(1) & ~is_crowd)[1:]:
        statistics[int(true_classes[row])].fn += 1
    # of several crowds of a class, the last one counts
    crowds = {int(true_classes[row]): int(row) for row in np.flatnonzero(is_crowd)}
    for column in np.flatnonzero(~matches.any(0))[1:]:
        category = int(predicted_classes[column])
        if not _is_dropped(pairs[:, column], crowds.get(category)):
            statistics[category].fp += 1
    return statistics


def _is_dropped(overlaps: np.ndarray, crowd: int | None) -> bool:
    """Return whether an unmatched prediction lies on void and on the crowd of its class.

    Args:
        overlaps: Pixels that the prediction shares with void and with each true segment.
        crowd: Position of the crowd of its class. None if there is none.
    """
    ignored = overlaps[0] if crowd is None else overlaps[0] + overlaps[crowd]
    return bool(ignored / overlaps.sum() > THRESHOLD)


def average_quality(
    statistics: PQStat, classes: Sequence[str], things: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return ``pq``, ``sq`` and ``rq`` in percent of 'all', 'things', 'stuff' and each class.

    Classes that occur in neither truth nor prediction count in no average. Their own figures, and
    averages over no class, are NaN.

    Args:
        statistics: Sum of :func:`match_segments` over images.
        classes: Names of the classes.
        things: Names of the classes of things.
    """
    categories = {index: dict(isthing=int(name in things)) for index, name in enumerate(classes)}
    averages, by_class = {}, {}
    for key, is_thing in (('all', None), ('things', True), ('stuff', False)):
        try:
            figures, class_figures = statistics.pq_average(categories, isthing=is_thing)
        except ZeroDivisionError:
            figures, class_figures = dict.fromkeys(('pq', 'sq', 'rq'), np.nan), {}
        averages[key] = _in_percent(figures)
        by_class.update(class_figures)
    for index, name in enumerate(classes):
        entry = statistics[index]
        occurs = entry.tp + entry.fp + entry.fn > 0
        figures = by_class[index] if occurs else dict.fromkeys(('pq', 'sq', 'rq'), np.nan)
        averages[f'class {name}'] = _in_percent(figures)
    return averages


def _in_percent(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: 100 * float(figures[key]) for key in ('pq', 'sq', 'rq')}
