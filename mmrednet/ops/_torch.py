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


def shifted_axis(
    window: Window, axis: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return where shifted windows lie along one axis.

    Args:
        window: Window with the border 'shift'.
        axis: 0 for rows, 1 for columns.
        length: Number of positions L of the map along the axis.
        device: Device of the result.

    Returns:
        The position (K, L) of every tap of every output, and the place (L,) of an output in its own
        window, from 0 to K - 1. In the interior it is the centre.
    """
    kernel, dilation = window.kernel[axis], window.dilation[axis]
    position = torch.arange(length, device=device)
    residue, index = position % dilation, position // dilation
    # positions with the same residue form an axis of their own
    last_start = (length - residue + dilation - 1) // dilation - kernel
    start = torch.minimum((index - kernel // 2).clamp(min=0), last_start)
    tap = torch.arange(kernel, device=device)
    return residue + (start + tap[:, None]) * dilation, index - start


def _shifted_taps(
    window: Window, size: Sequence[int], device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (tap, row of the map for every output row, column likewise) of shifted windows."""
    rows, columns = (shifted_axis(window, axis, size[axis], device)[0] for axis in (0, 1))
    for u, row in enumerate(rows):
        for v, column in enumerate(columns):
            yield u * window.kernel[1] + v, row, column


def _aggregate_shifted(value: Tensor, weight: Tensor, result: Tensor, window: Window) -> None:
    """Add the weighted neighbours of shifted windows to the result."""
    for tap, row, column in _shifted_taps(window, value.shape[-2:], value.device):
        neighbour = value.index_select(-2, row).index_select(-1, column)
        result.addcmul_(neighbour, weight[:, :, tap, None].to(result.dtype))


def _scatter_shifted(grad: Tensor, weight: Tensor, result: Tensor, window: Window) -> None:
    """Add the weighted outputs to the neighbours in their shifted windows."""
    for tap, row, column in _shifted_taps(window, grad.shape[-2:], grad.device):
        product = grad * weight[:, :, tap, None].to(result.dtype)
        # several outputs at the border see one position through one tap
        by_column = torch.zeros_like(product).index_add_(-1, column, product)
        result.index_add_(-2, row, by_column)


def _correlate_shifted(query: Tensor, key: Tensor, result: Tensor, window: Window) -> None:
    """Write the products of the queries and the neighbours in their shifted windows."""
    for tap, row, column in _shifted_taps(window, key.shape[-2:], key.device):
        neighbour = key.index_select(-2, row).index_select(-1, column)
        result[:, :, tap] = (query * neighbour).sum(2)


def aggregate(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """See :func:`mmrednet.ops.local_aggregate`."""
    dtype = sum_dtype(value, weight)
    result = empty_in_layout_of(value, (*value.shape[:3], *weight.shape[-2:]), dtype).zero_()
    value_wide = value.to(dtype)
    if window.border == 'shift':
        _aggregate_shifted(value_wide, weight, result, window)
        return result.to(value.dtype)
    for tap, outputs, inputs in _tap_slices(window, value.shape[-2:], weight.shape[-2:]):
        result[outputs].addcmul_(value_wide[inputs], weight[:, :, tap, None][outputs].to(dtype))
    return result.to(value.dtype)


def scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: Window) -> Tensor:
    """See :func:`mmrednet.ops.local_scatter`."""
    dtype = sum_dtype(grad, weight)
    result = empty_in_layout_of(grad, (*grad.shape[:3], *size), dtype).zero_()
    grad_wide = grad.to(dtype)
    if window.border == 'shift':
        _scatter_shifted(grad_wide, weight, result, window)
        return result.to(grad.dtype)
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
    if window.border == 'shift':
        _correlate_shifted(query_wide, key_wide, result, window)
        return result
    for tap, outputs, inputs in _tap_slices(window, key.shape[-2:], query.shape[-2:]):
        result[:, :, tap][outputs] = (query_wide[outputs] * key_wide[inputs]).sum(2)
    return result
