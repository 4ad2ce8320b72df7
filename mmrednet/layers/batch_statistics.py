"""Mean and variance of a batch that comes in chunks and lies on several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Moments(NamedTuple):
    """Statistics of the channels of a part of a batch.

    Args:
        mean: Mean of each channel, of shape (C,).
        variance: Biased variance of each channel, of shape (C,).
        elements: Number of elements of a channel, of shape ().
    """

    mean: Tensor
    variance: Tensor
    elements: Tensor


def moments(x: Tensor) -> Moments:
    """Return the statistics of the channels of a tensor (n, C, H, W); zeros if it is empty."""
    if not x[:, 0].numel():
        # the mean of nothing is NaN, which would stay in the running statistics for ever
        zeros = x.new_zeros(x.shape[1])
        return Moments(zeros, zeros, zeros.new_zeros((), dtype=torch.float64))
    # not the mean of squares minus the square of the mean, whose digits cancel
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return Moments(mean, variance, mean.new_tensor(x[:, 0].numel(), dtype=torch.float64))


def combined(parts: Sequence[Moments]) -> Moments:
    """Return the statistics of several parts together (Chan et al., 1979)."""
    means, variances, counts = (torch.stack(column) for column in zip(*parts, strict=True))
    count = counts.sum()
    shares = (counts / count.clamp_min(1)).to(means.dtype)[:, None]
    mean = (shares * means).sum(0)
    return Moments(mean, (shares * (variances + (means - mean).square())).sum(0), count)


def synchronised(part: Moments, norm: Any) -> Moments:
    """Return the statistics of all processes together if the norm is synchronised.

    Gradients reach the parts of all processes.

    Args:
        part: Statistics of the part of this process.
        norm: The norm. Only a ``SyncBatchNorm`` is synchronised, over its process group.
    """
    if not isinstance(norm, nn.SyncBatchNorm) or not _is_distributed(norm.process_group):
        return part
    group = norm.process_group
    count = _Sum.apply(part.elements, group)
    share = (part.elements / count.clamp_min(1)).to(part.mean.dtype)
    mean = _Sum.apply(share * part.mean, group)
    variance = _Sum.apply(share * (part.variance + (part.mean - mean).square()), group)
    return Moments(mean, variance, count)


def _is_distributed(group: Any) -> bool:
    is_running = dist.is_available() and dist.is_initialized()
    return is_running and dist.get_world_size(group) > 1


class _Sum(torch.autograd.Function):
    """Sum over all processes. The sum depends on each of them, and all of them use it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def update_running(norm: Any, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Update running statistics as a batch norm in training mode does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked += 1
        # without a momentum, torch keeps the mean over all batches
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        unbiased = variance * (count / (count - 1).clamp_min(1)).to(variance.dtype)
        for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            # an empty batch says nothing: its mean is NaN
            running.lerp_(value.to(running.dtype).where(count > 0, running), momentum)
