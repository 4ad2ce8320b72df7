"""Scenes as a COCO data set: images, boxes, and masks of what is visible."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from .panoptic_scenes import STUFF, PanopticScene
from .shapes import Scene

# the n-th segment has the id n * (1 + 256 + 65536), a grey in the map
SEGMENT_ID_STEP = 0x010101
FIRST_STUFF_ID = 101


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


def write_coco_panoptic(
    folder: Path, split: str, scenes: Iterable[PanopticScene], things: Sequence[str]
) -> None:
    """Write ``folder/split2017/*.jpg``, ``folder/annotations/panoptic_split2017.json`` and a folder
    of that name with the maps, as COCO's archives have them.

    Args:
        folder: Folder of the data set.
        split: Name of the split, 'train' or 'val'.
        scenes: Scenes to write. Image ids count from 1.
        things: Names of the classes of things. Their category ids count from 1, those of stuff from
            101.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    maps = folder / 'annotations' / f'panoptic_{split}2017'
    maps.mkdir(parents=True, exist_ok=True)
    (folder / f'{split}2017').mkdir(exist_ok=True)
    for image_id, scene in enumerate(scenes, start=1):
        name = f'{image_id:012d}'
        Image.fromarray(scene.image).save(folder / f'{split}2017' / f'{name}.jpg', quality=95)
        ids = SEGMENT_ID_STEP * scene.positions
        channels = [ids % 256, ids // 256 % 256, ids // 65536]
        Image.fromarray(np.stack(channels, 2).astype(np.uint8)).save(maps / f'{name}.png')
        height, width = ids.shape
        images.append(dict(id=image_id, file_name=f'{name}.jpg', height=height, width=width))
        segments = _panoptic_segments(scene)
        annotations.append(dict(image_id=image_id, file_name=f'{name}.png', segments_info=segments))
    categories = []
    for names, first, is_thing in ((things, 1, 1), (STUFF, FIRST_STUFF_ID, 0)):
        for index, name in enumerate(names, start=first):
            categories.append(dict(id=index, name=name, isthing=is_thing))
    contents = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations' / f'panoptic_{split}2017.json').write_text(json.dumps(contents))


def _panoptic_segments(scene: PanopticScene) -> list[dict[str, Any]]:
    entries = []
    for position, segment in enumerate(scene.segments, start=1):
        entry = annotate_mask(scene.positions == position)
        del entry['segmentation']
        first = 1 if segment.is_thing else FIRST_STUFF_ID
        entry.update(
            id=SEGMENT_ID_STEP * position,
            category_id=first + segment.class_index,
            iscrowd=int(segment.is_crowd),
        )
        entries.append(entry)
    return entries


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
