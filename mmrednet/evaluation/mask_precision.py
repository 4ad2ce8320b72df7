"""Average precision of the instances of panoptic maps, as COCO counts it for masks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def encode_instances(
    positions: np.ndarray, segments: Sequence[Mapping], things: frozenset[int]
) -> list[dict[str, Any]]:
    """Return the run lengths of each thing of a map, one mask at a time.

    Args:
        positions: Map (H, W) of positions in ``segments``, beginning with 1.
        segments: Segments with ``category`` and, if they have them, ``iscrowd`` and ``score``.
        things: Classes of things.
    """
    # pycocotools counts down the columns
    by_column = np.asfortranarray(positions)
    instances = []
    for position, segment in enumerate(segments, start=1):
        if segment['category'] not in things:
            continue
        mask = (by_column == position).view(np.uint8)
        encoded = coco_mask.encode(mask)
        instances.append(
            dict(
                segmentation=encoded,
                category_id=segment['category'],
                area=float(coco_mask.area(encoded)),
                bbox=coco_mask.toBbox(encoded).tolist(),
                iscrowd=int(segment.get('iscrowd', 0)),
                score=float(segment.get('score', 1.0)),
            )
        )
    return instances


def average_precision(
    images: Sequence[tuple[list[dict], list[dict]]], things: Sequence[int]
) -> dict[str, float]:
    """Return AP and AP50 in percent; NaN if the truth has no instance.

    Args:
        images: Instances of the truth and of the prediction of each image, see
            :func:`encode_instances`.
        things: Classes of things.
    """
    truths: list[dict] = []
    predictions: list[dict] = []
    for image_id, (true_instances, predicted_instances) in enumerate(images, start=1):
        truths += [dict(instance, image_id=image_id) for instance in true_instances]
        predictions += [dict(instance, image_id=image_id) for instance in predicted_instances]
    for number, annotation in enumerate(truths, start=1):
        annotation['id'] = number
    if not any(not annotation['iscrowd'] for annotation in truths):
        return dict(AP=np.nan, AP50=np.nan)
    if not predictions:
        return dict(AP=0.0, AP50=0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(
            # pycocotools asks for a size that run lengths do not need
            images=[dict(id=number, height=0, width=0) for number in range(1, len(images) + 1)],
            categories=[dict(id=category) for category in things],
            annotations=truths,
        )
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(predictions), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(AP=100 * float(evaluation.stats[0]), AP50=100 * float(evaluation.stats[1]))
