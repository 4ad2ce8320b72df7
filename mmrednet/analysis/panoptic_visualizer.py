"""What mmdet's hook, its inferencer and ``tools/image_demo.py`` draw of a panoptic detector."""

from __future__ import annotations

from typing import Any

import mmcv
import numpy as np
from mmengine.dist import master_only
from mmengine.visualization import Visualizer

from ..registry import VISUALIZERS
from .panels import grid, titled
from .panoptic_drawing import panoptic_legend, panoptic_panels

# narrower images are enlarged, so that titles and contours can be read
MIN_WIDTH = 240


@VISUALIZERS.register_module()
class PanopticVisualizer(Visualizer):
    """Draws an image, its panoptic truth and its prediction side by side, above a legend.

    mmdet's own visualizer compares a mask of each segment with the whole map, and reads ids of the
    truth as instance * 1000 + class.

    Args:
        **kwargs: Arguments of mmengine's Visualizer.
    """

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: Any = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        pred_score_thr: float = 0.3,
        step: int = 0,
    ) -> None:
        """Draw a data sample, as mmdet's visualizers do.

        Args:
            name: Name of the image.
            image: Image (H, W, 3), uint8, RGB.
            data_sample: Data sample of a panoptic detector. Default: None, the image alone.
            draw_gt: Whether to draw the truth. Default: True.
            draw_pred: Whether to draw the prediction. Default: True.
            show: Whether to open a window. Default: False.
            wait_time: Seconds that the window stays open; 0 waits for a key. Default: 0.
            out_file: Path of the picture. Default: None, the visualizer's backends store it.
            pred_score_thr: Not used: a panoptic map has one segment at each pixel. Default: 0.3.
            step: Iteration for the backends. Default: 0.
        """
        picture = self._picture(image, data_sample, draw_gt, draw_pred)
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(picture[..., ::-1], out_file)
        elif not show:
            self.add_image(name, picture, step)

    def _picture(self, image: np.ndarray, sample: Any, truth: bool, prediction: bool) -> np.ndarray:
        """Return the panels of a data sample side by side, and the legend below them."""
        image = mmcv.imrescale(image, max(1.0, MIN_WIDTH / image.shape[1]))
        labels: set[int] = set()
        panels = {'image': image}
        if sample is not None:
            panels, labels = panoptic_panels(
                image, sample.cpu(), self.dataset_meta, truth=truth, prediction=prediction
            )
        titles = [titled(panel, title) for title, panel in panels.items()]
        picture = grid(titles, len(titles))
        if not labels:
            return picture
        strip = panoptic_legend(labels, self.dataset_meta, picture.shape[1])
        return np.concatenate([picture, strip])
