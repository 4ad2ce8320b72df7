"""CamVid, road scenes seen from a car (Brostow, Fauqueur and Cipolla, 2009), with the eleven
classes of SegNet.
"""

from __future__ import annotations

from typing import Any

from ..packages import require

require('mmrednet.CamVidDataset', 'mmseg', 'mmcv')

from mmseg.datasets import BaseSegDataset

from ..registry import DATASETS


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """Images of 480 x 360 with labels 0 to 10; void is 255, which mmseg ignores.

    ``tools/dataset_converters/camvid.py`` writes the folders that this reads.

    Args:
        img_suffix: Suffix of the images. Default: '.png'.
        seg_map_suffix: Suffix of the label images. Default: '.png'.
        **kwargs: Other arguments of mmseg's BaseSegDataset.
    """

    METAINFO = dict(
        classes=(
            'sky',
            'building',
            'pole',
            'road',
            'pavement',
            'tree',
            'sign',
            'fence',
            'car',
            'pedestrian',
            'bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [0, 0, 192],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    def __init__(
        self, img_suffix: str = '.png', seg_map_suffix: str = '.png', **kwargs: Any
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
