"""Scenes as a COCO data set: images, boxes, and masks of what is visible."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .shapes import Scene


def write_coco(folder: Path, split: str, scenes: Iterable[Scene], classes: Sequence[str]) -> None:
    """Write scenes as ``folder/split/*.png`` and ``folder/annotations/instances_split.json``.

    Args:
        folder: Folder of the data set.
        split: Name of the split.
        scenes: Scenes to write. Image ids count from 0.
        classes: Names of the classes. Category ids count from 1.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, scene in enumerate(scenes):
        name = f'{image_id:06d}.png'
        cv2.imwrite(str(folder / split / name), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        height, width = scene.instances.shape
        images.append(dict(id=image_id, file_name=name, height=height, width=width))
        for index, class_index in enumerate(scene.classes, start=1):
            annotation = annotate_mask(scene.instances == index)
            annotation.update(
                id=len(annotations) + 1, image_id=image_id, category_id=class_index + 1
            )
            annotations.append(annotation)
    categories = [dict(id=index, name=name) for index, name in enumerate(classes, start=1)]
    contents = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(contents))


def annotate_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return the COCO annotation of a mask: its run lengths, its area and the box around it.

    Args:
        mask: Mask (H, W) of bool.
    """
    # pycocotools counts runs down the columns
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(
        segmentation=dict(size=encoded['size'], counts=encoded['counts'].decode('ascii')),
        area=int(coco_mask.area(encoded)),
        bbox=coco_mask.toBbox(encoded).astype(int).tolist(),
        iscrowd=0,
    )
