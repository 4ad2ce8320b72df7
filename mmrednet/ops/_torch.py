"""The primitives in plain torch: one tap at a time, on any device and in any dtype.

Each tap is a strided slice of the input times a slice of the weights. Nothing is unfolded and
nothing is padded, so that memory stays at inputs and outputs, plus one product of the output's size
in ``correlate``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .window import Window


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which sums over these tensors are taken: float32 or wider."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def empty_in_layout_of(like: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised dense tensor with the memory order of ``like``.

    A channels-last input thus gives a channels-last output, and interleaved groups stay
    interleaved.
    """
    order = _memory_order(like)
    # not a view: a caller may change the result of a custom op in place
    return torch.empty_permuted(tuple(size), order, dtype=dtype, device=like.device)


def in_layout_of(like: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor with the strides of :func:`empty_in_layout_of`, copied only where they
    differ.
    """
    if tensor.permute(_memory_order(like)).is_contiguous():
        return tensor
    return empty_in_layout_of(like, tensor.shape, tensor.dtype).copy_(tensor)


def _memory_order(tensor: Tensor) -> list[int]:
    """Return the dimensions from the largest stride to the smallest."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dim: -strides[dim])


def _axis_slices(
    tap: int, stride: int, dilation: int, padding: int, size: int, out: int
) -> tuple[slice, slice]:
    """Return the outputs that see an input through this tap, and those inputs, along one axis."""
    # output i sees input i * stride + offset, which must lie in [0, size)
    offset = tap * dilation - padding
    first = max(0, -(offset // stride))
    last = min(out, (size - 1 - offset) // stride + 1)
    if first >= last:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset
    # a single output needs no step, whose product with a tensor's stride could overflow
    step = stride if last - first > 1 else 1
    return slice(first, last), slice(start, start + (last - first - 1) * step + 1, step)


def _tap_slices(
    window: Window, size: Sequence[int], out: Sequence[int]
) -> Iterator[tuple[int, tuple, tuple]]:
    """Yield (tap, index of the outputs, index of the inputs) for every tap of a window."""
    kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w = window
    for row in range(kernel_h):
        rows_out, rows_in = _axis_slices(row, stride_h, dilation_h, padding_h, size[0], out[0])
        for column in range(kernel_w):
            columns_out, columns_in = _axis_slices(
                column, stride_w, dilation_w, padding_w, size[1], out[1]
            )
            yield row * kernel_w + column, (..., rows_out, columns_out), (..., rows_in, columns_in)


def aggregate(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """See :func:`mmrednet.ops.local_aggregate`."""
    dtype = sum_dtype(value, weight)
    result = empty_in_layout_of(value, (*value.shape[:3], *weight.shape[-2:]), dtype).zero_()
    value_wide = value.to(dtype)
    for tap, outputs, inputs in _tap_slices(window, value.shape[-2:], weight.shape[-2:]):
        result[outputs].addcmul_(value_wide[inputs], weight[:, :, tap, None][outputs].to(dtype))
    return result.to(value.dtype)


def scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: Window) -> Tensor:
    """See :func:`mmrednet.ops.local_scatter`."""
    dtype = sum_dtype(grad, weight)
    result = empty_in_layout_of(grad, (*grad.shape[:3], *size), dtype).zero_()
    grad_wide = grad.to(dtype)
    for tap, outputs, inputs in _tap_slices(window, size, grad.shape[-2:]):
        result[inputs].addcmul_(grad_wide[outputs], weight[:, :, tap, None][outputs].to(dtype))
    return result.to(grad.dtype)


def correlate(query: Tensor, key: Tensor, window: Window) -> Tensor:
    """See :func:`mmrednet.ops.local_correlate`."""
    dtype = sum_dtype(query, key)
    size = (*query.shape[:2], window.taps, *query.shape[-2:])
    # taps outside the map stay zero
    result = empty_in_layout_of(query, size, query.dtype).zero_()
    query_wide = query.to(dtype)
    key_wide = key.to(dtype)
    for tap, outputs, inputs in _tap_slices(window, key.shape[-2:], query.shape[-2:]):
        result[:, :, tap][outputs] = (query_wide[outputs] * key_wide[inputs]).sum(2)
    return result
