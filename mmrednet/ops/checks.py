"""Checks of the arguments of operators, and the casts of autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import check_required
from .window import Window

# devices with autocast: a constant, since torch.compile of older releases cannot trace the question
AUTOCAST_DEVICES = frozenset(
    device
    for device in ('cpu', 'cuda', 'xpu', 'mps', 'hpu', 'mtia', 'maia', 'xla')
    if torch.amp.is_autocast_available(device)
)

# the axes of tensors by rank, for errors
AXES = {
    5: '(batch, groups, channels or taps, height, width)',
    4: '(batch, channels, height, width)',
    3: '(groups, channels, taps of an axis)',
    2: '(outputs, inputs)',
    1: '(outputs,)',
}


def check_tensors(
    optional: Sequence[str] = (), **arguments: tuple[Tensor | None, int]
) -> tuple[Any, ...]:
    """Check dtype, rank and device of tensors, and cast them as autocast does.

    Args:
        optional: Names of arguments that may be None. None stays None.
        arguments: Tensor and its expected rank, by name of the argument.

    Returns:
        The tensors, in the order of the arguments.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: An argument has another rank or device.
    """
    (first_name, (first, _)), *_ = arguments.items()
    device = first.device if isinstance(first, Tensor) else None
    for name, (tensor, rank) in arguments.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f'{name} must be a floating-point tensor, got {got}.')
        if tensor.dim() != rank:
            raise ValueError(
                f'{name} must have {rank} dimensions {AXES[rank]}, '
                f'got {name}.shape={tuple(tensor.shape)}.'
            )
        if tensor.device != device:
            raise ValueError(
                f'{first_name} and {name} must be on one device, got {device} and {tensor.device}.'
            )
    tensors = tuple(tensor for tensor, _ in arguments.values())
    device_type = device.type if device else 'cpu'
    check_required(device_type)
    if device_type not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(_autocast(tensor, dtype) for tensor in tensors)


def _autocast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # autocast leaves float64 as it is
    if tensor is None or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)


def check_dtype(first_name: str, first: Tensor, **tensors: Tensor | None) -> None:
    """Check that tensors, of which each may be None, have the dtype of the first.

    Raises:
        TypeError: A tensor has another dtype.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != first.dtype:
            raise TypeError(
                f'{name} must have the dtype of {first_name}, {first.dtype}, got {tensor.dtype}.'
            )


def check_same(first_name: str, first: Tensor, name: str, tensor: Tensor, *, dims: int) -> None:
    """Check that two tensors agree in their leading dimensions.

    Raises:
        ValueError: They differ.
    """
    if first.shape[:dims] != tensor.shape[:dims]:
        axes = ('batch', 'groups', 'channels per group')[:dims]
        raise ValueError(
            f'{first_name} and {name} must agree in {", ".join(axes)}, got '
            f'{first_name}.shape={tuple(first.shape)}, {name}.shape={tuple(tensor.shape)}.'
        )


def check_taps(name: str, tensor: Tensor, window: Window) -> None:
    """Check that dimension 2 of a tensor has one entry per tap.

    Raises:
        ValueError: It has another size.
    """
    if tensor.shape[2] != window.taps:
        raise ValueError(
            f'{name} must have one entry per tap, {window.taps} for kernel {window.kernel}, '
            f'in dimension 2, got {name}.shape={tuple(tensor.shape)}.'
        )


def check_outputs(
    name: str, tensor: Tensor, source: str, size: Sequence[int], window: Window
) -> None:
    """Check that a tensor ends in the output size of a window.

    Args:
        name: Name of the tensor, for errors.
        tensor: Tensor (..., Ho, Wo).
        source: Name of the argument that gives the size of the map, for errors.
        size: Size (H, W) of the map.
        window: Window over the map.

    Raises:
        ValueError: The tensor ends in another size.
    """
    expected = window.output_size(size[0], size[1])
    if tuple(tensor.shape[-2:]) != expected:
        raise ValueError(
            f'{name} must end in the output size {expected} of {window} on a map ({source}) of '
            f'{tuple(size)}, got {name}.shape={tuple(tensor.shape)}.'
        )


def check_shape(name: str, tensor: Tensor | None, axes: str, shape: Sequence[int]) -> None:
    """Check the shape of a tensor that may be None.

    Args:
        name: Name of the tensor, for errors.
        tensor: Tensor, or None.
        axes: Names of the axes, for errors.
        shape: Expected shape.

    Raises:
        ValueError: The tensor has another shape.
    """
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f'{name} must be {axes}, {tuple(shape)}, got {name}.shape={tuple(tensor.shape)}.'
        )
