"""Synthetic data that needs no download: scenes of shapes and of streets, drawn from a seed."""

from .cityscapes_format import LABELS, label_maps, write_cityscapes
from .coco_format import annotate_mask, write_coco
from .folder_format import write_image_folder
from .shapes import CLASSES, Scene, make_scene, scene_generator
from .streets import Street, StreetObject, make_street

__all__ = [
    'CLASSES',
    'LABELS',
    'Scene',
    'Street',
    'StreetObject',
    'annotate_mask',
    'label_maps',
    'make_scene',
    'make_street',
    'scene_generator',
    'write_cityscapes',
    'write_coco',
    'write_image_folder',
]
