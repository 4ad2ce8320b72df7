"""Pictures of attention maps: each over the image, with a title and a colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .attention_maps import AttentionMap
from .attention_views import ROLLOUT, SCALES
from .model_image import ModelImage

# perceptually uniform, and dark where values are small
COLOURS = 'inferno'
# views of one chosen point
POINT_VIEWS = ('query', 'points', ROLLOUT)
PANEL_INCHES = 3.2
# of more heads a picture could not be read
MAX_HEADS = 16


def draw_attention_maps(
    image: ModelImage,
    maps: Sequence[AttentionMap],
    *,
    at: tuple[float, float] | None = None,
    columns: int = 4,
    opacity: float = 0.65,
) -> np.ndarray:
    """Draw the image and each map over it.

    Titles name the layer, the view, and the size of the map with its stride in pixels of the
    input. A colour bar says what the colours are; each map has its own range. The image below a map
    is grey, so that all colours are the map's. The chosen point is marked on the views that have
    one. Factors of channels alone are a bar chart.

    Args:
        image: Image of :func:`mmrednet.analysis.model_image`.
        maps: Result of :func:`mmrednet.analysis.attention_maps` for this image.
        at: Chosen point (x, y) in pixels of the image. Default: None, its centre.
        columns: Number of panels in a row. Default: 4.
        opacity: Opacity of the maps, in [0, 1]. Default: 0.65.

    Returns:
        Picture of shape (H, W, 3), uint8, RGB.

    Raises:
        ValueError: There are no maps.
    """
    # imported here, since it takes a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not maps:
        raise ValueError('maps must have at least one map, got none.')
    panels = [panel for item in maps for panel in _panels(image, item)]
    columns = min(columns, len(panels) + 1)
    rows = math.ceil((len(panels) + 1) / columns)
    height, width = image.image.shape[:2]
    # a title above and a colour bar beside each panel
    panel_height = PANEL_INCHES * min(2.0, height / width) + 0.7
    figure = Figure((columns * (PANEL_INCHES + 0.6), rows * panel_height), layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    axes[0].imshow(image.image)
    axes[0].set_title('image', fontsize=9)
    marker = (width / 2, height / 2) if at is None else at
    if any(item.view in POINT_VIEWS for item in maps):
        _mark(axes[0], marker)
    for axis, (item, title, values) in zip(axes[1:], panels, strict=False):
        axis.set_title(title, fontsize=9)
        _draw_panel(figure, axis, image, item.view, values, opacity)
        if item.view in POINT_VIEWS:
            _mark(axis, marker)
    for axis in axes:
        # a bar chart keeps its axes
        if not axis.containers:
            axis.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panels(image: ModelImage, item: AttentionMap) -> list[tuple[AttentionMap, str, Tensor]]:
    """Return (map, title, values) of each panel of a view."""
    values = item.values[0]
    title = f'{item.layer or "operator"}\n{item.view}'
    if item.view == 'points':
        return [(item, f'{title}, {values.shape[1]} taps', values)]
    if values[0].numel() == 1:
        return [(item, f'{title}, {len(values)} channels', values)]
    title = f'{title}, {_scale(image, values)}'
    if len(values) == 1:
        return [(item, title, values)]
    panels = []
    for head, plane in enumerate(values[:MAX_HEADS]):
        panels.append((item, f'{title}, {head + 1} of {len(values)}', plane[None]))
    return panels


def _scale(image: ModelImage, values: Tensor) -> str:
    """Return the size of a map, and its stride on the model's input."""
    height, width = values.shape[-2:]
    stride = image.inputs.shape[-1] / width
    return f'{height} x {width}, stride {stride:.3g}'


def _draw_panel(
    figure: Any, axis: Any, image: ModelImage, view: str, values: Tensor, opacity: float
) -> None:
    scale = SCALES[view]
    if view == 'points':
        _draw_points(figure, axis, image, values, scale)
    elif values[0].numel() == 1 and len(values) > 1:
        _draw_bars(axis, values, scale)
    else:
        _draw_grey(axis, image)
        plane = values[0].float().numpy()
        if view == 'query':
            # positions without a tap show the image
            plane = np.ma.masked_equal(plane, 0)
        drawn = axis.imshow(
            plane,
            cmap=COLOURS,
            alpha=opacity,
            interpolation='nearest',
            extent=_extent(image),
        )
        figure.colorbar(drawn, ax=axis, shrink=0.8).set_label(scale, fontsize=8)
        _fit(axis, image)


def _draw_grey(axis: Any, image: ModelImage) -> None:
    axis.imshow(image.image.mean(2), cmap='gray', vmin=0, vmax=255)


def _extent(image: ModelImage) -> tuple[float, float, float, float]:
    """Return where a map over the input lies, in pixels of the image: it covers the padding too."""
    rows, columns = image.pitch()
    height, width = image.inputs.shape[-2:]
    return -0.5, columns * width - 0.5, rows * height - 0.5, -0.5


def _fit(axis: Any, image: ModelImage) -> None:
    """Cut off what lies beyond the image."""
    height, width = image.image.shape[:2]
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)


def _draw_points(figure: Any, axis: Any, image: ModelImage, values: Tensor, scale: str) -> None:
    _draw_grey(axis, image)
    _, right, bottom, _ = _extent(image)
    places = values.flatten(0, 1).float().numpy()
    rows, columns, factors = places[:, 0] * bottom, places[:, 1] * right, places[:, 2]
    drawn = axis.scatter(columns, rows, c=factors, cmap=COLOURS, s=18, edgecolors='white')
    figure.colorbar(drawn, ax=axis, shrink=0.8).set_label(scale, fontsize=8)
    _fit(axis, image)


def _draw_bars(axis: Any, values: Tensor, scale: str) -> None:
    factors = values[:, 0, 0].float().numpy()
    axis.bar(range(len(factors)), factors, width=1.0)
    axis.set_xlabel('channel', fontsize=8)
    axis.set_ylabel(scale, fontsize=8)
    axis.tick_params(labelsize=7)


def _mark(axis: Any, point: tuple[float, float]) -> None:
    # white on black can be seen on any background
    for colour, size, width in (('black', 11, 3.5), ('white', 9, 1.5)):
        axis.plot(*point, marker='+', color=colour, markersize=size, markeredgewidth=width)
