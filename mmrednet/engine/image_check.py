"""Check that images exist, and have the sizes that their annotations state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.utils import is_abs
from PIL import Image

from .findings import Findings

# opened unless all are asked for; opening one takes about a millisecond
SAMPLE = 64
# EXIF tag, and its values that exchange width and height
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
# arguments of mmcv's imread that keep the stored orientation
STORED = ('unchanged', 'color_ignore_orientation', 'grayscale_ignore_orientation')


def folder_of(dataset: dict, name: str) -> Path | None:
    """Return a folder of a data set's ``data_prefix``; None if it has none or is remote."""
    prefix = (dataset.get('data_prefix') or {}).get(name)
    root = dataset.get('data_root') or ''
    if prefix is None or dataset.get('backend_args'):
        return None
    folder = prefix if is_abs(prefix) else os.path.join(root, prefix)
    return None if '://' in folder else Path(folder)


def check_folders(key: str, dataset: dict) -> None:
    """Check that the folders of a data set exist.

    Raises:
        FileNotFoundError: One does not.
    """
    for name in dataset.get('data_prefix') or {}:
        folder = folder_of(dataset, name)
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(
                f'{key}.data_prefix.{name} must be an existing folder, got {str(folder)!r}.'
            )


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return this many items, evenly spread, or all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def check_images(
    path: Path, images: Sequence[dict], dataset: dict, findings: Findings, *, every: bool = False
) -> None:
    """Check that all images of a COCO file exist, and that some have the sizes that it states.

    Args:
        path: Path of the file, for messages.
        images: Its images.
        dataset: Config of the data set.
        findings: Errors are added here.
        every: True to open and decode all images. Default: False.
    """
    folder = folder_of(dataset, 'img')
    loading = [step for step in dataset.get('pipeline') or [] if _loads_images(step)]
    if folder is None:
        return
    names = [image['file_name'] for image in images]
    missing = missing_files([folder / name for name in names])
    if missing:
        findings.error(path, 'images do not exist', missing)
        return
    if not loading:
        return
    turns = loading[0].get('color_type', 'color') not in STORED
    wrong = []
    for image in images if every else spread(images, SAMPLE):
        file = folder / image['file_name']
        try:
            size = loaded_size(file, turns=turns, decode=every)
        except (OSError, SyntaxError) as error:
            findings.error(file, f'cannot be read as an image: {error}')
            continue
        if size != (image['width'], image['height']):
            wrong.append(
                f'{file} has {size[0]} x {size[1]} when it is loaded, stated is {image["width"]} x '
                f'{image["height"]}{_turn_text(file)}'
            )
    if wrong:
        findings.error(path, 'images have another width and height than stated', wrong)


def missing_files(files: Sequence[Path]) -> list[Path]:
    """Return the files that do not exist. Each folder is listed once, which is fast."""
    contents: dict[str, set[str]] = {}
    missing = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in contents:
            contents[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in contents[folder]:
            missing.append(file)
    return missing


def loaded_size(file: Path, *, turns: bool = True, decode: bool = False) -> tuple[int, int]:
    """Return the width and height of an image as mmcv loads it.

    Args:
        file: Path of the image.
        turns: True if the image is turned as its EXIF orientation says. Default: True.
        decode: True to decode the pixels, which finds files that are cut. Default: False.
    """
    with Image.open(file) as image:
        width, height = image.size
        if decode:
            image.load()
        if turns and _orientation(image) in TURNED:
            return height, width
    return width, height


def _orientation(image: Image.Image) -> int:
    # PIL decodes a whole PNG to look for tags behind its pixels
    if image.format == 'PNG' and 'exif' not in image.info:
        return 1
    return image.getexif().get(ORIENTATION, 1)


def _turn_text(file: Path) -> str:
    with Image.open(file) as image:
        orientation = _orientation(image)
    if orientation == 1:
        return ''
    return (
        f' (EXIF orientation {orientation}: annotate the image as it is shown, or load it with '
        "color_type='color_ignore_orientation')"
    )


def _loads_images(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    return str(step.get('type')).rpartition('.')[2] == 'LoadImageFromFile'
