"""Batch norms in eval mode, which are affine maps of each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .plain import BATCH_NORMS, is_plain


def is_fixed(norm: Any) -> bool:
    """Return whether a module is a plain batch norm that does not look at its batch."""
    if not is_plain(norm, nn.BatchNorm1d, *BATCH_NORMS):
        return False
    # a norm without running statistics looks at its batch in eval mode too
    return not norm.training and norm.running_mean is not None and norm.affine


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand of a batch norm in eval mode, in float32 or wider."""
    mean, variance = norm.running_mean, norm.running_var
    dtype = torch.promote_types(variance.dtype, torch.float32)
    scale = (variance.to(dtype) + norm.eps).rsqrt() * norm.weight.detach()
    return scale, norm.bias.detach() - mean * scale
