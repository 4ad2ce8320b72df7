"""Parts of pictures."""

from __future__ import annotations

import cv2
import numpy as np


def titled(panel: np.ndarray, title: str) -> np.ndarray:
    """Return (H, W, 3) uint8 with a title in its upper left corner."""
    panel = panel.copy()
    for colour, thickness in ((0, 3), (255, 1)):
        cv2.putText(
            panel,
            title,
            (6, 18),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.45,
            (colour,) * 3,
            thickness,
            cv2.LINE_AA,
        )
    return panel
