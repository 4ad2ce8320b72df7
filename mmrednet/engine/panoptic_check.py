"""Check panoptic data before training: the maps of segment ids, and the classes of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS

from .class_check import LOADERS, classes_of, datasets_of
from .findings import Findings
from .image_check import folder_of, loaded_size, missing_files, spread

LOADER = 'mmrednet.LoadPanopticMap'
# maps that are read before training; one of 1024 x 2048 takes 50 milliseconds
SAMPLE = 24


def check_panoptic(
    cfg: Config,
    *,
    loaders: Sequence[str] = LOADERS,
    strict: bool = False,
    check_images: bool = False,
) -> None:
    """Check the data sets whose pipeline has ``mmrednet.LoadPanopticMap``.

    All images and maps must exist. Maps of a sample are loaded: each must have the size of its
    image, the ids of its segments and no others, and known categories.

    Args:
        cfg: Config for mmdet.
        loaders: Keys of the data loaders to check. Default: all.
        strict: Whether warnings are errors. Default: False.
        check_images: Whether all maps are loaded, and not a sample. Default: False.

    Raises:
        ValueError: The data is wrong, and the message names files and segments; or the model has
            other classes than the training data.
    """
    _check_model(cfg)
    findings = Findings(strict=strict)
    checked: list[dict] = []
    for loader in loaders:
        for key, dataset in datasets_of(cfg.get(loader), loader):
            step = _loading_step(dataset)
            # validation and test often share a data set
            if step is None or dataset in checked:
                continue
            checked.append(dataset)
            _check_dataset(key, dataset, step, cfg.get('default_scope'), findings, check_images)
    findings.report()


def _check_model(cfg: Config) -> None:
    """Check ``num_classes`` and ``thing_classes`` of a panoptic model."""
    model = cfg.get('model', {})
    datasets = list(datasets_of(cfg.get('train_dataloader'), 'train_dataloader'))
    if 'thing_classes' not in model or len(datasets) != 1:
        return
    names = classes_of(*datasets[0], cfg.get('default_scope'))
    classes = names.get('classes')
    if not classes or 'thing_classes' not in names:
        return
    if model.get('num_classes') != len(classes):
        raise ValueError(
            f'model.num_classes must be {len(classes)}, the number of classes of the training data '
            f'{classes}, got {model.get("num_classes")}.'
        )
    things = sorted(classes.index(name) for name in names['thing_classes'])
    if sorted(model.thing_classes) != things:
        raise ValueError(
            f'model.thing_classes must be {things}, the indices of the classes '
            f'{names["thing_classes"]} of the training data, got {list(model.thing_classes)}.'
        )


def _loading_step(dataset: dict) -> dict | None:
    steps = [step for step in _steps(dataset.get('pipeline') or []) if step.get('type') == LOADER]
    return steps[0] if steps else None


def _steps(pipeline: Any) -> Iterator[dict]:
    """Yield the transforms of a pipeline, also those inside of TestTimeAug."""
    for step in pipeline:
        if isinstance(step, (list, tuple)):
            yield from _steps(step)
        elif isinstance(step, dict):
            yield step
            yield from _steps(step.get('transforms') or [])


def _check_dataset(
    key: str, dataset: dict, step: dict, scope: str | None, findings: Findings, every: bool
) -> None:
    folders = [folder_of(dataset, name) for name in ('img', 'seg')]
    if not all(folder is not None and folder.is_dir() for folder in folders):
        return
    with DATASETS.switch_scope_and_registry(scope) as registry:
        items = list(registry.build(dict(dataset, pipeline=[], lazy_init=False)))
    for name in ('img_path', 'seg_map_path'):
        paths = [Path(item[name]) for item in items if item.get(name) is not None]
        missing = missing_files(paths)
        if missing:
            findings.error(key, f'files of {name} do not exist', missing)
            return
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        load = registry.build(step)
    annotated = [item for item in items if item.get('seg_map_path') is not None]
    for item in annotated if every else spread(annotated, SAMPLE):
        width, height = loaded_size(Path(item['img_path']), decode=every)
        try:
            load(dict(item, ori_shape=(height, width)))
        except ValueError as error:
            findings.error(item['seg_map_path'], str(error))
