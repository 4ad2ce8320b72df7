"""The checks of a config and its data before training and before testing."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from .class_check import LOADERS, check_classes
from .key_check import check_keys
from .label_check import check_labels_when_loaded
from .panoptic_check import check_panoptic


def add_check_options(parser: ArgumentParser) -> None:
    """Add the options of the checks to the parser of a script."""
    parser.add_argument(
        '--strict', action='store_true', help='stop at warnings about the data as well'
    )
    parser.add_argument(
        '--check-images', action='store_true', help='check all images, not a sample of them'
    )


def check_data(
    cfg: Config,
    *,
    loaders: Sequence[str] = LOADERS,
    strict: bool = False,
    check_images: bool = False,
) -> None:
    """Check that a config, its annotation files, images, label images and id maps agree.

    Args:
        cfg: Config for mmdet or mmseg. The loading of label images is changed in place, see
            :func:`check_labels_when_loaded`.
        loaders: Keys of the data loaders to check. Default: those for training, validation and
            test.
        strict: Whether warnings are errors. Default: False.
        check_images: Whether all images are opened, and not a sample. Default: False.

    Raises:
        FileNotFoundError: An annotation file or a folder does not exist.
        ValueError: The data is wrong beyond repair; the message names the file and the entry.
    """
    check_keys(cfg)
    options: dict[str, Any] = dict(loaders=loaders, strict=strict, check_images=check_images)
    check_classes(cfg, folders=True, **options)
    check_labels_when_loaded(cfg, **options)
    check_panoptic(cfg, **options)
