"""Data that needs no download: scenes of shapes, made from a seed."""

from .coco_format import mask_to_polygons, write_coco
from .shapes import CLASSES, Scene, make_scene, scene_generator

__all__ = ['CLASSES', 'Scene', 'make_scene', 'mask_to_polygons', 'scene_generator', 'write_coco']
