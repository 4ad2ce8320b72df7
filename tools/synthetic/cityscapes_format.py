"""Streets as a Cityscapes data set, leftImg8bit and gtFine, with official file names and ids."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from PIL import Image

from .streets import Street, draw_polygons


class Label(NamedTuple):
    """A row of the official table of labels.

    Args:
        id: Value in labelIds and, times 1000, in instanceIds.
        train_id: Value in labelTrainIds; 255 is ignored.
        has_instances: Whether instanceIds tells objects apart. Default: False.
    """

    id: int
    train_id: int
    has_instances: bool = False


# the labels of the official table that our streets have
LABELS = {
    'ego vehicle': Label(1, 255),
    'road': Label(7, 0),
    'sidewalk': Label(8, 1),
    'building': Label(11, 2),
    'pole': Label(17, 5),
    'traffic sign': Label(20, 7),
    'vegetation': Label(21, 8),
    'terrain': Label(22, 9),
    'sky': Label(23, 10),
    'person': Label(24, 11, True),
    'car': Label(26, 13, True),
    # objects that are not told apart have the id of their class without a number
    'persongroup': Label(24, 11),
}


def write_cityscapes(
    folder: Path, split: str, streets: Iterable[Street], *, city: str = 'elsewhere'
) -> None:
    """Write ``leftImg8bit/split/city/*_leftImg8bit.png`` and the four files of each in
    ``gtFine/split/city``.

    These are ``labelIds.png``, ``labelTrainIds.png``, ``instanceIds.png`` and ``polygons.json``.

    Args:
        folder: Folder of the data set.
        split: Name of the split.
        streets: Streets to write.
        city: Name of the city in folders and files. Default: 'elsewhere'.
    """
    images = folder / 'leftImg8bit' / split / city
    truth = folder / 'gtFine' / split / city
    images.mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True, exist_ok=True)
    for index, street in enumerate(streets):
        name = f'{city}_000000_{index:06d}'
        Image.fromarray(street.image).save(images / f'{name}_leftImg8bit.png')
        for suffix, values in label_maps(street).items():
            # instance ids exceed a byte, as in the official files
            dtype = np.uint16 if suffix == 'instanceIds' else np.uint8
            Image.fromarray(values.astype(dtype)).save(truth / f'{name}_gtFine_{suffix}.png')
        polygons = truth / f'{name}_gtFine_polygons.json'
        polygons.write_text(json.dumps(_polygons_of(street)))


def write_cityscapes_panoptic(folder: Path, split: str) -> None:
    """Write ``gtFine/cityscapes_panoptic_split.json`` and its maps by the official script.

    Args:
        folder: Folder of a data set of :func:`write_cityscapes`.
        split: Name of the split.
    """
    # a progress bar and paths
    with contextlib.redirect_stdout(io.StringIO()):
        convert2panoptic(str(folder / 'gtFine'), setNames=[split])


def _polygons_of(street: Street) -> dict[str, Any]:
    """Return the contents of polygons.json."""
    height, width = street.image.shape[:2]
    objects = []
    for item in street.objects:
        objects.append(dict(label=item.label, polygon=[list(point) for point in item.polygon]))
    return dict(imgHeight=height, imgWidth=width, objects=objects)


def label_maps(street: Street) -> dict[str, np.ndarray]:
    """Return the maps labelIds, labelTrainIds and instanceIds of a street, each (H, W), int32."""
    # label: number of its objects so far
    counts: Counter[str] = Counter()
    ids, train_ids, instance_ids = [], [], []
    for item in street.objects:
        label = LABELS[item.label]
        ids.append((item.polygon, label.id))
        train_ids.append((item.polygon, label.train_id))
        instance_id = label.id * 1000 + counts[item.label] if label.has_instances else label.id
        instance_ids.append((item.polygon, instance_id))
        counts[item.label] += 1
    size = street.image.shape[:2]
    # where no object is, nothing is labelled
    return {
        'labelIds': draw_polygons(ids, size, background=0),
        'labelTrainIds': draw_polygons(train_ids, size, background=255),
        'instanceIds': draw_polygons(instance_ids, size, background=0),
    }
