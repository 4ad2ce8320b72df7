"""Two operators of detectors that torch lacks: each is one node of ONNX.

The compiled library has both for float32 on a CPU, and defines them for processes without mmrednet.
Without it mmcv's operators serve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ..ops import _native

if _native.loaded:
    # they are defined here, with functions for tensors without data
    torch.ops.mmrednet_native.release_detection_schemas()


@custom_op('mmrednet::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    """Suppress boxes that overlap a box of a higher score.

    Args:
        boxes: Tensor (N, 4) of x1, y1, x2, y2.
        scores: Tensor (N,).
        threshold: Overlap, as intersection over union, above which a box is suppressed.
        limit: Largest number of boxes that are kept.

    Returns:
        Indices of the boxes that are kept, by descending score.
    """
    from mmcv import ops

    # mmcv's operator refuses an empty tensor
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    return ops.nms(boxes.contiguous(), scores.contiguous(), threshold)[1][:limit].clone()


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    # without a bound, the products of sizes that torch checks would not fit into an int64 of ONNX
    size = torch.library.get_ctx().new_dynamic_size(min=0, max=limit)
    return boxes.new_empty(size, dtype=torch.int64)


@custom_op('mmrednet::roi_align', mutates_args=())
def roi_align(
    features: Tensor,
    boxes: Tensor,
    size: int,
    scale: float,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Average a feature map over the cells of boxes (He et al., ICCV 2017).

    Args:
        features: Tensor (1, C, H, W).
        boxes: Tensor (N, 4) of x1, y1, x2, y2 in pixels of the image.
        size: Rows and columns of the result.
        scale: Ratio of the feature map to the image.
        samples: Number of samples along each axis of a cell; 0 adapts it to the size of the box.
        aligned: If True, the centres of pixels lie at half coordinates.

    Returns:
        (N, C, size, size).
    """
    from mmcv import ops

    rois = torch.nn.functional.pad(boxes, (1, 0))
    if len(rois) == 0:
        return features.new_zeros(0, features.shape[1], size, size)
    return ops.roi_align(features.contiguous(), rois, size, scale, samples, 'avg', aligned)


@roi_align.register_fake
def _(features: Tensor, boxes: Tensor, size: int, *_: Any) -> Tensor:
    return features.new_empty(boxes.shape[0], features.shape[1], size, size)
