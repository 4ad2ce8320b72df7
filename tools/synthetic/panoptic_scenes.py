"""Synthetic landscapes with shapes in them, drawn from a seed, for panoptic segmentation.

Stuff is sky, hills, meadow and water. Things are the shapes of :mod:`shapes`. Some scenes have a
crowd, many small shapes of a class that are not told apart, and a blot that has no label.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .shapes import (
    CLASSES,
    OUTLINES,
    TILT,
    add_light,
    check_scene,
    place_object,
    random_colour,
    random_texture,
)

STUFF = ('sky', 'hills', 'meadow', 'water')
# mean colour (RGB) and amplitude of the texture of each
STUFF_LOOKS = {
    'sky': ((165, 190, 215), 5),
    'hills': ((130, 115, 95), 14),
    'meadow': ((105, 140, 85), 24),
    'water': ((75, 105, 140), 14),
}
# of shapes, in fractions of the shorter side; a map of stride 4 must tell them apart
DIAMETERS = (0.16, 0.6)
CROWD_SHARE, BLOT_SHARE = 0.2, 0.25


@dataclass(frozen=True)
class Segment:
    """A segment of a scene.

    Args:
        class_index: Index into the classes of things or into ``STUFF``.
        is_thing: Whether it is an object, or a crowd of them.
        is_crowd: Whether it is a crowd. Default: False.
    """

    class_index: int
    is_thing: bool
    is_crowd: bool = False


@dataclass(frozen=True)
class PanopticScene:
    """An image and the segment at each of its pixels.

    Args:
        image: Image (H, W, 3), uint8, RGB.
        positions: Map (H, W), int32; 0 is void, n the n-th segment.
        segments: Segments, each with at least one pixel.
    """

    image: np.ndarray
    positions: np.ndarray
    segments: tuple[Segment, ...]


def make_panoptic_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = (128, 128),
    *,
    objects: tuple[int, int] = (2, 5),
) -> PanopticScene:
    """Draw a landscape, then a blot, a crowd and objects on top of each other.

    Args:
        rng: Generator of all random numbers, see :func:`scene_generator`.
        size: Height and width of the image in pixels. Default: (128, 128).
        objects: Least and greatest number of objects that are told apart. Default: (2, 5).

    Raises:
        ValueError: The image is too small, or ``objects`` is no range.
    """
    check_scene(size, objects)
    stuff = _landscape(rng, size)
    image = _paint_stuff(rng, stuff)
    is_void = np.zeros(size, bool)
    if rng.random() < BLOT_SHARE:
        is_void = _blot(rng, size)
        image[is_void] = rng.uniform(90, 160, 3) + rng.normal(0, 30, (is_void.sum(), 3))
    # position of the objects in a list; 0 is the landscape
    instances = np.zeros(size, np.int32)
    things: list[Segment] = []
    areas = [0]
    if rng.random() < CROWD_SHARE:
        things.append(_draw_crowd(rng, image, instances))
        areas.append(int((instances == 1).sum()))
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        class_index = int(rng.integers(len(CLASSES)))
        outline = OUTLINES[CLASSES[class_index]]
        mask = place_object(rng, instances, areas, outline, diameters=DIAMETERS)
        if mask is None:
            continue
        things.append(Segment(class_index, is_thing=True))
        areas.append(int(mask.sum()))
        instances[mask] = len(things)
        _paint_object(rng, image, mask, class_index)
    return _assemble(add_light(rng, image), stuff, is_void, instances, things)


def _assemble(
    image: np.ndarray,
    stuff: np.ndarray,
    is_void: np.ndarray,
    instances: np.ndarray,
    things: list[Segment],
) -> PanopticScene:
    """Number the segments: objects first, then the stuff that is visible."""
    positions = instances.copy()
    segments = list(things)
    for class_index in range(len(STUFF)):
        mask = (instances == 0) & (stuff == class_index) & ~is_void
        if mask.any():
            segments.append(Segment(class_index, is_thing=False))
            positions[mask] = len(segments)
    return PanopticScene(image, positions, tuple(segments))


def _landscape(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return the index of the stuff at each pixel (H, W): sky, hills, and a plain with water."""
    height, width = size
    rows, columns = np.mgrid[:height, :width] / np.array(size).reshape(2, 1, 1)

    def wave(level: float, amplitude: float) -> np.ndarray:
        period, phase = rng.uniform(0.5, 1.5), rng.uniform(0, 2 * np.pi)
        return level + amplitude * np.sin(2 * np.pi * columns / period + phase)

    horizon = rng.uniform(0.25, 0.5)
    stuff = np.full(size, STUFF.index('meadow'))
    if rng.random() < 0.6:
        # a lake or the sea, on one side
        shore = wave(rng.uniform(0.35, 0.65), 0.08)
        side = rng.choice([-1, 1])
        stuff[side * (columns - shore - 0.3 * (rows - 0.7)) > 0] = STUFF.index('water')
    if rng.random() < 0.75:
        stuff[rows < wave(horizon + 0.12, 0.02)] = STUFF.index('hills')
    stuff[rows < wave(horizon, 0.06)] = STUFF.index('sky')
    return stuff


def _paint_stuff(rng: np.random.Generator, stuff: np.ndarray) -> np.ndarray:
    image = np.zeros((*stuff.shape, 3))
    for class_index, name in enumerate(STUFF):
        mask = stuff == class_index
        colour, amplitude = STUFF_LOOKS[name]
        tone = np.array(colour) + rng.normal(0, 10, 3) + rng.normal(0, 10)
        texture = random_texture(rng, stuff.shape, amplitude=amplitude)
        image[mask] = (tone + texture)[mask]
    return image


def _blot(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) of a blot."""
    side = min(size)
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    radii = side * rng.uniform(0.08, 0.15) * rng.uniform(0.7, 1.2, 14)
    centre = rng.uniform(0.15, 0.85, 2) * np.array(size[::-1])
    corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask.astype(bool)


def _draw_crowd(rng: np.random.Generator, image: np.ndarray, instances: np.ndarray) -> Segment:
    """Draw small shapes of a class beside each other as the first object."""
    size = instances.shape
    class_index = int(rng.integers(len(CLASSES)))
    outline = OUTLINES[CLASSES[class_index]]
    spacing = 0.09 * min(size)
    rows, columns = rng.integers(2, 4), rng.integers(4, 6)
    extent = spacing * np.array([columns, rows])
    corner = rng.uniform(0, 1, 2) * (np.array(size[::-1]) - extent)
    for row in range(rows):
        for column in range(columns):
            centre = corner + spacing * (np.array([column, row]) + rng.uniform(0.35, 0.65, 2))
            angle, radius = rng.uniform(-TILT, TILT), spacing * rng.uniform(0.42, 0.58)
            rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            mask = np.zeros(size, np.uint8)
            corners = np.round(outline @ rotation.T * radius + centre).astype(np.int32)
            cv2.fillPoly(mask, [corners], 1)
            instances[mask.astype(bool)] = 1
            _paint_object(rng, image, mask.astype(bool), class_index)
    return Segment(class_index, is_thing=True, is_crowd=True)


def _paint_object(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, class_index: int
) -> None:
    colour = random_colour(rng, class_index, image[mask].mean(0), distance=110)
    texture = random_texture(rng, mask.shape, amplitude=rng.uniform(0, 14))
    image[mask] = (colour + texture)[mask]
