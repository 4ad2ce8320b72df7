"""Multi-scale and flipped testing of Panoptic-DeepLab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseTTAModel
from mmengine.structures import BaseDataElement

from .detector import ImageMaps


class PanopticTTAModel(BaseTTAModel):
    """Average probabilities, heat maps and offsets over augmentations of an image.

    Each is resized and flipped back to the original image first. The panoptic map is made of the
    averages.

    Args:
        module: Config of the :class:`PanopticDeepLab`, or the model.
        data_preprocessor: Config of the data preprocessor. Default: that of the model.
    """

    # mmengine's base class has attributes that mypy cannot see
    module: Any

    def test_step(self, data: Any) -> Sequence[BaseDataElement]:
        """Return the data samples of a batch with predictions.

        Args:
            data: Batch with a list of augmentations in place of each entry.
        """
        keys = list(data)
        total: list[ImageMaps] = []
        samples: Sequence[BaseDataElement] = []
        count = len(data[keys[0]])
        for augmentation in range(count):
            batch = {key: data[key][augmentation] for key in keys}
            batch = self.module.data_preprocessor(batch, False)
            maps = self.module.predict_maps(batch['inputs'], batch['data_samples'])
            if augmentation == 0:
                total, samples = maps, batch['data_samples']
            else:
                pairs = zip(total, maps, strict=True)
                total = [ImageMaps(*(a + b for a, b in zip(*pair, strict=True))) for pair in pairs]
        for sample, sums in zip(samples, total, strict=True):
            self.module.add_prediction(sample, ImageMaps(*(x / count for x in sums)))
        return samples

    def merge_preds(self, data_samples_list: Any) -> Any:
        """Raise an error: panoptic maps cannot be averaged, see ``test_step``."""
        raise NotImplementedError('PanopticTTAModel averages the maps, in test_step.')
