"""Scenes as a COCO data set: images, boxes and polygons of what is visible."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from .shapes import Scene

Point = tuple[int, int]


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Return polygons [x0, y0, x1, y1, ...] that pycocotools decodes to exactly this mask.

    They run along the edges of pixels, one per group of pixels that touch. COCO knows no holes, so
    the outline of a hole is joined to the outer one by a seam that is walked there and back and
    encloses nothing.

    Args:
        mask: (H, W) bool.
    """
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    polygons = []
    for label in range(1, count):
        outer, *holes = _loops(labels == label)
        start = outer[0]
        for hole in holes:
            corner = (hole[0][0], start[1])
            outer = [*outer, start, corner, *hole, hole[0], corner]
        polygons.append([number for point in outer for number in point])
    return polygons


def _loops(mask: np.ndarray) -> list[list[Point]]:
    """Return the outlines of one connected group of pixels, the outer one first, as corners with x
    and y.
    """
    edges = _directed_edges(mask)
    loops = []
    while edges:
        start = min(edges, key=lambda point: (point[1], point[0]))
        loop: list[Point] = []
        direction, point = (1, 0), start
        while not loop or point != start or edges.get(start):
            ways = edges.get(point)
            if not ways:
                break
            # where pixels touch at a corner alone, turn left: one outline then passes both
            left = (direction[1], -direction[0])
            way = left if left in ways else (direction if direction in ways else ways[0])
            ways.remove(way)
            if not ways:
                del edges[point]
            if not loop or way != direction:
                loop.append(point)
            direction, point = way, (point[0] + way[0], point[1] + way[1])
        loops.append(loop)
    return loops


def _directed_edges(mask: np.ndarray) -> dict[Point, list[Point]]:
    """Return, for every corner of a pixel on the outline, the directions in which the mask lies to
    the right.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    sides = {  # direction: the neighbour outside, the corner of the pixel that the edge starts from
        (1, 0): (padded[:-2, 1:-1], (0, 0)),
        (0, 1): (padded[1:-1, 2:], (1, 0)),
        (-1, 0): (padded[2:, 1:-1], (1, 1)),
        (0, -1): (padded[1:-1, :-2], (0, 1)),
    }
    edges: dict[Point, list[Point]] = {}
    for direction, (outside, (x, y)) in sides.items():
        for row, column in np.argwhere(inside & ~outside).tolist():
            edges.setdefault((column + x, row + y), []).append(direction)
    return edges


def write_coco(folder: Path, split: str, scenes: Iterable[Scene], classes: Sequence[str]) -> None:
    """Write scenes as ``folder/split/*.png`` and ``folder/annotations/instances_split.json``.

    Args:
        folder: of the data set.
        split: its name.
        scenes: what to write; image ids count from 0.
        classes: names; category ids count from 1.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, scene in enumerate(scenes):
        name = f'{image_id:06d}.png'
        cv2.imwrite(str(folder / split / name), scene.image[..., ::-1])
        height, width = scene.instances.shape
        images.append(dict(id=image_id, file_name=name, height=height, width=width))
        for index, kind in enumerate(scene.classes, start=1):
            mask = scene.instances == index
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=kind + 1,
                    iscrowd=0,
                    area=int(mask.sum()),
                    bbox=_box(mask),
                    segmentation=mask_to_polygons(mask),
                )
            )
    categories = [dict(id=index, name=name) for index, name in enumerate(classes, start=1)]
    contents = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(contents))


def _box(mask: np.ndarray) -> list[int]:
    """Return [x, y, width, height] of the smallest box around the mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]
