"""Panoptic-DeepLab as a function of the image alone, for torch.export and ONNX."""

from __future__ import annotations

from torch import Tensor, nn

from .detector import ImageMaps, PanopticDeepLab


class PanopticInference(nn.Module):
    """Map an image to its panoptic map and segments, with tensors of fixed sizes.

    Args:
        model: Detector in eval mode.
    """

    def __init__(self, model: PanopticDeepLab) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map a normalised image (1, 3, H, W) to ids and segments.

        Returns:
            The ids (H, W), where the class count is void, and category, area and score of each
            segment (K + C,). Segments of area 0 do not exist.
        """
        predictions = self.model._forward(image)
        semantic, heat, offset = self.model.upsample(predictions, image.shape[2:])
        maps = ImageMaps(semantic[0].softmax(0), heat[0, 0], offset[0])
        result = self.model.merger(*maps)
        ids = result.ids(self.model.num_classes)
        return ids, result.category, result.area, result.score
