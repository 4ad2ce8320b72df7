"""Mean and variance of features: sums over tiles, and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .vector_tiles import vector

# a gradient of the variance, one of the mean, and the mean, all (F,)
Slope = tuple[Tensor, Tensor, Tensor]


@triton.jit
def merged(count, mean, deviation, x, valid):
    """Add valid rows of x [P, C] to a number of rows, their mean and squared deviations.

    The deviations are those from the mean of their own tile (Chan et al., 1979).
    """
    mask = valid[:, None]
    number = tl.sum(valid.to(tl.float32), 0)
    tile_mean = tl.sum(tl.where(mask, x, 0.0), 0) / number
    difference = tl.where(mask, x - tile_mean[None, :], 0.0)
    step = tile_mean - mean
    share = number / (count + number)
    squares = tl.sum(difference * difference, 0) + step * step * (count * share)
    return count + number, mean + step * share, deviation + squares


@triton.jit
def moment_gradients(x, valid, slope, channel, end: tl.constexpr):
    """Return the gradients [P, C] of features from those of their mean and variance."""
    per_deviation = vector(slope[0], channel, end)[None, :]
    constant = vector(slope[1], channel, end)[None, :]
    deviation = x - vector(slope[2], channel, end)[None, :]
    return tl.where(valid[:, None], constant + per_deviation * deviation, 0.0)


def combined(counts: Tensor, means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (F,) of parts, NaN if there are none.

    Args:
        counts: Numbers of features (T,) of the parts.
        means: Means (T, F).
        deviations: Sums of squared deviations (T, F) from the means of the parts.
    """
    share = (counts.double() / counts.double().sum())[:, None]
    wide = means.double()
    mean = (share * wide).sum(0)
    between = (share * (wide - mean).square()).sum(0)
    variance = between + deviations.double().sum(0) / counts.double().sum()
    if len(counts) == 0:
        mean, variance = (torch.full_like(x, float('nan')) for x in (mean, variance))
    return mean.to(means.dtype), variance.to(means.dtype)


def slope_of(grads: Sequence[Tensor], mean: Tensor, count: int) -> Slope:
    """Return what the gradient of a feature depends on.

    The gradient of feature x is grad_mean / count + 2 grad_variance / count * (x - mean).

    Args:
        grads: Gradients of mean and variance.
        mean: The mean.
        count: Number of features of a channel.
    """
    # an empty batch has no features
    divisor = max(1, count)
    grad_mean, grad_variance = (grad.float() / divisor for grad in grads)
    return (2 * grad_variance).contiguous(), grad_mean.contiguous(), mean.float().contiguous()
