"""Panels of a picture: titles, rows, a legend, and what a model predicts for an item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch


def check_indices(indices: Sequence[int]) -> None:
    """Check that there are images to draw.

    Raises:
        ValueError: There are no indices.
    """
    if not len(indices):
        raise ValueError('indices must name at least one image, got none.')


def grid(panels: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return panels (h, w, 3) of any sizes in rows, filled up with white."""
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    widths = [max(panel.shape[1] for panel in panels[column::columns]) for column in range(columns)]
    strips = []
    for row in rows:
        height = max(panel.shape[0] for panel in row)
        strip = np.full((height, sum(widths), 3), 255, np.uint8)
        left = 0
        for panel, width in zip(row, widths, strict=False):
            strip[: panel.shape[0], left : left + panel.shape[1]] = panel
            left += width
        strips.append(strip)
    return np.concatenate(strips)


def legend(entries: Sequence[tuple[str, np.ndarray]], width: int) -> np.ndarray:
    """Return a white strip (h, width, 3) with a square of its colour before each name."""
    font, line, square = cv2.FONT_HERSHEY_SIMPLEX, 22, 14
    positions = []
    left, top = 6, 4
    for name, _ in entries:
        extent = square + 10 + cv2.getTextSize(name, font, 0.45, 1)[0][0] + 10
        # a name that does not fit begins a line
        if left > 6 and left + extent > width:
            left, top = 6, top + line
        positions.append((left, top))
        left += extent
    strip = np.full((top + line, width, 3), 255, np.uint8)
    for (name, colour), (left, top) in zip(entries, positions, strict=True):
        strip[top : top + square, left : left + square] = colour
        place = (left + square + 6, top + square - 2)
        cv2.putText(strip, name, place, font, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def predict_item(model: Any, item: dict[str, Any]) -> Any:
    """Return the data sample of one item of a data set, with the model's predictions."""
    batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    with torch.no_grad():
        return model.test_step(batch)[0].cpu()


def titled(panel: np.ndarray, title: str) -> np.ndarray:
    """Return a copy of (H, W, 3), uint8, with a title in its upper left corner."""
    panel = panel.copy()
    # white on a wider black line can be read on any background
    for grey, thickness in ((0, 3), (255, 1)):
        colour = (grey, grey, grey)
        cv2.putText(
            panel,
            title,
            (6, 18),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.45,
            colour,
            thickness,
            cv2.LINE_AA,
        )
    return panel
