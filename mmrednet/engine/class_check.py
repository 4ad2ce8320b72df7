"""Do the classes of a config stand in its annotation files? Asked before training starts, not after
it has failed.
"""

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
    """Compare the classes of every COCO-format data set of a config with its annotation file, and
    with the heads.

    A file may have more classes than the config uses, as when a detector is trained on some of
        them: that is logged. Data sets in other formats, remote ones, and those that learn their
        classes only when they are built are left out.

    Args:
        cfg: of mmdet or mmseg.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: the config names a class that its annotation file lacks, names classes in a way
            that mmdet would misread, or a head has another number of classes than the training
            data.
    """
    present: dict[Path, list[str] | None] = {}
    warnings: dict[tuple[Path, tuple[str, ...]], str] = {}
    for loader in LOADERS:
        for key, dataset in datasets_of(cfg.get(loader), loader):
            path = _annotation_path(dataset)
            if path is None:
                continue
            if path not in present:
                present[path] = _present_classes(key, path)
            classes, names = (
                classes_of(key, dataset, cfg.get('default_scope')).get('classes'),
                present[path],
            )
            if classes and names is not None:
                _refuse_unknown(key, path, classes, names)
                if set(names) - set(classes):
                    warnings.setdefault(
                        (path, tuple(classes)),
                        f'{key}.metainfo.classes uses {classes}, a part of the '
                        f'classes in {path}: {names}. Objects of the others count as background.',
                    )
    for message in warnings.values():
        print_log(message, 'current', level=logging.WARNING)
    _check_heads(cfg)


def datasets_of(cfg: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Yield (key, config) of the data sets inside wrappers."""
    if not isinstance(cfg, dict):
        return
    if 'ann_file' in cfg or 'data_prefix' in cfg:
        yield key, cfg
    if 'dataset' in cfg:
        yield from datasets_of(cfg['dataset'], f'{key}.dataset')
    for index, inner in enumerate(cfg.get('datasets', [])):
        yield from datasets_of(inner, f'{key}.datasets.{index}')


def _annotation_path(dataset: dict) -> Path | None:
    """Return the path of a data set's JSON annotations, None for other formats and for remote
    files.
    """
    path, root = dataset.get('ann_file'), dataset.get('data_root') or ''
    if not isinstance(path, str) or not path.endswith('.json'):
        return None
    joined = path if is_abs(path) or not root else f'{root}/{path}'
    return None if '://' in joined else Path(joined)


def classes_of(key: str, dataset: dict, scope: str | None) -> dict[str, list[str]]:
    """Return the 'classes' and the 'thing_classes' that a data set will have, as far as its config
    tells.
    """
    kind = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    given = dataset.get('metainfo') or {}
    if 'CLASSES' in given and 'classes' not in given:
        raise ValueError(
            f"{key}.metainfo must name the classes under 'classes', got them under 'CLASSES' "
            f'({given["CLASSES"]}), which is not read.'
        )
    merged = {**getattr(kind, 'METAINFO', {}), **given}
    return {
        name: _names(f'{key}.metainfo.{name}', merged[name])
        for name in ('classes', 'thing_classes')
        if merged.get(name)
    }


def _names(key: str, value: Any) -> list[str]:
    if not isinstance(value, str):
        return list(value)
    # a string is a file of names for mmengine, and its parts would match for mmdet
    if not Path(value).is_file():
        raise ValueError(
            f'{key} must be a sequence of names or an existing file with one name per line, '
            f'got {value!r}. A sequence of one name is ({value!r}, ).'
        )
    return Path(value).read_text(encoding='utf-8').splitlines()


def _present_classes(key: str, path: Path) -> list[str] | None:
    """Return the names in an annotation file, None if it is not in COCO format."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{key}.ann_file must be an existing file, got {str(path)!r}. docs/your_data.md says '
            f'where files are expected.'
        )
    with path.open(encoding='utf-8') as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError:
            # one object per line, as the data sets of phrases have; a broken file is for the data
            # set to report
            return None
    if not isinstance(content, dict) or not {'images', 'categories'} & set(content):
        return None
    return [category['name'] for category in content.get('categories', [])]


def _refuse_unknown(key: str, path: Path, configured: list[str], present: list[str]) -> None:
    unknown = [name for name in configured if name not in present]
    if unknown:
        raise ValueError(
            f'{key}.metainfo.classes must be names that {path} has.\n  the config has: '
            f'{configured}\n'
            f'  the file has:   {present}\n  only in the config: {unknown}\n'
            f'Set {key}.metainfo.classes (and num_classes of the heads) to the names in the file.'
        )


def _check_heads(cfg: Config) -> None:
    """Check that heads have as many classes as the training data, if all of it has the same, known
    classes.
    """
    found = [
        classes_of(key, dataset, cfg.get('default_scope'))
        for key, dataset in datasets_of(cfg.get('train_dataloader'), 'train_dataloader')
    ]
    if not found or any(not classes.get('classes') or classes != found[0] for classes in found):
        return
    # boxes and masks of a panoptic network are those of things
    names = found[0].get('thing_classes') or found[0]['classes']
    for key, head in _heads(cfg.get('model'), 'model'):
        if head['num_classes'] != len(names):
            raise ValueError(
                f'{key}.num_classes must be {len(names)}, the number of classes of the training '
                'data '
                f'{names}, got {head["num_classes"]}.'
            )


def _heads(cfg: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Yield (key, config) of the heads that score the classes of the data."""
    if not isinstance(cfg, dict):
        return
    for name, value in cfg.items():
        for suffix, inner in (
            [(f'.{index}', item) for index, item in enumerate(value)]
            if isinstance(value, (list, tuple))
            else [('', value)]
        ):
            if name in CLASS_HEADS and isinstance(inner, dict) and 'num_classes' in inner:
                yield f'{key}.{name}{suffix}', inner
            elif name != 'rpn_head':
                yield from _heads(inner, f'{key}.{name}{suffix}')
