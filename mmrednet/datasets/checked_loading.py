"""Loading of label images that reports a wrong image when it is loaded, not when a loss fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..packages import require

require('mmrednet.LoadCheckedAnnotations', 'mmseg', 'mmcv')

from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image, UnidentifiedImageError

from ..registry import TRANSFORMS

# PIL's names of one channel of at most 8 bits
LABEL_MODES = ('1', 'L', 'P')
# label of pixels that count in neither losses nor metrics
IGNORED = 255


@TRANSFORMS.register_module()
class LoadCheckedAnnotations(LoadAnnotations):
    """mmseg's LoadAnnotations, with errors that name the file.

    Args:
        num_classes: Number of classes. Labels, after ``reduce_zero_label`` and the choice of
            classes, must be below it, or 255.
        **kwargs: Other arguments of mmseg's LoadAnnotations.

    Raises:
        ValueError: A label image cannot be read, has several channels or more than 8 bits, another
            size than its image, or a label that is no class.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def _load_seg_map(self, results: dict) -> None:
        path = results['seg_map_path']
        try:
            _check_mode(path)
            super()._load_seg_map(results)
        except FileNotFoundError:
            raise
        # PIL's errors for broken files; mmcv fails on the attributes of an image that is None
        except (UnidentifiedImageError, OSError, SyntaxError, AttributeError) as error:
            raise ValueError(f'label image must be readable, got {path}: {error}') from error
        labels = results['gt_seg_map']
        if 'ori_shape' in results:
            size = tuple(results['ori_shape'][:2])
            if labels.shape != size:
                raise ValueError(
                    f'label image must have the size of its image, got {labels.shape} in {path} '
                    f'and {size} in {results.get("img_path")}'
                )
        self._check_labels(labels, path)

    def _check_labels(self, labels: np.ndarray, path: str) -> None:
        # a count of each byte is faster than a sort of the labels
        values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        wrong = values[(values >= self.num_classes) & (values != IGNORED)].tolist()
        if wrong:
            raise ValueError(
                f'labels must be from 0 to {self.num_classes - 1}, or {IGNORED} where nothing is '
                f'asked, got {wrong} in {path} (after reduce_zero_label={self.reduce_zero_label}).'
            )


def _check_mode(path: str) -> None:
    """Check the header of a label image: one channel of 8 bits."""
    # a remote file is read only once, by mmseg
    if not Path(path).is_file():
        return
    with Image.open(path) as image:
        if image.mode not in LABEL_MODES:
            raise ValueError(
                f'label image must have one channel of 8 bits, got mode {image.mode!r} in {path}'
            )
