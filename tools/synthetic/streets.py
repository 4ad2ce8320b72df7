"""Synthetic street scenes, drawn from a seed as polygons that occlude earlier ones.

The polygons alone define the label of every pixel, as in Cityscapes: every file of its format
follows from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .shapes import add_light, random_texture

Pixels = list[tuple[int, int]]
Polygon = list[tuple[float, float]]
# lower images show too little of persons and signs
MIN_HEIGHT = 64
# mean colours (RGB) of the labels; every object varies them
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
    'persongroup': (120, 70, 110),
}


@dataclass(frozen=True)
class StreetObject:
    """A labelled polygon.

    Args:
        label: Name of the label in Cityscapes.
        polygon: Corners (x, y) in pixels.
    """

    label: str
    polygon: Pixels


@dataclass(frozen=True)
class Street:
    """An image and its objects, from back to front.

    Args:
        image: Image (H, W, 3), uint8, RGB.
        objects: Objects in the order of drawing. Later ones occlude earlier ones.
    """

    image: np.ndarray
    objects: tuple[StreetObject, ...]


def draw_polygons(
    polygons: list[tuple[Pixels, int]], size: tuple[int, int], background: int = 0
) -> np.ndarray:
    """Return a map (H, W), int32, of polygons drawn on top of each other.

    It is pixel for pixel what the official scripts of Cityscapes draw.

    Args:
        polygons: Polygons and the value of each, from back to front.
        size: Height and width in pixels.
        background: Value where no polygon is. Default: 0.
    """
    image = Image.new('I', size[::-1], background)
    canvas = ImageDraw.Draw(image)
    for polygon, value in polygons:
        canvas.polygon(polygon, fill=value)
    return np.array(image, np.int32)


def make_street(
    rng: np.random.Generator, size: tuple[int, int] = (128, 256), *, groups: bool = False
) -> Street:
    """Draw a street in perspective: sky, houses, trees and ground, then signs, cars and persons.

    Args:
        rng: Generator of all random numbers, see :func:`scene_generator`.
        size: Height and width of the image in pixels. Default: (128, 256).
        groups: Whether some streets have a group of persons who are not told apart.
            Default: False.

    Raises:
        ValueError: The image is too small.
    """
    if min(size) < MIN_HEIGHT:
        raise ValueError(f'size must be at least {MIN_HEIGHT} x {MIN_HEIGHT}, got {size=}.')
    scene = _Painter(rng, size)
    scene.backdrop()
    scene.ground()
    if groups and rng.random() < 0.4:
        scene.group()
    # from the horizon, 0, to the lower edge, 1: closer objects occlude those behind
    for depth in np.sort(rng.uniform(0.08, 1, rng.integers(5, 12))):
        scene.thing(depth)
    if rng.random() < 0.3:
        scene.bonnet()
    return Street(add_light(rng, scene.image), tuple(scene.objects))


def _to_pixels(polygon: Polygon) -> Pixels:
    return [(round(x), round(y)) for x, y in polygon]


def _rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


class _Painter:
    """A scene while it is drawn.

    Args:
        rng: Generator of all random numbers.
        size: Height and width of the image in pixels.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, self.size = rng, size
        self.height, self.width = size
        self.image = np.zeros((*size, 3))
        self.objects: list[StreetObject] = []
        # row of the horizon and column of the vanishing point
        self.horizon = self.height * rng.uniform(0.4, 0.52)
        self.vanishing = self.width * rng.uniform(0.35, 0.65)

    def add(self, label: str, polygon: Polygon, **paint: float) -> None:
        """Draw an object and record its polygon.

        Args:
            label: Name of the label.
            polygon: Corners (x, y).
            **paint: Other arguments of :meth:`paint`.
        """
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
        """Fill polygons with a texture around a random colour.

        Args:
            polygons: Polygons to fill alike.
            colour: Mean of the colour.
            spread: Standard deviation of the brightness and of each channel. Default: 22.
            texture: Amplitude of the texture. Default: 12.
        """
        pixels = [(_to_pixels(polygon), 1) for polygon in polygons]
        mask = draw_polygons(pixels, self.size).astype(bool)
        tone = np.asarray(colour) + self.rng.normal(0, spread, 3) + self.rng.normal(0, spread)
        pattern = random_texture(self.rng, self.size, amplitude=texture)[mask] if texture else 0
        self.image[mask] = tone + pattern

    def backdrop(self) -> None:
        """Draw the sky, and houses and trees along the horizon."""
        self.add('sky', _rectangle(0, 0, self.width, self.height), texture=6)
        x = -self.rng.uniform(0, 0.1) * self.width
        while x < self.width:
            step = self.rng.uniform(0.08, 0.22) * self.width
            centre = x + step / 2
            # houses at the sides of the image are closer, and so taller
            offset = abs(centre - self.vanishing) / self.width
            top = self.horizon * (1 - self.rng.uniform(0.25, 0.6) - offset * 0.7)
            choice = self.rng.random()
            if choice < 0.55:
                self.house(x, step, max(top, -5))
            elif choice < 0.85:
                row = self.horizon * self.rng.uniform(0.55, 0.9)
                self.crown(centre, row, step * self.rng.uniform(0.5, 0.8))
            x += step * self.rng.uniform(0.85, 1)

    def house(self, x: float, width: float, top: float) -> None:
        """Draw a house with windows."""
        foot = self.horizon + 0.06 * self.height
        self.add('building', _rectangle(x, top, x + width, foot))
        pane = max(2, width / 9)
        windows = []
        for row in np.arange(top + pane, foot - 2 * pane, 2.5 * pane).tolist():
            for left in np.arange(x + pane, x + width - pane, 2.2 * pane).tolist():
                windows.append(_rectangle(left, row, left + pane, row + 1.3 * pane))
        self.paint(windows, (80, 90, 105), spread=8, texture=0)

    def crown(self, x: float, y: float, radius: float) -> None:
        """Draw the crown of a tree, down to the ground."""
        angles = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        radii = radius * self.rng.uniform(0.75, 1.1, 18)
        outline = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        self.add('vegetation', outline.tolist(), texture=30)

    def ground(self) -> None:
        """Draw grass, pavements and the street, which meet at the vanishing point."""
        self.add('terrain', _rectangle(0, self.horizon, self.width, self.height), texture=22)
        left = self.vanishing - self.width * self.rng.uniform(0.45, 0.8)
        right = self.vanishing + self.width * self.rng.uniform(0.45, 0.8)
        pavement = self.width * self.rng.uniform(0.15, 0.4)
        self.add('sidewalk', self._strip(left - pavement, right + pavement), texture=8)
        self.add('road', self._strip(left, right), texture=8)
        self.street = left, right
        for depth in (0.15, 0.35, 0.7):
            self.marking(depth, (left + right) / 2)

    def _strip(self, left: float, right: float) -> Polygon:
        """Return a strip of ground from the vanishing point to these columns at the lower edge."""
        return [
            (self.vanishing - 2, self.horizon),
            (self.vanishing + 2, self.horizon),
            (right, self.height),
            (left, self.height),
        ]

    def marking(self, depth: float, middle: float) -> None:
        """Draw a stroke of the line in the middle of the street.

        Args:
            depth: Depth of its far end.
            middle: Column of the line at the lower edge.
        """
        half_width = 3 * depth
        # the far end from left to right, then the close end from right to left
        corners = []
        for end, side in ((depth, -1), (depth, 1), (1.4 * depth, 1), (1.4 * depth, -1)):
            x = self.vanishing + (middle - self.vanishing) * end
            corners.append((x + side * half_width, self._row(end)))
        self.paint([corners], (210, 210, 205), spread=8, texture=0)

    def bonnet(self) -> None:
        """Draw the bonnet of the car that carries the camera."""
        top = round(self.height * self.rng.uniform(0.9, 0.96))
        self.add(
            'ego vehicle',
            [
                (self.width * 0.1, self.height),
                (self.width * 0.25, top),
                (self.width * 0.75, top),
                (self.width * 0.9, self.height),
            ],
        )

    def _row(self, depth: float) -> float:
        """Return the row on the ground at this depth: 0 is the horizon, 1 the lower edge."""
        return self.horizon + depth * (self.height - self.horizon)

    def thing(self, depth: float) -> None:
        """Draw a car, a person or a sign that stands at this depth."""
        y, choice = self._row(depth), self.rng.random()
        left, right = (self.vanishing + (side - self.vanishing) * depth for side in self.street)
        scale = self.height * depth
        if choice < 0.45:
            self.car(self.rng.uniform(left, right), y, scale * self.rng.uniform(0.4, 0.55))
        elif choice < 0.8:
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
        tyres = []
        for centre in (x - 0.36 * width, x + 0.36 * width):
            left, right = centre - 0.09 * height, centre + 0.09 * height
            tyres.append(_rectangle(left, y - 0.22 * height, right, y))
        self.paint(tyres, (25, 25, 28), spread=4, texture=0)

    def person(self, x: float, y: float, height: float) -> None:
        """Draw a person who stands or walks, with the feet on row y."""
        half_width, step = 0.16 * height, self.rng.uniform(0.05, 0.2) * height
        # right side from the head to the hand; half widths and heights of the person
        outline = [
            (-0.4, 1),
            (0.4, 1),
            (0.45, 0.87),
            (0.25, 0.83),
            (1, 0.78),
            (1, 0.45),
            (0.7, 0.45),
        ]
        right = [(x + across * half_width, y - up * height) for across, up in outline]
        left = [(x - across * half_width, y - up * height) for across, up in outline[:0:-1]]
        legs = [
            (x + step, y),
            (x + step - 0.5 * half_width, y),
            (x, y - 0.4 * height),
            (x - step + 0.5 * half_width, y),
            (x - step, y),
        ]
        self.add('person', [*right, *legs, *left], spread=40, texture=8)
        head = _rectangle(x - 0.4 * half_width, y - height, x + 0.4 * half_width, y - 0.87 * height)
        self.paint([head], (190, 150, 125), spread=15, texture=0)

    def group(self) -> None:
        """Draw persons in the distance as one outline, with a head for each."""
        depth = self.rng.uniform(0.2, 0.35)
        foot, height = self._row(depth), self.height * depth * self.rng.uniform(0.5, 0.6)
        step = 0.22 * height
        heads = int(self.rng.integers(4, 8))
        left = self.rng.uniform(0, self.width - 2 * heads * step)
        outline = [(left, foot)]
        for head in range(heads):
            x, top = left + 2 * head * step, foot - height * self.rng.uniform(0.9, 1)
            outline += [(x, top + 0.2 * height), (x + 0.5 * step, top), (x + 1.5 * step, top)]
        outline += [(left + 2 * heads * step, foot - 0.8 * height)]
        outline += [(left + 2 * heads * step, foot)]
        self.add('persongroup', outline, spread=40, texture=20)

    def sign(self, x: float, y: float, height: float) -> None:
        """Draw a traffic sign on its pole, with the foot on row y."""
        half_width, radius = max(1, 0.02 * height), 0.14 * height
        self.add('pole', _rectangle(x - half_width, y - height, x + half_width, y), texture=0)
        # a triangle, a square or an octagon
        corners = self.rng.choice([3, 4, 8])
        angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners + np.pi / 2
        plate = [(x + radius * np.cos(a), y - height + radius * np.sin(a)) for a in angles]
        self.add('traffic sign', plate, spread=12, texture=6)
