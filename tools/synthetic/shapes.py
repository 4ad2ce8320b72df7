"""Synthetic scenes of textured shapes that occlude each other, drawn from a seed.

The object at each pixel is known exactly, so a :class:`Scene` can be written in any annotation
format.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# Diameters in fractions of the shorter side. A factor of eight needs several levels of a pyramid.
DIAMETERS = (0.1, 0.85)
# An object that shows less than this is neither found nor fairly missed, so no placement may leave
# one behind.
MIN_VISIBLE_FRACTION, MIN_VISIBLE_PIXELS = 0.6, 25
# in smaller images many objects would have fewer pixels than that
MIN_SIDE = 48
MAX_TRIES = 20
# greatest angle to the upright, in radians; a square turned by 45 degrees would be a diamond
TILT = 0.35


@dataclass(frozen=True)
class Scene:
    """An image and the object at each of its pixels.

    Args:
        image: Image (H, W, 3), uint8, RGB.
        instances: Map (H, W), int32; 0 is the background, n the n-th object.
        classes: Index into ``CLASSES`` of each object.
        hidden: Fraction of each object that others occlude.
    """

    image: np.ndarray
    instances: np.ndarray
    classes: tuple[int, ...]
    hidden: tuple[float, ...]


def _regular(corners: int, radii: tuple[float, ...] = (1.0,), *, turn: float = 0) -> np.ndarray:
    """Return a polygon (corners, 2) around the origin with one corner on top.

    Args:
        corners: Number of corners.
        radii: Distances of the corners from the origin, in turn. Default: (1,).
        turn: Angle to turn the polygon by, in steps between corners. Default: 0.
    """
    angles = 2 * np.pi * (np.arange(corners) + turn) / corners
    return np.resize(radii, corners)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)


def _cross(half: float = 0.3) -> np.ndarray:
    arm = np.array([[1, -half], [1, half], [half, half]])
    turns = [np.array([[0, -1], [1, 0]]), -np.eye(2), np.array([[0, 1], [-1, 0]])]
    return np.concatenate([arm, *(arm @ turn.T for turn in turns)])


OUTLINES = {
    'circle': _regular(48),
    'square': _regular(4, turn=0.5),
    'triangle': _regular(3),
    'star': _regular(10, (1.0, 0.42)),
    'cross': _cross(),
}
CLASSES = tuple(OUTLINES)


def scene_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator of one image.

    It depends on the seed, the split and the index alone, so that a longer data set begins with the
    images of a shorter one.
    """
    return np.random.default_rng([seed, *split.encode(), index])


def make_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = (128, 128),
    *,
    objects: tuple[int, int] = (2, 5),
) -> Scene:
    """Draw objects on top of each other on a textured background, in a common light.

    Args:
        rng: Generator of all random numbers.
        size: Height and width of the image in pixels. Default: (128, 128).
        objects: Least and greatest number of objects. One that would occlude too much of another,
            wherever it is tried, is left out. Default: (2, 5).

    Raises:
        ValueError: The image is too small, or ``objects`` is no range.
    """
    check_scene(size, objects)
    background = rng.uniform(40, 215, 3)
    image = background + random_texture(rng, size, amplitude=rng.uniform(4, 18))
    instances = np.zeros(size, np.int32)
    classes: list[int] = []
    # areas before occlusion, beginning with the background's, which is not needed
    areas = [0]
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        class_index = int(rng.integers(len(CLASSES)))
        mask = place_object(rng, instances, areas, OUTLINES[CLASSES[class_index]])
        if mask is None:
            continue
        classes.append(class_index)
        areas.append(int(mask.sum()))
        instances[mask] = len(classes)
        colour = random_colour(rng, class_index, background)
        paint = colour + random_texture(rng, size, amplitude=rng.uniform(0, 20))
        image[mask] = paint[mask]
    visible = np.bincount(instances.ravel(), minlength=len(areas))
    hidden = 1 - visible[1:] / np.array(areas[1:])
    return Scene(add_light(rng, image), instances, tuple(classes), tuple(hidden.tolist()))


def check_scene(size: tuple[int, int], objects: tuple[int, int]) -> None:
    """Check the size of a scene and the range of its number of objects.

    Raises:
        ValueError: The image is too small, or ``objects`` is no range.
    """
    if min(size) < MIN_SIDE:
        raise ValueError(f'size must be at least {MIN_SIDE} x {MIN_SIDE}, got {size=}.')
    if not 1 <= objects[0] <= objects[1]:
        raise ValueError(
            f'objects must be (least, greatest) with 1 <= least <= greatest, got {objects=}.'
        )


def place_object(
    rng: np.random.Generator,
    instances: np.ndarray,
    areas: list[int],
    outline: np.ndarray,
    *,
    diameters: tuple[float, float] = DIAMETERS,
) -> np.ndarray | None:
    """Return the mask of an object where it and all earlier ones stay visible.

    Args:
        rng: Generator of all random numbers.
        instances: Map of the earlier objects, see :class:`Scene`.
        areas: Area of the background and of each earlier object before occlusion.
        outline: Polygon (corners, 2) of radius 1 around the origin.
        diameters: Least and greatest diameter in fractions of the shorter side.
            Default: ``DIAMETERS``.

    Returns:
        A mask (H, W), or None if no try succeeded.
    """
    height, width = instances.shape
    # uniform on a logarithmic scale: as many small as large objects
    low, high = np.log(np.array(diameters) * min(height, width) / 2)
    needed = np.maximum(MIN_VISIBLE_FRACTION * np.array(areas[1:]), MIN_VISIBLE_PIXELS)
    for _ in range(MAX_TRIES):
        radius, angle = np.exp(rng.uniform(low, high)), rng.uniform(-TILT, TILT)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = rng.uniform(0, 1, 2) * (np.array([width, height]) - 2 * radius) + radius
        # four binary digits of sub-pixel precision; pixel centres are at one half
        corners = np.round(16 * (outline @ rotation.T * radius + centre - 0.5)).astype(np.int32)
        mask = np.zeros(instances.shape, np.uint8)
        cv2.fillPoly(mask, [corners], 1, shift=4)
        uncovered = np.where(mask, 0, instances)
        visible = np.bincount(uncovered.ravel(), minlength=len(areas))[1:]
        if mask.sum() >= MIN_VISIBLE_PIXELS and (visible >= needed).all():
            return mask.astype(bool)
    return None


def random_colour(
    rng: np.random.Generator,
    class_index: int,
    background: np.ndarray,
    *,
    spread: float = 25,
    distance: float = 130,
) -> np.ndarray:
    """Return a random colour whose hue depends on the class, unlike the background.

    The hues of the classes overlap: a detector cannot tell classes by colour alone.

    Args:
        rng: Generator of all random numbers.
        class_index: Index of the class.
        background: Colour of the background.
        spread: Standard deviation of the hue, in degrees. The means of the classes are 360 / 5
            degrees apart. Default: 25.
        distance: Least Euclidean distance to the background. Default: 130.
    """
    mean_hue = 360 * class_index / len(CLASSES)
    while True:
        hue = (mean_hue + rng.normal(0, spread)) % 360
        saturation, value = rng.uniform(0.4, 1), rng.uniform(0.35, 1)
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue / 360, saturation, value))
        if np.linalg.norm(colour - background) >= distance:
            return colour


def random_texture(
    rng: np.random.Generator, size: tuple[int, int], *, amplitude: float
) -> np.ndarray:
    """Return a random pattern (H, W, 3) in a random colour: noise, stripes or a checkerboard.

    Args:
        rng: Generator of all random numbers.
        size: Height and width in pixels.
        amplitude: Greatest absolute value.
    """
    rows, columns = np.mgrid[: size[0], : size[1]]
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 24)
    along = 2 * np.pi / period * (np.cos(angle) * columns + np.sin(angle) * rows)
    across = 2 * np.pi / period * (-np.sin(angle) * columns + np.cos(angle) * rows)
    patterns: list[Callable[[], np.ndarray]] = [
        lambda: _noise(rng, size),
        lambda: np.sin(along),
        lambda: np.sign(np.sin(along) * np.sin(across)),
    ]
    pattern = patterns[rng.integers(len(patterns))]()
    return amplitude * pattern[..., None] * rng.uniform(-1, 1, 3)


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return smooth noise (H, W): octaves of random grids, each finer one half as strong."""
    result = np.zeros(size)
    for octave in range(3):
        grid = rng.uniform(-1, 1, (4 << octave, 4 << octave))
        result += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.clip(result / 1.2, -1, 1)


def add_light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return an image as uint8, with light that falls off in one direction and camera noise."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    ramp = rows * np.sin(angle) + columns * np.cos(angle)
    light = rng.uniform(0.75, 1.1) * (1 + 0.2 * ramp)
    noise = rng.normal(0, 4, image.shape)
    return np.clip(np.round(image * light[..., None] + noise), 0, 255).astype(np.uint8)
