"""Check label images of segmentation data when they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, TRANSFORMS

from .class_check import LOADERS, classes_of, datasets_of
from .findings import Findings
from .image_check import folder_of, loaded_size, missing_files, spread

# label of pixels that count in neither losses nor metrics
IGNORED = 255
CHECKED = 'mmrednet.LoadCheckedAnnotations'
LOAD_ANNOTATIONS = ('LoadAnnotations', 'mmseg.LoadAnnotations')


# label images that are read before training, and more of them if something looks wrong
SAMPLE, LARGER_SAMPLE = 24, 160
# shares of ignored pixels: what no data of two classes has by chance, and what covers much
SOME_IGNORED, MUCH_IGNORED = 0.01, 0.2


def check_labels_when_loaded(
    cfg: Config,
    *,
    loaders: Sequence[str] = LOADERS,
    strict: bool = False,
    check_images: bool = False,
) -> None:
    """Replace mmseg's LoadAnnotations in every data set by ``mmrednet.LoadCheckedAnnotations``,
    whose errors name the file, and check a sample of the label images now.

    Data sets that learn their classes when they are built keep mmseg's LoadAnnotations. The labels
    of data sets that are not there are not checked.

    Args:
        cfg: Config to change in place; one for mmdet stays as it is.
        loaders: Keys of the data loaders whose labels are checked now. Default: all.
        strict: True if warnings are errors. Default: False.
        check_images: True if all label images are read now. Default: False.

    Raises:
        ValueError: Label images are missing or wrong, or only one class occurs in them and the
            other pixels are ignored.
    """
    if cfg.get('default_scope') != 'mmseg':
        return
    findings = Findings(strict=strict)
    for loader in LOADERS:
        for key, dataset in datasets_of(cfg.get(loader), loader):
            classes = classes_of(key, dataset, 'mmseg').get('classes')
            if not classes:
                continue
            _load_checked(dataset, len(classes))
            if loader in loaders:
                _check_now(key, dataset, classes, findings, every=check_images)
    findings.report()


def _load_checked(dataset: dict, num_classes: int) -> None:
    pipeline = []
    for step in dataset.get('pipeline', []):
        if step.get('type') in LOAD_ANNOTATIONS:
            checked = dict(type=CHECKED, num_classes=num_classes)
            step = ConfigDict(step, **checked)
        pipeline.append(step)
    dataset['pipeline'] = pipeline


def _check_now(
    key: str, dataset: dict, classes: list[str], findings: Findings, *, every: bool
) -> None:
    """Check the label images of one data set."""
    folders = [folder_of(dataset, name) for name in ('img_path', 'seg_map_path')]
    loading = [step for step in dataset['pipeline'] if step.get('type') == CHECKED]
    if not loading or not all(folder is not None and folder.is_dir() for folder in folders):
        return
    with DATASETS.switch_scope_and_registry('mmseg') as registry:
        items = list(registry.build(dict(dataset, pipeline=[], lazy_init=False)))
    for name in ('img_path', 'seg_map_path'):
        missing = missing_files([Path(item[name]) for item in items])
        if missing:
            findings.error(key, f'files of {name} do not exist', missing)
    if not items:
        findings.error(key, f'there are no images in {folders[0]}')
    if findings.errors:
        return
    with TRANSFORMS.switch_scope_and_registry('mmseg') as registry:
        load = registry.build(loading[0])
    counts = _count(items if every else spread(items, SAMPLE), load, findings)
    if _is_suspicious(counts, classes) and not every:
        # rare classes are missing from a small sample by chance
        counts = _count(spread(items, LARGER_SAMPLE), load, findings)
    _judge(folders[1], counts, classes, findings)


def _count(items: Sequence[dict], load: Any, findings: Findings) -> np.ndarray:
    """Return how often each label occurs, and report label images that are wrong."""
    counts = np.zeros(256, np.int64)
    for item in items:
        width, height = loaded_size(Path(item['img_path']))
        try:
            labels = load(dict(item, seg_fields=[], ori_shape=(height, width)))['gt_seg_map']
        except ValueError as error:
            findings.error(item['seg_map_path'], str(error))
            continue
        counts += np.bincount(labels.ravel(), minlength=256)
    return counts


def _is_suspicious(counts: np.ndarray, classes: Sequence[str]) -> bool:
    occurring = np.count_nonzero(counts[: len(classes)])
    ignored = counts[IGNORED] / max(1, counts.sum())
    return occurring <= 1 or (occurring < len(classes) and ignored >= MUCH_IGNORED)


def _judge(folder: Any, counts: np.ndarray, classes: Sequence[str], findings: Findings) -> None:
    """Report classes that never occur while many pixels are ignored."""
    if findings.errors or len(classes) < 2 or not _is_suspicious(counts, classes):
        return
    absent = [name for name, count in zip(classes, counts, strict=False) if not count]
    ignored = counts[IGNORED] / max(1, counts.sum())
    message = (
        f'label images have no pixel of {absent}, and {100 * ignored:.0f} % of their pixels are '
        f'{IGNORED}, which is ignored. Labels must be 0 to {len(classes) - 1}; programs that '
        f'paint write {IGNORED} for white'
    )
    if len(absent) >= len(classes) - 1 and ignored >= SOME_IGNORED:
        findings.error(folder, message)
    else:
        findings.warn(folder, message)
