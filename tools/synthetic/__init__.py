"""Synthetic data that needs no download: scenes of shapes and of streets, drawn from a seed."""

from .cityscapes_format import (
    LABELS,
    label_maps,
    write_cityscapes,
    write_cityscapes_panoptic,
)
from .coco_format import annotate_mask, write_coco, write_coco_panoptic
from .folder_format import write_image_folder
from .panoptic_scenes import STUFF, PanopticScene, make_panoptic_scene
from .shapes import CLASSES, Scene, make_scene, scene_generator
from .streets import Street, StreetObject, make_street

__all__ = [
    'CLASSES',
    'LABELS',
    'STUFF',
    'PanopticScene',
    'Scene',
    'Street',
    'StreetObject',
    'annotate_mask',
    'label_maps',
    'make_panoptic_scene',
    'make_scene',
    'make_street',
    'scene_generator',
    'write_cityscapes',
    'write_cityscapes_panoptic',
    'write_coco',
    'write_coco_panoptic',
    'write_image_folder',
]
