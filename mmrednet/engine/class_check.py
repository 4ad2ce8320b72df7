"""Do the classes of a config stand in its annotation files? Asked before training starts, not after it has failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
CLASS_HEADS = ('bbox_head', 'mask_head')


def check_classes(cfg: Config) -> None:
    """Compare the classes of every COCO-format data set of a config with its annotation file, and with the heads.

    A file may have more classes than the config uses, as when a detector is trained on some of them: that is logged.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: the config names a class that its annotation file lacks, or a head has another number of classes
            than the training data.
    """
    names: list[str] = []
    for loader in LOADERS:
        for key, dataset in _datasets(cfg.get(loader), loader):
            path = _annotation_path(dataset)
            if path is None:
                continue
            configured = _configured_classes(dataset, cfg.get('default_scope'))
            _compare(key, path, configured)
            names = names or configured
    if names:
        for key, head in _heads(cfg.model, 'model'):
            if head['num_classes'] != len(names):
                raise ValueError(f'{key}.num_classes must be {len(names)}, the number of classes {names}, '
                                 f"got {head['num_classes']}.")


def _datasets(cfg: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Yield (key, config) of the data sets inside wrappers."""
    if not isinstance(cfg, dict):
        return
    if 'ann_file' in cfg:
        yield key, cfg
    if 'dataset' in cfg:
        yield from _datasets(cfg['dataset'], f'{key}.dataset')
    for index, inner in enumerate(cfg.get('datasets', [])):
        yield from _datasets(inner, f'{key}.datasets.{index}')


def _annotation_path(dataset: dict) -> Path | None:
    """Return the path of a data set's annotations in COCO format, None for other formats."""
    path = str(dataset['ann_file'])
    if not path.endswith('.json'):
        return None
    return Path(path) if Path(path).is_absolute() else Path(dataset.get('data_root') or '') / path


def _configured_classes(dataset: dict, scope: str | None) -> list[str]:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        with DATASETS.switch_scope_and_registry(scope) as registry:
            classes = getattr(registry.get(dataset['type']), 'METAINFO', {}).get('classes', ())
    return [classes] if isinstance(classes, str) else list(classes)


def _compare(key: str, path: Path, configured: list[str]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f'{key}.ann_file must be an existing file, got {str(path)!r}. README says where data '
                                f'sets are expected and how one is made.')
    with path.open() as file:
        present = [category['name'] for category in json.load(file).get('categories', [])]
    if set(configured) - set(present):
        raise ValueError(
            f'{key}.metainfo.classes must be names that {path} has.\n  the config has: {configured}\n'
            f'  the file has:   {present}\n  only in the config: {sorted(set(configured) - set(present))}\n'
            f'Set {key}.metainfo.classes (and num_classes of the heads) to the names in the file.')
    if set(present) - set(configured):
        print_log(f'{key} uses the classes {configured}, a part of those in {path}: {present}.', 'current')


def _heads(cfg: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Yield (key, config) of the heads that score the classes of the data."""
    if not isinstance(cfg, dict):
        return
    for name, value in cfg.items():
        for suffix, inner in [(f'.{index}', item) for index, item in enumerate(value)] if isinstance(
                value, (list, tuple)) else [('', value)]:
            if name in CLASS_HEADS and isinstance(inner, dict) and 'num_classes' in inner:
                yield f'{key}.{name}{suffix}', inner
            elif name != 'rpn_head':
                yield from _heads(inner, f'{key}.{name}{suffix}')
