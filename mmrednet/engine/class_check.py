"""Check before training that the classes of a config fit its annotation files and its heads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.utils import is_abs

from .coco_check import check_categories, check_entries
from .findings import Findings
from .image_check import check_folders
from .image_check import check_images as check_image_files
from .segment_check import check_segments, is_panoptic

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
CLASS_HEADS = ('bbox_head', 'mask_head', 'decode_head')


class AnnotationFile(NamedTuple):
    """An annotation file in COCO format, and the data set that reads it.

    Args:
        path: Path of the file.
        content: Its content.
        key: Key of the data set in the config.
        dataset: Config of the data set.
        scope: Default scope of the config.
    """

    path: Path
    content: dict
    key: str
    dataset: dict
    scope: str | None


def check_classes(
    cfg: Config,
    *,
    loaders: Sequence[str] = LOADERS,
    strict: bool = False,
    check_images: bool = False,
    folders: bool = False,
) -> None:
    """Compare the classes of each COCO-format data set of a config with its annotation file, and
    those of the training data with the heads, and check the entries and images of the files.

    A config may use a part of the classes of a file; that is logged. Data sets in other formats,
    remote files, and data sets that learn their classes when they are built are not checked.

    Args:
        cfg: Config for mmdet or mmseg.
        loaders: Keys of the data loaders to check. Default: all.
        strict: True if warnings are errors. Default: False.
        check_images: True if all images are opened, and not a sample. Default: False.
        folders: True if image folders are missed that do not exist. Default: False.

    Raises:
        FileNotFoundError: An annotation file or a folder does not exist.
        ValueError: The config names a class that its annotation file lacks, or names classes in
            another order or in a way that mmdet would misread; an annotation file is wrong; or a
            head has another number of classes than the training data.
    """
    findings = Findings(strict=strict)
    files: dict[Path, dict | None] = {}
    # loaders that share a file and its images are checked once
    checked: set[tuple] = set()
    for loader in loaders:
        for key, dataset in datasets_of(cfg.get(loader), loader):
            if folders:
                check_folders(key, dataset)
            path = _annotation_path(dataset)
            content = None if path is None else _read_once(files, key, path)
            if path is None or content is None:
                continue
            classes = classes_of(key, dataset, cfg.get('default_scope')).get('classes')
            if not classes:
                continue
            identity = path, str(dataset.get('data_prefix')), tuple(classes)
            if identity not in checked:
                checked.add(identity)
                file = AnnotationFile(path, content, key, dataset, cfg.get('default_scope'))
                _check_file(file, classes, findings, every_image=check_images)
            _check_evaluators(cfg, loader, content, classes, files)
    findings.report()
    _check_heads(cfg)


def _check_file(
    file: AnnotationFile, classes: list[str], findings: Findings, *, every_image: bool
) -> None:
    """Check the categories of a file, alone and against the classes of its data set, and what else
    mmdet's CocoDataset reads.
    """
    _check_file_classes(file, classes, findings)
    if is_panoptic(file.content):
        check_segments(file.path, file.content, findings)
    if not _is_coco(file.dataset, file.scope):
        return
    check_entries(file.path, file.content, classes, findings)
    if 'images' in file.content and not findings.errors:
        images = file.content['images']
        check_image_files(file.path, images, file.dataset, findings, every=every_image)


def _check_file_classes(file: AnnotationFile, classes: list[str], findings: Findings) -> None:
    check_categories(file.path, file.content)
    present = _category_names(file.content, file.dataset, file.scope)
    _check_names(file.key, file.path, classes, present)
    _check_order(f'{file.key}.metainfo.classes', file.path, classes, present)
    if set(present) - set(classes):
        findings.warn(
            file.path,
            f'{file.key}.metainfo.classes uses {classes}, a part of the classes in {file.path}: '
            f'{present}. Objects of the others count as background.',
        )


def _check_evaluators(
    cfg: Config,
    loader: str,
    content: dict,
    classes: list[str],
    files: dict[Path, dict | None],
) -> None:
    """Check that the files of a loader's evaluators have its classes in their order, and its
    images.
    """
    name = loader.replace('dataloader', 'evaluator')
    evaluators = cfg.get(name) if loader != 'train_dataloader' else None
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        path = _annotation_path(evaluator or {})
        if path is None:
            continue
        truth = _read_once(files, name, path)
        if truth is None or truth is content:
            continue
        check_categories(path, truth)
        present = [category['name'] for category in truth.get('categories', [])]
        _check_names(name, path, classes, present)
        _check_order(f'classes of {loader}', path, classes, present)
        ids = {image.get('id') for image in truth.get('images', [])}
        unknown = [image['id'] for image in content.get('images', []) if image['id'] not in ids]
        if unknown:
            raise ValueError(
                f'{name}.ann_file must have all images of {loader}, {path} lacks {len(unknown)}, '
                f'such as the image with the id {unknown[0]!r}.'
            )


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
    dataset_type = _dataset_class(dataset, scope)
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


def _dataset_class(dataset: dict, scope: str | None) -> Any:
    dataset_type = dataset.get('type')
    if not isinstance(dataset_type, str):
        return dataset_type
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.get(dataset_type)


def _is_coco(dataset: dict, scope: str | None) -> bool:
    """Return whether a data set is read by mmdet's CocoDataset; LVIS has other entries."""
    names = [base.__name__ for base in getattr(_dataset_class(dataset, scope), '__mro__', ())]
    return 'CocoDataset' in names and not any(name.startswith('LVIS') for name in names)


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


def _read_once(files: dict[Path, dict | None], key: str, path: Path) -> dict | None:
    """Return the content of an annotation file, which several data sets may share."""
    if path not in files:
        files[path] = _read_annotations(key, path)
    return files[path]


def _read_annotations(key: str, path: Path) -> dict | None:
    """Return the content of an annotation file; None for other formats than COCO."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{key}.ann_file must be an existing file, got {str(path)!r}. docs/your_data.md says '
            f'where files are expected.'
        )
    text = path.read_text(encoding='utf-8')
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if _is_json_lines(text):
            return None
        raise ValueError(
            f'{key}.ann_file must be valid JSON, {path} is broken: {error}.'
        ) from error
    if not isinstance(content, dict) or not {'images', 'categories'} & set(content):
        return None
    return content


def _is_json_lines(text: str) -> bool:
    """Return whether a file has one object per line, as data sets of phrases do."""
    first, _, following = text.partition('\n')
    try:
        return isinstance(json.loads(first), dict) and following.lstrip().startswith('{')
    except json.JSONDecodeError:
        return False


def _category_names(content: dict, dataset: dict, scope: str | None) -> list[str]:
    """Return the names of the categories in the order in which mmdet numbers them."""
    categories = content.get('categories', [])
    # mmdet sorts the categories of Objects365, whose files differ in order
    if 'Objects365' in getattr(_dataset_class(dataset, scope), '__name__', ''):
        categories = sorted(categories, key=lambda category: category['id'])
    return [category['name'] for category in categories]


def _check_order(key: str, path: Path, configured: list[str], present: list[str]) -> None:
    """Check that the classes of the config stand in the order of the file."""
    in_file = [name for name in present if name in configured]
    if in_file != list(configured):
        raise ValueError(
            f'{key} must stand in the order of the categories in {path}, by which mmdet numbers '
            f'them.\n  the config has: {configured}\n  the file has:   {in_file}\n'
            'Objects would get the names of others. Change the order in the config or, if files '
            'differ from each other, in a file.'
        )


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
