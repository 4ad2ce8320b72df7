"""The checks of a config and its data before training and before testing."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from .class_check import LOADERS, check_classes, datasets_of
from .key_check import check_keys
from .label_check import check_labels_when_loaded
from .panoptic_check import check_panoptic

# arguments of data sets and metrics that name a file of data
FILE_ARGUMENTS = ('ann_file', 'proposal_file')
PICKLES = ('.pkl', '.pickle')


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
        strict: True if warnings are errors. Default: False.
        check_images: True if all images are opened, and not a sample. Default: False.

    Raises:
        FileNotFoundError: An annotation file or a folder does not exist.
        ValueError: The data is wrong beyond repair; the message names the file and the entry. Or a
            file is a pickle.
    """
    check_keys(cfg)
    for loader in loaders:
        _check_no_pickles(cfg, loader)
    options: dict[str, Any] = dict(loaders=loaders, strict=strict, check_images=check_images)
    check_classes(cfg, folders=True, **options)
    check_labels_when_loaded(cfg, **options)
    check_panoptic(cfg, **options)


def _check_no_pickles(cfg: Config, loader: str) -> None:
    """Check that no data set or evaluator of a loader reads a pickle, which mmengine executes.

    Raises:
        ValueError: One does.
    """
    evaluator = loader.replace('dataloader', 'evaluator')
    evaluators = cfg.get(evaluator) or []
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    parts = [*datasets_of(cfg.get(loader), loader), *((evaluator, part) for part in evaluators)]
    for key, part in parts:
        for name in FILE_ARGUMENTS:
            path = part.get(name)
            if isinstance(path, str) and path.endswith(PICKLES):
                raise ValueError(
                    f'{key}.{name} must be no pickle, because reading one can execute anything, '
                    f'got {path!r}. Where you trust it, convert it to JSON.'
                )
