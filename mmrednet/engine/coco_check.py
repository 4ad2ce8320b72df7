"""Check the entries of an annotation file in COCO format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .findings import Findings
from .segment_check import is_panoptic

IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
# boxes may stick out by what rounding adds
TOLERANCE = 1.0
# above this share of boxes that stick out, they are probably written as two corners
CORNER_SHARE = 0.2


def check_entries(path: Path, content: dict, classes: Sequence[str], findings: Findings) -> None:
    """Check images and annotations: missing keys, ids given twice, references to nothing, boxes.

    What mmdet drops in silence is a warning: boxes that are empty or lie outside, and annotations
    of unknown categories or images. What it would train on wrongly, or fail at later, is an error.

    Args:
        path: Path of the file, for messages.
        content: Content of the file.
        classes: Classes that the config uses.
        findings: Errors and warnings are added here.
    """
    images = _complete(path, 'images', content.get('images'), IMAGE_KEYS, findings)
    annotations = content.get('annotations')
    if annotations is None:
        # files of test images have none
        return
    if is_panoptic(content):
        # segments are not told by boxes
        return
    annotations = _complete(path, 'annotations', annotations, ANNOTATION_KEYS, findings)
    if findings.errors:
        return
    categories = {category['id']: category['name'] for category in content['categories']}
    _check_sizes(path, images, findings)
    _check_ids(path, 'images', images, findings)
    _check_ids(path, 'annotations', annotations, findings)
    valid_annotations = _check_references(path, annotations, images, categories, findings)
    usable = _check_boxes(path, valid_annotations, images, findings)
    names = {categories[annotation['category_id']] for annotation in usable}
    if annotations and names.isdisjoint(classes):
        findings.error(path, f'none of its {len(annotations)} annotations can be used')


def check_categories(path: Path, content: dict) -> None:
    """Check the categories of a file: complete entries, each id and each name once.

    Raises:
        ValueError: An entry is incomplete, or an id or a name occurs twice.
    """
    findings = Findings()
    categories = _complete(path, 'categories', content.get('categories', []), ('id',), findings)
    categories = _complete(path, 'categories', categories, ('id', 'name'), findings)
    for key in ('id', 'name'):
        counts = Counter(category[key] for category in categories if key in category)
        repeated = [value for value, times in counts.items() if times > 1]
        for value in repeated:
            entries = [category for category in categories if category[key] == value]
            findings.error(
                path,
                f'categories have the {key} {value!r}. mmdet would number the classes wrongly: '
                'remove what is no class of its own, such as a group of an export',
                entries,
            )
    findings.report()


def _complete(
    path: Path, section: str, entries: Any, keys: Iterable[str], findings: Findings
) -> list[dict]:
    """Return the entries of a section, and report those without a key."""
    if not isinstance(entries, list):
        findings.error(path, f'{section} must be a list, got {type(entries).__name__}')
        return []
    incomplete = [entry for entry in entries if not isinstance(entry, dict)]
    if incomplete:
        findings.error(path, f'entries of {section} are no objects', incomplete)
        return []
    for key in keys:
        incomplete = [entry for entry in entries if key not in entry]
        if incomplete:
            findings.error(path, f'entries of {section} have no {key!r}', incomplete)
    return entries


def _check_ids(path: Path, section: str, entries: Sequence[dict], findings: Findings) -> None:
    counts = Counter(entry['id'] for entry in entries)
    repeated = [value for value, times in counts.items() if times > 1]
    if repeated:
        findings.error(path, f'ids of {section} are given twice', repeated)


def _check_sizes(path: Path, images: Sequence[dict], findings: Findings) -> None:
    wrong = []
    for image in images:
        sides = image['width'], image['height']
        if not all(isinstance(side, int | float) and side > 0 for side in sides):
            wrong.append(f'{image["file_name"]} is {sides[0]} x {sides[1]}')
    if wrong:
        findings.error(path, 'images have no positive width and height', wrong)


def _check_references(
    path: Path,
    annotations: Sequence[dict],
    images: Sequence[dict],
    categories: dict[Any, str],
    findings: Findings,
) -> list[dict]:
    """Return the annotations whose image and category exist, and report the others."""
    image_ids = {image['id'] for image in images}
    for key, ids in (('image_id', image_ids), ('category_id', set(categories))):
        unknown = [annotation for annotation in annotations if annotation[key] not in ids]
        if unknown:
            examples = [f'id {entry["id"]} with {key} {entry[key]!r}' for entry in unknown]
            findings.warn(path, f'annotations have an unknown {key} and are dropped', examples)
        annotations = [annotation for annotation in annotations if annotation[key] in ids]
    return list(annotations)


def _check_boxes(
    path: Path, annotations: Sequence[dict], images: Sequence[dict], findings: Findings
) -> list[dict]:
    """Return the annotations whose box is on its image, and report the others."""
    malformed = [entry for entry in annotations if not _is_box(entry['bbox'])]
    if malformed:
        examples = [_box_text(entry) for entry in malformed]
        findings.error(path, 'annotations have a bbox that is not four finite numbers', examples)
        return [entry for entry in annotations if _is_box(entry['bbox'])]
    if not annotations:
        return []
    boxes = np.array([annotation['bbox'] for annotation in annotations], float)
    sides = {image['id']: (image['width'], image['height']) for image in images}
    limits = np.array([sides[annotation['image_id']] for annotation in annotations], float)
    areas = np.array([annotation['area'] for annotation in annotations], float)
    start, extent = boxes[:, :2], boxes[:, 2:]
    end = start + extent
    # mmdet drops boxes below one pixel
    empty = (extent < 1).any(1) | ~(areas > 0)
    overlap = np.minimum(end, limits) - np.maximum(start, 0)
    off_image = ~empty & (overlap <= 0).any(1)
    overhang = (start < -TOLERANCE).any(1) | (end > limits + TOLERANCE).any(1)
    overhang &= ~empty & ~off_image
    problems = {
        'annotations have a box or an area that is empty or negative and are dropped': empty,
        'annotations have a box outside its image and are dropped': off_image,
        'annotations have a box that sticks out of its image'
        + _corner_hint(overhang | off_image): overhang,
    }
    for problem, mask in problems.items():
        if mask.any():
            examples = [_box_text(annotations[index]) for index in np.flatnonzero(mask)]
            findings.warn(path, problem, examples)
    return [annotations[index] for index in np.flatnonzero(~empty & ~off_image)]


def _corner_hint(mask: np.ndarray) -> str:
    if mask.mean() < CORNER_SHARE:
        return ''
    return ' (bbox is x, y, width, height; these may be two corners)'


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    numbers = [isinstance(value, int | float) for value in box]
    return all(numbers) and bool(np.isfinite(box).all())


def _box_text(annotation: dict) -> str:
    text = f'id {annotation["id"]} on image {annotation["image_id"]}'
    return f'{text}: bbox {annotation["bbox"]}, area {annotation["area"]}'
