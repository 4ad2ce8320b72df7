"""The adjoint of reflection: gradients beyond the border of a map are added to what it mirrors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .._torch import empty_in_layout_of


def view_size(window: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns that outputs of a size look at, on the map and beyond it."""
    kernel, step, dilation = window[0:2], window[2:4], window[4:6]
    rows, columns = (
        (size[axis] - 1) * step[axis] + (kernel[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)
    )
    return rows, columns


def fold(x: Tensor, axis: int, length: int, padding: int) -> Tensor:
    """Add what lies beyond the ends of an axis to what it mirrors.

    It adds slices one after the other, so that the order of sums is fixed.

    Args:
        x: Tensor whose axis begins ``padding`` positions before the first one.
        axis: The axis, which may have any length.
        length: Length of the axis of the result.
        padding: Number of positions before the first one.
    """
    if length == 1:
        return x.sum(axis, keepdim=True)
    result = x.new_zeros((*x.shape[:axis], length, *x.shape[axis + 1 :]))
    period, end = length - 1, x.shape[axis] - padding
    # between two mirrors the map runs forwards, then backwards
    for segment in range(-padding // period, -(-end // period)):
        first, last = max(segment * period, -padding), min((segment + 1) * period, end)
        part = x.narrow(axis, first + padding, last - first)
        if segment % 2 == 0:
            target = first - segment * period
        else:
            target, part = (segment + 1) * period - last + 1, part.flip(axis)
        result.narrow(axis, target, last - first).add_(part)
    return result


def folded(x: Tensor, like: Tensor, window: Sequence[int]) -> Tensor:
    """Return the gradient of a map from that of all that outputs look at.

    Args:
        x: Tensor (B, C, rows, columns).
        like: The map (B, C, H, W), whose layout and dtype the gradient has.
        window: The eight numbers of the window.
    """
    height, width = like.shape[2:]
    result = fold(fold(x, 2, height, window[6]), 3, width, window[7])
    return map_gradient(result, like)


def map_gradient(grad: Tensor, like: Tensor) -> Tensor:
    """Return the gradient of a map in its layout and dtype."""
    return empty_in_layout_of(like, like.shape, like.dtype).copy_(grad)


def dense(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return contiguous tensors: kernels compute offsets in parameters from their sizes."""
    return tuple(tensor.contiguous() for tensor in tensors)


def gradient_like(grad: Tensor, parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter in its dtype, contiguous and with memory of its own."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=grad.device).copy_(grad)
