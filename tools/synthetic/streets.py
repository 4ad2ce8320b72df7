"""Street scenes made from a seed, as polygons that hide each other in the order in which they are
drawn.

The polygons alone say which pixel belongs to what, as in Cityscapes: every file of its format
    follows from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .shapes import add_light, random_texture

Pixels = list[tuple[int, int]]
Polygon = list[tuple[float, float]]
MIN_HEIGHT = 64
# mean colours (RGB) of what is drawn; every scene and object varies them
COLOURS = {
    'sky': (150, 180, 215),
    'building': (135, 115, 105),
    'vegetation': (60, 100, 50),
    'terrain': (120, 150, 85),
    'road': (95, 92, 95),
    'sidewalk': (165, 155, 155),
    'pole': (80, 80, 85),
    'traffic sign': (200, 50, 45),
    'person': (120, 70, 110),
    'car': (70, 80, 140),
    'ego vehicle': (45, 45, 50),
}


@dataclass(frozen=True)
class StreetObject:
    """What a polygon shows.

    Args:
        label: its name in Cityscapes.
        polygon: corners (x, y) in pixels.
    """

    label: str
    polygon: Pixels


@dataclass(frozen=True)
class Street:
    """An image and its objects, from back to front.

    Args:
        image: (H, W, 3) uint8, RGB.
        objects: those behind come first; whatever is drawn later hides them.
    """

    image: np.ndarray
    objects: tuple[StreetObject, ...]


def draw_polygons(
    polygons: list[tuple[Pixels, int]], size: tuple[int, int], background: int = 0
) -> np.ndarray:
    """Return (H, W) int32 of the values of polygons drawn one upon another, pixel for pixel as
    Cityscapes does.
    """
    image = Image.new('I', size[::-1], background)
    canvas = ImageDraw.Draw(image)
    for polygon, value in polygons:
        canvas.polygon(polygon, fill=value)
    return np.array(image, np.int32)


def make_street(rng: np.random.Generator, size: tuple[int, int] = (128, 256)) -> Street:
    """Draw a street in perspective: sky, houses, trees, ground, then signs, cars and persons from
    far to near.

    Args:
        rng: the source of all that is random, see :func:`scene_generator`.
        size: (H, W) in pixels.

    Raises:
        ValueError: the image is too small.
    """
    if min(size) < MIN_HEIGHT:
        raise ValueError(f'size must be at least {MIN_HEIGHT} x {MIN_HEIGHT}, got {size=}.')
    scene = _Painter(rng, size)
    scene.backdrop()
    scene.ground()
    for depth in np.sort(rng.uniform(0.08, 1, rng.integers(5, 12))):
        scene.thing(depth)
    if rng.random() < 0.3:
        height, width = size
        top = round(height * rng.uniform(0.9, 0.96))
        scene.add(
            'ego vehicle',
            [
                (round(width * 0.1), height),
                (round(width * 0.25), top),
                (round(width * 0.75), top),
                (round(width * 0.9), height),
            ],
        )
    return Street(add_light(rng, scene.image), tuple(scene.objects))


def _to_pixels(polygon: Polygon) -> Pixels:
    return [(round(x), round(y)) for x, y in polygon]


def _rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


class _Painter:
    """A scene while it is drawn."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, self.size = rng, size
        self.height, self.width = size
        self.image = np.zeros((*size, 3))
        self.objects: list[StreetObject] = []
        # row of the horizon, column where the street vanishes
        self.horizon = self.height * rng.uniform(0.4, 0.52)
        self.vanishing = self.width * rng.uniform(0.35, 0.65)

    def add(self, label: str, polygon: Polygon, **paint: float) -> None:
        """Draw an object and keep its polygon."""
        self.objects.append(StreetObject(label, _to_pixels(polygon)))
        self.paint([polygon], COLOURS[label], **paint)

    def paint(
        self,
        polygons: list[Polygon],
        colour: tuple[int, int, int],
        *,
        spread: float = 22,
        texture: float = 12,
    ) -> None:
        """Colour the inside of polygons, in a colour near the one given."""
        mask = draw_polygons([(_to_pixels(polygon), 1) for polygon in polygons], self.size).astype(
            bool
        )
        tone = np.asarray(colour) + self.rng.normal(0, spread, 3) + self.rng.normal(0, spread)
        pattern = random_texture(self.rng, self.size, amplitude=texture)[mask] if texture else 0
        self.image[mask] = tone + pattern

    def backdrop(self) -> None:
        """Draw the sky, and houses and trees along the horizon."""
        self.add('sky', _rectangle(0, 0, self.width, self.height), texture=6)
        x = -self.rng.uniform(0, 0.1) * self.width
        while x < self.width:
            step = self.rng.uniform(0.08, 0.22) * self.width
            far = abs(x + step / 2 - self.vanishing) / self.width
            top = self.horizon * (1 - self.rng.uniform(0.25, 0.6) - far * 0.7)
            kind = self.rng.random()
            if kind < 0.55:
                self.house(x, step, max(top, -5))
            elif kind < 0.85:
                self.crown(
                    x + step / 2,
                    self.horizon * self.rng.uniform(0.55, 0.9),
                    step * self.rng.uniform(0.5, 0.8),
                )
            x += step * self.rng.uniform(0.85, 1)

    def house(self, x: float, width: float, top: float) -> None:
        """Draw a house with windows."""
        foot = self.horizon + 0.06 * self.height
        self.add('building', _rectangle(x, top, x + width, foot))
        pane = max(2, width / 9)
        windows = [
            _rectangle(left, row, left + pane, row + 1.3 * pane)
            for row in np.arange(top + pane, foot - 2 * pane, 2.5 * pane).tolist()
            for left in np.arange(x + pane, x + width - pane, 2.2 * pane).tolist()
        ]
        self.paint(windows, (80, 90, 105), spread=8, texture=0)

    def crown(self, x: float, y: float, radius: float) -> None:
        """Draw the crown of a tree, down to the ground."""
        angles = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        radii = radius * self.rng.uniform(0.75, 1.1, 18)
        self.add(
            'vegetation',
            [(x + r * np.cos(a), y + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)],
            texture=30,
        )

    def ground(self) -> None:
        """Draw grass, pavements and the street with its markings, which all meet where the street
        vanishes.
        """
        edge = self.horizon
        self.add('terrain', _rectangle(0, edge, self.width, self.height), texture=22)
        left = self.vanishing - self.width * self.rng.uniform(0.45, 0.8)
        right = self.vanishing + self.width * self.rng.uniform(0.45, 0.8)
        pavement = self.width * self.rng.uniform(0.15, 0.4)
        self.add(
            'sidewalk',
            [
                (self.vanishing - 2, edge),
                (self.vanishing + 2, edge),
                (right + pavement, self.height),
                (left - pavement, self.height),
            ],
            texture=8,
        )
        self.add(
            'road',
            [
                (self.vanishing - 2, edge),
                (self.vanishing + 2, edge),
                (right, self.height),
                (left, self.height),
            ],
            texture=8,
        )
        self.street = left, right
        middle = (left + right) / 2
        for near in (0.15, 0.35, 0.7):
            far, y, wide = near * 1.4, self._row(near), 3 * near
            x, x_far = (self.vanishing + (middle - self.vanishing) * depth for depth in (near, far))
            marking = [
                (x - wide, y),
                (x + wide, y),
                (x_far + wide, self._row(far)),
                (x_far - wide, self._row(far)),
            ]
            self.paint([marking], (210, 210, 205), spread=8, texture=0)

    def _row(self, depth: float) -> float:
        """Return the row on the ground at this depth: 0 is the horizon, 1 the lower edge."""
        return self.horizon + depth * (self.height - self.horizon)

    def thing(self, depth: float) -> None:
        """Draw a car, a person or a sign that stands at this depth."""
        y, kind = self._row(depth), self.rng.random()
        left, right = (self.vanishing + (side - self.vanishing) * depth for side in self.street)
        scale = self.height * depth
        if kind < 0.45:
            self.car(self.rng.uniform(left, right), y, scale * self.rng.uniform(0.4, 0.55))
        elif kind < 0.8:
            x = self.rng.uniform(left - 0.3 * scale, right + 0.3 * scale)
            self.person(x, y, scale * self.rng.uniform(0.45, 0.6))
        else:
            x = self.rng.choice([left - 0.1 * scale, right + 0.1 * scale])
            self.sign(x, y, scale * self.rng.uniform(0.7, 1.1))

    def car(self, x: float, y: float, height: float) -> None:
        """Draw a car from behind or from the side, with its wheels on row y."""
        width = height * self.rng.choice([1.25, 2.3])
        roof, waist = y - height, y - 0.55 * height
        self.add(
            'car',
            [
                (x - 0.3 * width, roof),
                (x + 0.3 * width, roof),
                (x + 0.42 * width, waist),
                (x + 0.5 * width, waist),
                (x + 0.5 * width, y),
                (x - 0.5 * width, y),
                (x - 0.5 * width, waist),
                (x - 0.42 * width, waist),
            ],
            spread=45,
            texture=5,
        )
        glass = [
            (x - 0.26 * width, roof + 0.1 * height),
            (x + 0.26 * width, roof + 0.1 * height),
            (x + 0.34 * width, waist),
            (x - 0.34 * width, waist),
        ]
        self.paint([glass], (60, 70, 80), spread=10, texture=4)
        tyres = [
            _rectangle(
                x + side * width - 0.09 * height,
                y - 0.22 * height,
                x + side * width + 0.09 * height,
                y,
            )
            for side in (-0.36, 0.36)
        ]
        self.paint(tyres, (25, 25, 28), spread=4, texture=0)

    def person(self, x: float, y: float, height: float) -> None:
        """Draw a person who stands or walks, with the feet on row y."""
        wide, step = 0.16 * height, self.rng.uniform(0.05, 0.2) * height
        outline = [
            (-0.4, 1),
            (0.4, 1),
            (0.45, 0.87),
            (0.25, 0.83),
            (1, 0.78),
            (1, 0.45),
            (0.7, 0.45),
        ]
        right = [(x + a * wide, y - b * height) for a, b in outline]
        left = [(x - a * wide, y - b * height) for a, b in outline[:0:-1]]
        self.add(
            'person',
            [
                *right,
                (x + step, y),
                (x + step - 0.5 * wide, y),
                (x, y - 0.4 * height),
                (x - step + 0.5 * wide, y),
                (x - step, y),
                *left,
            ],
            spread=40,
            texture=8,
        )
        head = _rectangle(x - 0.4 * wide, y - height, x + 0.4 * wide, y - 0.87 * height)
        self.paint([head], (190, 150, 125), spread=15, texture=0)

    def sign(self, x: float, y: float, height: float) -> None:
        """Draw a traffic sign on its pole, with the foot on row y."""
        wide, plate = max(1, 0.02 * height), 0.14 * height
        self.add('pole', _rectangle(x - wide, y - height, x + wide, y), texture=0)
        corners = self.rng.choice([3, 4, 8])
        angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners + np.pi / 2
        self.add(
            'traffic sign',
            [(x + plate * np.cos(a), y - height + plate * np.sin(a)) for a in angles],
            spread=12,
            texture=6,
        )
