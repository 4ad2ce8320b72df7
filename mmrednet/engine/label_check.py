"""Label images of segmentation data that are wrong: found when they are loaded, with the name of
the file.
"""

from __future__ import annotations

from mmengine.config import Config, ConfigDict

from .class_check import LOADERS, classes_of, datasets_of

PLAIN = ('LoadAnnotations', 'mmseg.LoadAnnotations')


def check_labels_when_loaded(cfg: Config) -> None:
    """Let every data set of a segmentation config load its labels by
    ``mmrednet.LoadCheckedAnnotations``.

    Data sets that learn their classes only when they are built keep mmseg's LoadAnnotations.

    Args:
        cfg: changed in place; one of mmdet stays as it is.
    """
    if cfg.get('default_scope') != 'mmseg':
        return
    for loader in LOADERS:
        for key, dataset in datasets_of(cfg.get(loader), loader):
            classes = classes_of(key, dataset, 'mmseg').get('classes')
            if not classes:
                continue
            dataset['pipeline'] = [
                ConfigDict(step, type='mmrednet.LoadCheckedAnnotations', num_classes=len(classes))
                if step.get('type') in PLAIN
                else step
                for step in dataset.get('pipeline', [])
            ]
