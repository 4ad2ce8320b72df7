"""Images in one folder per class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

# mmcv registers its transforms, which configs name beside ours
import mmcv.transforms  # noqa: F401
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size

from ..registry import DATASETS

ENDINGS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.webp')


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images of ``<data_root>/<split>/<class>/``, at any depth below; classes are numbered by the
    order of their names.

    Args:
        split: the folder below ``data_root``.
        **kwargs: see mmengine's BaseDataset.

    Raises:
        FileNotFoundError: the folder, its classes, or images in one of them are missing.
    """

    def __init__(self, split: str = 'train', **kwargs: Any) -> None:
        self.split = split
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images with their labels."""
        root = Path(self.data_root) / self.split
        classes, images = classes_of(root), []
        self._metainfo['classes'] = classes
        for label, name in enumerate(classes):
            found = images_in(root / name)
            if not found:
                raise FileNotFoundError(
                    f'{root / name} must hold images that end in one of {ENDINGS}, got none.'
                )
            images += [dict(img_path=str(path), gt_label=label) for path in found]
        return images


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, at any depth, in the order of their names."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in ENDINGS)


def classes_of(root: Path) -> tuple[str, ...]:
    """Return the names of the folders of classes.

    Raises:
        FileNotFoundError: there is no such folder, or fewer than two classes in it.
    """
    names = (
        tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
        if root.is_dir()
        else ()
    )
    if len(names) < 2:
        raise FileNotFoundError(
            f'{root} must be a folder with one folder per class, two at least, got {list(names)}.'
        )
    return names


def use_image_folders(cfg: Config, root: str | None = None) -> None:
    """Point a config at the folders of a data set, and give its classifier their number of classes.

    Args:
        cfg: changed in place.
        root: with a folder for each split; by default what the config says.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: the splits have different classes.
    """
    classes = {}
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset')
        if dataset is not None:
            dataset.data_root = root or dataset.data_root
            classes[dataset.split] = classes_of(Path(dataset.data_root) / dataset.split)
    if len(set(classes.values())) > 1:
        shown = {split: f'{len(names)}: {list(names[:5])}' for split, names in classes.items()}
        raise ValueError(f'all splits must have the same classes, got {shown}.')
    cfg.model.num_classes = len(next(iter(classes.values())))


def check_batches(cfg: Config) -> None:
    """Check that the images for training fill one batch of every process, where smaller batches are
    dropped.

    Raises:
        ValueError: they do not, so that there is nothing to train on.
    """
    loader = cfg.train_dataloader
    folder = Path(loader.dataset.data_root) / loader.dataset.split
    images, processes = len(images_in(folder)), get_world_size()
    if loader.get('drop_last') and math.ceil(images / processes) < loader.batch_size:
        raise ValueError(
            f'train_dataloader.batch_size must be at most the number of images in {folder} for '
            'each '
            f'process, {images} for {processes}, got {loader.batch_size}: give a smaller one by '
            '--cfg-options train_dataloader.batch_size=N.'
        )
