"""Mapillary Vistas 1.2 (Neuhold et al., ICCV 2017) with panoptic annotations."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ..registry import DATASETS
from .panoptic_dataset import PanopticClass, PanopticMapDataset, metainfo_of

# the 65 evaluated classes in the order of the official panoptic files
CLASSES = (
    PanopticClass('Bird', 1, True, (165, 42, 42)),
    PanopticClass('Ground Animal', 2, True, (0, 192, 0)),
    PanopticClass('Curb', 3, False, (196, 196, 196)),
    PanopticClass('Fence', 4, False, (190, 153, 153)),
    PanopticClass('Guard Rail', 5, False, (180, 165, 180)),
    PanopticClass('Barrier', 6, False, (90, 120, 150)),
    PanopticClass('Wall', 7, False, (102, 102, 156)),
    PanopticClass('Bike Lane', 8, False, (128, 64, 255)),
    PanopticClass('Crosswalk - Plain', 9, True, (140, 140, 200)),
    PanopticClass('Curb Cut', 10, False, (170, 170, 170)),
    PanopticClass('Parking', 11, False, (250, 170, 160)),
    PanopticClass('Pedestrian Area', 12, False, (96, 96, 96)),
    PanopticClass('Rail Track', 13, False, (230, 150, 140)),
    PanopticClass('Road', 14, False, (128, 64, 128)),
    PanopticClass('Service Lane', 15, False, (110, 110, 110)),
    PanopticClass('Sidewalk', 16, False, (244, 35, 232)),
    PanopticClass('Bridge', 17, False, (150, 100, 100)),
    PanopticClass('Building', 18, False, (70, 70, 70)),
    PanopticClass('Tunnel', 19, False, (150, 120, 90)),
    PanopticClass('Person', 20, True, (220, 20, 60)),
    PanopticClass('Bicyclist', 21, True, (255, 0, 0)),
    PanopticClass('Motorcyclist', 22, True, (255, 0, 100)),
    PanopticClass('Other Rider', 23, True, (255, 0, 200)),
    PanopticClass('Lane Marking - Crosswalk', 24, True, (200, 128, 128)),
    PanopticClass('Lane Marking - General', 25, False, (255, 255, 255)),
    PanopticClass('Mountain', 26, False, (64, 170, 64)),
    PanopticClass('Sand', 27, False, (230, 160, 50)),
    PanopticClass('Sky', 28, False, (70, 130, 180)),
    PanopticClass('Snow', 29, False, (190, 255, 255)),
    PanopticClass('Terrain', 30, False, (152, 251, 152)),
    PanopticClass('Vegetation', 31, False, (107, 142, 35)),
    PanopticClass('Water', 32, False, (0, 170, 30)),
    PanopticClass('Banner', 33, True, (255, 255, 128)),
    PanopticClass('Bench', 34, True, (250, 0, 30)),
    PanopticClass('Bike Rack', 35, True, (100, 140, 180)),
    PanopticClass('Billboard', 36, True, (220, 220, 220)),
    PanopticClass('Catch Basin', 37, True, (220, 128, 128)),
    PanopticClass('CCTV Camera', 38, True, (222, 40, 40)),
    PanopticClass('Fire Hydrant', 39, True, (100, 170, 30)),
    PanopticClass('Junction Box', 40, True, (40, 40, 40)),
    PanopticClass('Mailbox', 41, True, (33, 33, 33)),
    PanopticClass('Manhole', 42, True, (100, 128, 160)),
    PanopticClass('Phone Booth', 43, True, (142, 0, 0)),
    PanopticClass('Pothole', 44, False, (70, 100, 150)),
    PanopticClass('Street Light', 45, True, (210, 170, 100)),
    PanopticClass('Pole', 46, True, (153, 153, 153)),
    PanopticClass('Traffic Sign Frame', 47, True, (128, 128, 128)),
    PanopticClass('Utility Pole', 48, True, (0, 0, 80)),
    PanopticClass('Traffic Light', 49, True, (250, 170, 30)),
    PanopticClass('Traffic Sign (Back)', 50, True, (192, 192, 192)),
    PanopticClass('Traffic Sign (Front)', 51, True, (220, 220, 0)),
    PanopticClass('Trash Can', 52, True, (140, 140, 20)),
    PanopticClass('Bicycle', 53, True, (119, 11, 32)),
    PanopticClass('Boat', 54, True, (150, 0, 255)),
    PanopticClass('Bus', 55, True, (0, 60, 100)),
    PanopticClass('Car', 56, True, (0, 0, 142)),
    PanopticClass('Caravan', 57, True, (0, 0, 90)),
    PanopticClass('Motorcycle', 58, True, (0, 0, 230)),
    PanopticClass('On Rails', 59, False, (0, 80, 100)),
    PanopticClass('Other Vehicle', 60, True, (128, 64, 64)),
    PanopticClass('Trailer', 61, True, (0, 0, 110)),
    PanopticClass('Truck', 62, True, (0, 0, 70)),
    PanopticClass('Wheeled Slow', 63, True, (0, 0, 192)),
    PanopticClass('Car Mount', 64, False, (32, 32, 32)),
    PanopticClass('Ego Vehicle', 65, False, (120, 10, 10)),
)


@DATASETS.register_module()
class MapillaryVistasPanopticDataset(PanopticMapDataset):
    """The folders ``images`` and ``panoptic`` of version 1.2, with 37 classes of things.

    ``ann_file`` is ``panoptic/panoptic_2018.json``. Images have the names of the maps and the
    suffix '.jpg'.

    Args:
        img_suffix: Suffix of the images. Default: '.jpg'.
        **kwargs: Other arguments of :class:`PanopticMapDataset`.
    """

    METAINFO = metainfo_of(CLASSES)

    def __init__(self, *, img_suffix: str = '.jpg', **kwargs: Any) -> None:
        super().__init__(img_suffix=img_suffix, **kwargs)

    def image_name(self, image: dict[str, Any], annotation: dict[str, Any] | None) -> str:
        """Return the name of an image, from its map if it has one."""
        if annotation is None:
            return image['file_name']
        return PurePosixPath(annotation['file_name']).stem + self.img_suffix
