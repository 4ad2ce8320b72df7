"""Scenes of one object as a classification data set: images in one folder per class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2

from .shapes import Scene


def write_image_folder(
    folder: Path, split: str, scenes: Iterable[Scene], classes: Sequence[str]
) -> None:
    """Write each scene's image to ``<folder>/<split>/<class of its first object>/``.

    Args:
        folder: Folder of the data set.
        split: Name of the split, 'train' or 'val'.
        scenes: Scenes with one object each.
        classes: Names of the classes.
    """
    for name in classes:
        (folder / split / name).mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        path = folder / split / classes[scene.classes[0]] / f'{index:06d}.png'
        cv2.imwrite(str(path), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
