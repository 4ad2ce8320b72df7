"""Streets as a Cityscapes data set: leftImg8bit and gtFine, with the official names, ids and
files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .streets import Street, draw_polygons


class Label(NamedTuple):
    """A row of the official table of labels.

    Args:
        id: in labelIds and, times 1000, in instanceIds.
        train_id: in labelTrainIds; 255 is ignored.
        has_instances: whether objects are told apart.
    """

    id: int
    train_id: int
    has_instances: bool = False


# of the official table, the labels that streets have
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
}


def write_cityscapes(
    folder: Path, split: str, streets: Iterable[Street], *, city: str = 'elsewhere'
) -> None:
    """Write ``leftImg8bit/split/city/*_leftImg8bit.png`` and the four files of each in
    ``gtFine/split/city``.

    These are ``labelIds.png``, ``labelTrainIds.png``, ``instanceIds.png`` and ``polygons.json``.

    Args:
        folder: of the data set.
        split: its name.
        streets: what to write.
        city: as file names call it.
    """
    images, truth = (folder / kind / split / city for kind in ('leftImg8bit', 'gtFine'))
    for path in (images, truth):
        path.mkdir(parents=True, exist_ok=True)
    for index, street in enumerate(streets):
        name = f'{city}_000000_{index:06d}'
        size = street.image.shape[:2]
        Image.fromarray(street.image).save(images / f'{name}_leftImg8bit.png')
        for kind, values in label_maps(street).items():
            # 16 bits where instances need them, as in the official files
            depth = np.uint16 if kind == 'instanceIds' else np.uint8
            Image.fromarray(values.astype(depth)).save(truth / f'{name}_gtFine_{kind}.png')
        objects = [
            dict(label=item.label, polygon=[list(point) for point in item.polygon])
            for item in street.objects
        ]
        (truth / f'{name}_gtFine_polygons.json').write_text(
            json.dumps(dict(imgHeight=size[0], imgWidth=size[1], objects=objects))
        )


def label_maps(street: Street) -> dict[str, np.ndarray]:
    """Return labelIds, labelTrainIds and instanceIds, each (H, W) int32, of a street."""
    counts: dict[str, int] = {}
    instances = []
    for item in street.objects:
        label = LABELS[item.label]
        number = counts[item.label] = counts.get(item.label, -1) + 1
        instances.append(label.id * 1000 + number if label.has_instances else label.id)
    polygons, size = [item.polygon for item in street.objects], street.image.shape[:2]
    values = {
        'labelIds': [LABELS[item.label].id for item in street.objects],
        'labelTrainIds': [LABELS[item.label].train_id for item in street.objects],
        'instanceIds': instances,
    }
    backgrounds = {'labelIds': 0, 'labelTrainIds': 255, 'instanceIds': 0}
    return {
        kind: draw_polygons(list(zip(polygons, numbers, strict=True)), size, backgrounds[kind])
        for kind, numbers in values.items()
    }
