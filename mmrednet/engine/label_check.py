"""Check label images of segmentation data when they are loaded."""

from __future__ import annotations

from mmengine.config import Config, ConfigDict

from .class_check import LOADERS, classes_of, datasets_of

LOAD_ANNOTATIONS = ('LoadAnnotations', 'mmseg.LoadAnnotations')


def check_labels_when_loaded(cfg: Config) -> None:
    """Replace mmseg's LoadAnnotations in every data set by ``mmrednet.LoadCheckedAnnotations``,
    whose errors name the file.

    Data sets that learn their classes when they are built keep mmseg's LoadAnnotations.

    Args:
        cfg: Config to change in place; one for mmdet stays as it is.
    """
    if cfg.get('default_scope') != 'mmseg':
        return
    for loader in LOADERS:
        for key, dataset in datasets_of(cfg.get(loader), loader):
            classes = classes_of(key, dataset, 'mmseg').get('classes')
            if not classes:
                continue
            pipeline = []
            for step in dataset.get('pipeline', []):
                if step.get('type') in LOAD_ANNOTATIONS:
                    checked = dict(type='mmrednet.LoadCheckedAnnotations', num_classes=len(classes))
                    step = ConfigDict(step, **checked)
                pipeline.append(step)
            dataset['pipeline'] = pipeline
