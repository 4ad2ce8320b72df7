"""Check before training that the classes of a config fit its annotation files and its heads."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.utils import is_abs

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
CLASS_HEADS = ('bbox_head', 'mask_head', 'decode_head')


def check_classes(cfg: Config) -> None:
    """Compare the classes of each COCO-format data set of a config with its annotation file, and
    those of the training data with the heads.

    A config may use a part of the classes of a file; that is logged. Data sets in other formats,
    remote files, and data sets that learn their classes when they are built are not checked.

    Args:
        cfg: Config for mmdet or mmseg.

    Raises:
        FileNotFoundError: An annotation file does not exist.
        ValueError: The config names a class that its annotation file lacks, names classes in a way
            that mmdet would misread, or a head has another number of classes than the training
            data.
    """
    file_classes: dict[Path, list[str] | None] = {}
    warnings: dict[tuple[Path, tuple[str, ...]], str] = {}
    for loader in LOADERS:
        for key, dataset in datasets_of(cfg.get(loader), loader):
            path = _annotation_path(dataset)
            if path is None:
                continue
            if path not in file_classes:
                file_classes[path] = _classes_in_file(key, path)
            present = file_classes[path]
            classes = classes_of(key, dataset, cfg.get('default_scope')).get('classes')
            if not classes or present is None:
                continue
            _check_names(key, path, classes, present)
            if set(present) - set(classes):
                message = (
                    f'{key}.metainfo.classes uses {classes}, a part of the classes in {path}: '
                    f'{present}. Objects of the others count as background.'
                )
                # loaders that share a file give one warning
                warnings.setdefault((path, tuple(classes)), message)
    for message in warnings.values():
        print_log(message, 'current', level=logging.WARNING)
    _check_heads(cfg)


def datasets_of(cfg: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Yield the key and the config of each data set inside wrappers such as RepeatDataset."""
    if not isinstance(cfg, dict):
        return
    # wrappers have neither of these
    if 'ann_file' in cfg or 'data_prefix' in cfg:
        yield key, cfg
    if 'dataset' in cfg:
        yield from datasets_of(cfg['dataset'], f'{key}.dataset')
    for index, inner in enumerate(cfg.get('datasets', [])):
        yield from datasets_of(inner, f'{key}.datasets.{index}')


def _annotation_path(dataset: dict) -> Path | None:
    """Return the path of a data set's JSON file; None for other formats and remote files."""
    path = dataset.get('ann_file')
    if not isinstance(path, str) or not path.endswith('.json'):
        return None
    root = dataset.get('data_root')
    if root and not is_abs(path):
        path = f'{root}/{path}'
    return None if '://' in path else Path(path)


def classes_of(key: str, dataset: dict, scope: str | None) -> dict[str, list[str]]:
    """Return the 'classes' and 'thing_classes' of a data set, as far as its config tells.

    Args:
        key: Key of the data set in the config, for error messages.
        dataset: Config of the data set.
        scope: Default scope of the config.

    Raises:
        ValueError: The names are given in a way that mmdet would misread.
    """
    dataset_type = dataset.get('type')
    if isinstance(dataset_type, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            dataset_type = registry.get(dataset_type)
    metainfo = dataset.get('metainfo') or {}
    if 'CLASSES' in metainfo and 'classes' not in metainfo:
        raise ValueError(
            f"{key}.metainfo must name the classes under 'classes', got them under 'CLASSES' "
            f'({metainfo["CLASSES"]}), which is not read.'
        )
    # the config takes precedence over the class of the data set
    metainfo = {**getattr(dataset_type, 'METAINFO', {}), **metainfo}
    result = {}
    for name in ('classes', 'thing_classes'):
        if metainfo.get(name):
            result[name] = _names(f'{key}.metainfo.{name}', metainfo[name])
    return result


def _names(key: str, value: Any) -> list[str]:
    """Return a sequence of names, or the lines of a file of names, as a list."""
    if not isinstance(value, str):
        return list(value)
    # mmengine reads a string as the path of a file. Without such a file mmdet compares names with
    # it by `in`, and any part of the string is a class.
    if not Path(value).is_file():
        raise ValueError(
            f'{key} must be a sequence of names or an existing file with one name per line, '
            f'got {value!r}. A sequence of one name is ({value!r}, ).'
        )
    return Path(value).read_text(encoding='utf-8').splitlines()


def _classes_in_file(key: str, path: Path) -> list[str] | None:
    """Return the categories in an annotation file; None for other formats than COCO."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{key}.ann_file must be an existing file, got {str(path)!r}. docs/your_data.md says '
            f'where files are expected.'
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except json.JSONDecodeError:
        # either one object per line, as in data sets of phrases, or a broken file, which the data
        # set itself reports
        return None
    if not isinstance(content, dict) or not {'images', 'categories'} & set(content):
        return None
    return [category['name'] for category in content.get('categories', [])]


def _check_names(key: str, path: Path, configured: list[str], present: list[str]) -> None:
    """Check that an annotation file has all classes of the config."""
    unknown = [name for name in configured if name not in present]
    if unknown:
        raise ValueError(
            f'{key}.metainfo.classes must be names that {path} has.\n'
            f'  the config has: {configured}\n'
            f'  the file has:   {present}\n'
            f'  only in the config: {unknown}\n'
            f'Set {key}.metainfo.classes (and num_classes of the heads) to the names in the file.'
        )


def _check_heads(cfg: Config) -> None:
    """Check that the heads have as many classes as the training data.

    Nothing is checked if the classes of a training set are unknown, or if two sets differ.
    """
    datasets = datasets_of(cfg.get('train_dataloader'), 'train_dataloader')
    classes = [classes_of(key, dataset, cfg.get('default_scope')) for key, dataset in datasets]
    if not classes or not classes[0].get('classes') or classes.count(classes[0]) < len(classes):
        return
    # a panoptic network detects things; its stuff has no boxes and masks
    names = classes[0].get('thing_classes') or classes[0]['classes']
    for key, head in _heads(cfg.get('model'), 'model'):
        if head['num_classes'] != len(names):
            raise ValueError(
                f'{key}.num_classes must be {len(names)}, the number of classes of the training '
                f'data {names}, got {head["num_classes"]}.'
            )


def _heads(cfg: Any, key: str, name: str = '') -> Iterator[tuple[str, dict]]:
    """Yield the key and the config of each head that scores the classes of the data.

    Args:
        cfg: Config, or a part of one.
        key: Key of the part.
        name: Last name in the key. The items of a list have the name of the list, because a
            cascade has a list of heads.
    """
    if isinstance(cfg, (list, tuple)):
        for index, item in enumerate(cfg):
            yield from _heads(item, f'{key}.{index}', name)
    # the first stage scores objects of any class
    if not isinstance(cfg, dict) or name == 'rpn_head':
        return
    if name in CLASS_HEADS and 'num_classes' in cfg:
        yield key, cfg
        return
    for child, value in cfg.items():
        yield from _heads(value, f'{key}.{child}', child)
