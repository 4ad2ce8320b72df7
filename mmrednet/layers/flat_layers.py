"""Layers for sequences, applied to maps as they lie in memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.onednn import pointwise_conv2d
from .plain import is_plain


def pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a ``Conv1d`` of kernel size 1 to maps (B, C, H, W), in their layout.

    A module that is not plain is called, with maps as sequences (B, C, H * W).
    """
    if is_plain(conv, nn.Conv1d):
        layer: Any = conv
        return pointwise_conv2d(x, layer.weight.unsqueeze(3), layer.bias)
    return conv(x.flatten(2)).unflatten(2, x.shape[2:])


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a ``BatchNorm1d`` to maps (B, C, H, W), in their layout.

    A module that is not plain is called, with maps as sequences (B, C, H * W).
    """
    if is_plain(norm, nn.Identity):
        # a sequence and back would be views that hide the layout of one image, see join_groups
        return x
    if not is_plain(norm, nn.BatchNorm1d):
        return norm(x.flatten(2)).unflatten(2, x.shape[2:])
    assert isinstance(norm, nn.BatchNorm1d)
    momentum = norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        # without a momentum, torch keeps the mean over all batches
        if momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    uses_batch = norm.training or norm.running_mean is None
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        uses_batch,
        momentum or 0.0,
        norm.eps,
    )
