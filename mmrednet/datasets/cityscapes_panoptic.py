"""Cityscapes (Cordts et al., CVPR 2016) with panoptic annotations."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ..registry import DATASETS
from .panoptic_dataset import PanopticClass, PanopticMapDataset, metainfo_of

# in the order of the official train ids
CLASSES = (
    PanopticClass('road', 7, False, (128, 64, 128)),
    PanopticClass('sidewalk', 8, False, (244, 35, 232)),
    PanopticClass('building', 11, False, (70, 70, 70)),
    PanopticClass('wall', 12, False, (102, 102, 156)),
    PanopticClass('fence', 13, False, (190, 153, 153)),
    PanopticClass('pole', 17, False, (153, 153, 153)),
    PanopticClass('traffic light', 19, False, (250, 170, 30)),
    PanopticClass('traffic sign', 20, False, (220, 220, 0)),
    PanopticClass('vegetation', 21, False, (107, 142, 35)),
    PanopticClass('terrain', 22, False, (152, 251, 152)),
    PanopticClass('sky', 23, False, (70, 130, 180)),
    PanopticClass('person', 24, True, (220, 20, 60)),
    PanopticClass('rider', 25, True, (255, 0, 0)),
    PanopticClass('car', 26, True, (0, 0, 142)),
    PanopticClass('truck', 27, True, (0, 0, 70)),
    PanopticClass('bus', 28, True, (0, 60, 100)),
    PanopticClass('train', 31, True, (0, 80, 100)),
    PanopticClass('motorcycle', 32, True, (0, 0, 230)),
    PanopticClass('bicycle', 33, True, (119, 11, 32)),
)
# ids 0 to 33 of the official table that are not evaluated, such as ego vehicle and parking
IGNORED_IDS = tuple(sorted(set(range(34)) - {entry.category_id for entry in CLASSES}))


@DATASETS.register_module()
class CityscapesPanopticDataset(PanopticMapDataset):
    """leftImg8bit and gtFine, as the official archives have them.

    The truth is either ``*_instanceIds.png``, with ``data_prefix.seg`` 'gtFine/val', or what
    ``cityscapesscripts/preparation/createPanopticImgs.py`` makes of them, with ``ann_file``
    'gtFine/cityscapes_panoptic_val.json' and ``data_prefix.seg`` 'gtFine/cityscapes_panoptic_val'.
    Both give the same segments. Groups such as 'cargroup' are crowds.

    Args:
        img_suffix: Suffix of the images. Default: '_leftImg8bit.png'.
        seg_map_suffix: Suffix of the truth without ``ann_file``. Default:
            '_gtFine_instanceIds.png'.
        **kwargs: Other arguments of :class:`PanopticMapDataset`.
    """

    METAINFO = metainfo_of(CLASSES)

    def __init__(
        self,
        *,
        img_suffix: str = '_leftImg8bit.png',
        seg_map_suffix: str = '_gtFine_instanceIds.png',
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            ignored_ids=IGNORED_IDS,
            **kwargs,
        )

    def image_id(self, stem: str) -> str:
        """Return the official id of an image, its name without folder and suffix."""
        return PurePosixPath(stem).name

    def image_name(self, image: dict[str, Any], annotation: dict[str, Any] | None) -> str:
        """Return the path of an image. Its ``file_name`` in official JSON files does not exist."""
        city = image['id'].split('_')[0]
        return f'{city}/{image["id"]}{self.img_suffix}'
