"""Label images that say what is wrong with them when they are loaded, not when a loss fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..packages import require

require('mmrednet.LoadCheckedAnnotations', 'mmseg', 'mmcv')

from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image, UnidentifiedImageError

from ..registry import TRANSFORMS

# one channel of at most 8 bits, in PIL's names
LABEL_MODES = ('1', 'L', 'P')
IGNORED = 255


@TRANSFORMS.register_module()
class LoadCheckedAnnotations(LoadAnnotations):
    """mmseg's LoadAnnotations, with errors that name the file.

    Args:
        num_classes: labels, after ``reduce_zero_label`` and the choice of classes, must be below
            this or 255.
        **kwargs: see mmseg's LoadAnnotations.

    Raises:
        ValueError: a label image cannot be read, has several channels or more than 8 bits, another
            size than its image, or a label that is no class.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def _load_seg_map(self, results: dict) -> None:
        path = results['seg_map_path']
        try:
            # remote files have no header to look at before they are read
            if Path(path).is_file():
                with Image.open(path) as image:
                    if image.mode not in LABEL_MODES:
                        raise ValueError(
                            f'label image must have one channel of 8 bits, got mode {image.mode!r} '
                            'in '
                            f'{path}'
                        )
            super()._load_seg_map(results)
        except (UnidentifiedImageError, OSError, SyntaxError, AttributeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f'label image must be readable, got {path}: {error}') from error
        labels = results['gt_seg_map']
        if 'ori_shape' in results and labels.shape != tuple(results['ori_shape'][:2]):
            raise ValueError(
                f'label image must have the size of its image, got {labels.shape} in {path} and '
                f'{tuple(results["ori_shape"][:2])} in {results.get("img_path")}'
            )
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        wrong = present[(present >= self.num_classes) & (present != IGNORED)].tolist()
        if wrong:
            raise ValueError(
                f'labels must be from 0 to {self.num_classes - 1}, or {IGNORED} where nothing is '
                'asked, '
                f'got {wrong} in {path} (after reduce_zero_label={self.reduce_zero_label}).'
            )
