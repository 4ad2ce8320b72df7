"""Check the segments that a JSON file in COCO's panoptic format states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .findings import Findings

SEGMENT_KEYS = ('id', 'category_id')


def is_panoptic(content: dict) -> bool:
    """Return whether the annotations of a COCO file are segments of maps."""
    annotations = content.get('annotations')
    if not annotations or not isinstance(annotations[0], dict):
        return False
    return 'segments_info' in annotations[0]


def check_segments(path: Path, content: dict, findings: Findings) -> None:
    """Check the entries of a JSON file: known images and categories, ids that are given once.

    Args:
        path: Path of the file, for messages.
        content: Content of the file.
        findings: Errors are added here.
    """
    categories = {category['id'] for category in content['categories']}
    image_ids = {image.get('id') for image in content.get('images', [])}
    problems: dict[str, list[str]] = {}
    for annotation in content['annotations']:
        for problem, example in _problems_of(annotation, image_ids, categories):
            problems.setdefault(problem, []).append(example)
    for problem, examples in problems.items():
        findings.error(path, problem, examples)


def _problems_of(
    annotation: dict, image_ids: set, categories: set[int]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the segments of an image, and the example to show."""
    name = annotation.get('file_name')
    if name is None or annotation.get('image_id') not in image_ids:
        yield 'annotations have no file_name or an unknown image_id', str(name)
    segments = annotation.get('segments_info', [])
    incomplete = [entry for entry in segments if not all(key in entry for key in SEGMENT_KEYS)]
    if incomplete:
        yield 'maps have segments without id or category_id', f'{incomplete[0]} of {name}'
        return
    unknown = [entry for entry in segments if entry['category_id'] not in categories]
    if unknown:
        example = f'segment {unknown[0]["id"]} of {name} has {unknown[0]["category_id"]!r}'
        yield f'maps have segments of a category_id not in {sorted(categories)}', example
    counts = Counter(entry['id'] for entry in segments)
    repeated = [value for value, times in counts.items() if times > 1 or value <= 0]
    if repeated:
        yield 'maps have ids that are given twice or not positive', f'{repeated[0]} of {name}'
