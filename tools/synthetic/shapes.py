"""Scenes of textured shapes that hide each other, made from a seed.

Which pixel belongs to which object is known exactly, so every annotation format can be written from
a :class:`Scene`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# fractions of the shorter image side: more than a factor of eight between the smallest and the
# largest diameter
DIAMETERS = (0.1, 0.85)
# an object is in the scene only while this fraction and this many of its pixels are seen
MIN_VISIBLE_FRACTION, MIN_VISIBLE_PIXELS = 0.6, 25
MIN_SIDE = 48
PLACEMENTS_TRIED = 20
# objects stand upright up to this angle, in radians
TILT = 0.35


@dataclass(frozen=True)
class Scene:
    """An image and the object that each of its pixels shows.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: (H, W) int32; 0 is the background, n the n-th object.
        classes: the index into ``CLASSES`` of the first object, the second, ...
        hidden: the fraction of each object that others hide.
    """

    image: np.ndarray
    instances: np.ndarray
    classes: tuple[int, ...]
    hidden: tuple[float, ...]


def _regular(corners: int, radii: tuple[float, ...] = (1.0,), *, turn: float = 0) -> np.ndarray:
    """Return a polygon (corners, 2) around the origin whose corners cycle through these radii, the
    first on top.
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
    """Return the random numbers of one image: they depend on nothing but its data set, split and
    index.
    """
    return np.random.default_rng([seed, *split.encode(), index])


def make_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = (128, 128),
    *,
    objects: tuple[int, int] = (2, 5),
) -> Scene:
    """Draw objects one upon another on a textured background, in a common light.

    Args:
        rng: the source of all that is random.
        size: (H, W) in pixels.
        objects: the least and the greatest number of objects to place; one for which no place is
            found where enough of everything stays visible is left out.

    Raises:
        ValueError: the image is too small, or ``objects`` is no range.
    """
    if min(size) < MIN_SIDE:
        raise ValueError(f'size must be at least {MIN_SIDE} x {MIN_SIDE}, got {size=}.')
    if not 1 <= objects[0] <= objects[1]:
        raise ValueError(
            f'objects must be (least, greatest) with 1 <= least <= greatest, got {objects=}.'
        )
    background = rng.uniform(40, 215, 3)
    image = background + random_texture(rng, size, amplitude=rng.uniform(4, 18))
    instances, areas, classes = np.zeros(size, np.int32), [0], []
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        kind = int(rng.integers(len(CLASSES)))
        mask = _place(rng, instances, areas, OUTLINES[CLASSES[kind]])
        if mask is None:
            continue
        classes.append(kind)
        areas.append(int(mask.sum()))
        instances[mask] = len(classes)
        paint = _colour(rng, kind, background) + random_texture(
            rng, size, amplitude=rng.uniform(0, 20)
        )
        image[mask] = paint[mask]
    seen = np.bincount(instances.ravel(), minlength=len(areas))
    hidden = tuple(1 - seen[index] / areas[index] for index in range(1, len(areas)))
    return Scene(add_light(rng, image), instances, tuple(classes), hidden)


def _place(
    rng: np.random.Generator, instances: np.ndarray, areas: list[int], outline: np.ndarray
) -> np.ndarray | None:
    """Return the mask of an object at a place where it and all before it stay visible; None if none
    was found.
    """
    height, width = instances.shape
    low, high = np.log(np.array(DIAMETERS) * min(height, width) / 2)
    for _ in range(PLACEMENTS_TRIED):
        radius, angle = np.exp(rng.uniform(low, high)), rng.uniform(-TILT, TILT)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = rng.uniform(0, 1, 2) * (np.array([width, height]) - 2 * radius) + radius
        mask = np.zeros(instances.shape, np.uint8)
        # four binary digits of sub-pixel precision
        corners = np.round(16 * (outline @ turn.T * radius + center - 0.5)).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1, shift=4)
        seen = np.bincount(np.where(mask, 0, instances).ravel(), minlength=len(areas))[1:]
        needed = np.maximum(MIN_VISIBLE_FRACTION * np.array(areas[1:]), MIN_VISIBLE_PIXELS)
        if mask.sum() >= MIN_VISIBLE_PIXELS and (seen >= needed).all():
            return mask.astype(bool)
    return None


def _colour(
    rng: np.random.Generator,
    kind: int,
    background: np.ndarray,
    *,
    spread: float = 25,
    distance: float = 130,
) -> np.ndarray:
    """Return a colour that a class prefers, as things do: hues of the classes overlap, and differ
    from the background.

    Args:
        rng: the source of all that is random.
        kind: the class.
        background: the colour to differ from.
        spread: standard deviation of the hue, in degrees; the classes stand 360 / 5 degrees apart.
        distance: the least Euclidean distance to the background.
    """
    while True:
        hue = (360 * kind / len(CLASSES) + rng.normal(0, spread)) % 360
        saturation, value = rng.uniform(0.4, 1), rng.uniform(0.35, 1)
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue / 360, saturation, value))
        if np.linalg.norm(colour - background) >= distance:
            return colour


def random_texture(
    rng: np.random.Generator, size: tuple[int, int], *, amplitude: float
) -> np.ndarray:
    """Return (H, W, 3) of a random pattern between -amplitude and amplitude in random colours."""
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
    """Return (H, W) of smooth noise: octaves of random grids, each finer one half as strong."""
    result = np.zeros(size)
    for octave in range(3):
        grid = rng.uniform(-1, 1, (4 << octave, 4 << octave))
        result += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.clip(result / 1.2, -1, 1)


def add_light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return the image under a light that falls off in one direction, with the noise of a camera,
    as uint8.
    """
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, height)[:, None] * np.sin(angle) + np.linspace(-1, 1, width) * np.cos(
        angle
    )
    light = rng.uniform(0.75, 1.1) * (1 + 0.2 * ramp)
    return np.clip(
        np.round(image * light[..., None] + rng.normal(0, 4, image.shape)), 0, 255
    ).astype(np.uint8)
