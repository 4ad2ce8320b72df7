"""Classification data: images in one folder per class."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

# registers mmcv's transforms, which configs use beside ours
import mmcv.transforms  # noqa: F401
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size
from mmengine.logging import print_log

from ..registry import DATASETS

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.webp')


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images of ``<data_root>/<split>/<class>/``, at any depth below; classes are numbered by the
    order of their names.

    Args:
        split: Folder below ``data_root``. Default: 'train'.
        **kwargs: Other arguments of mmengine's BaseDataset.

    Raises:
        FileNotFoundError: The folder, its classes, or the images of a class are missing.
    """

    def __init__(self, split: str = 'train', **kwargs: Any) -> None:
        self.split = split
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images with their labels."""
        root = Path(self.data_root) / self.split
        images = []
        self._metainfo['classes'] = classes = classes_of(root)
        for label, name in enumerate(classes):
            paths = images_in(root / name)
            if not paths:
                raise FileNotFoundError(
                    f'{root / name} must hold images that end in one of {SUFFIXES}, got none.'
                )
            images += [dict(img_path=str(path), gt_label=label) for path in paths]
        return images


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, at any depth, in the order of their names."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)


def classes_of(root: Path) -> tuple[str, ...]:
    """Return the names of the folders of classes.

    Args:
        root: Folder of a split.

    Raises:
        FileNotFoundError: The folder does not exist, or has fewer than two classes.
    """
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    names = tuple(sorted(folder.name for folder in folders if not _is_hidden(folder)))
    hidden = sorted(folder.name for folder in folders if _is_hidden(folder))
    if hidden:
        print_log(
            f'{root}: {len(hidden)} folders are no classes and left out: {hidden[:5]}',
            logger='current',
            level=logging.WARNING,
        )
    if len(names) < 2:
        raise FileNotFoundError(
            f'{root} must be a folder with one folder per class, two at least, got {list(names)}.'
        )
    return names


def _is_hidden(folder: Path) -> bool:
    # such as .ipynb_checkpoints of notebooks and __MACOSX of archives
    return folder.name.startswith(('.', '__'))


def use_image_folders(cfg: Config, root: str | None = None) -> None:
    """Point a config at a data set, and set its classifier's number of classes.

    Args:
        cfg: Config to change in place.
        root: Folder of the data set, with a folder for each split. Default: that of the config.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: The splits have different classes.
    """
    classes = {}
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset')
        if dataset is not None:
            dataset.data_root = root or dataset.data_root
            classes[dataset.split] = classes_of(Path(dataset.data_root) / dataset.split)
    if len(set(classes.values())) > 1:
        # a data set may have thousands of classes
        summary = {split: f'{len(names)}: {list(names[:5])}' for split, names in classes.items()}
        raise ValueError(f'all splits must have the same classes, got {summary}.')
    cfg.model.num_classes = len(next(iter(classes.values())))


def check_batches(cfg: Config) -> None:
    """Check that every process has images for a batch, if the loader drops smaller batches.

    Args:
        cfg: Config of a classifier.

    Raises:
        ValueError: There are too few images, so that nothing would be trained.
    """
    loader = cfg.train_dataloader
    folder = Path(loader.dataset.data_root) / loader.dataset.split
    images, processes = len(images_in(folder)), get_world_size()
    # the sampler repeats images until every process has as many
    if loader.get('drop_last') and math.ceil(images / processes) < loader.batch_size:
        raise ValueError(
            f'train_dataloader.batch_size must be at most the number of images in {folder} for '
            f'each process, {images} for {processes}, got {loader.batch_size}: give a smaller one '
            'by --cfg-options train_dataloader.batch_size=N.'
        )
