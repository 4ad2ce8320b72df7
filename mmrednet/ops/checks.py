"""What the arguments of every operator must hold, and how autocast changes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import check_required
from .window import Window

# devices that autocast knows; torch.compile of older releases cannot trace the question itself
AUTOCAST_DEVICES = frozenset(
    device
    for device in ('cpu', 'cuda', 'xpu', 'mps', 'hpu', 'mtia', 'maia', 'xla')
    if torch.amp.is_autocast_available(device)
)

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
    """Check dtype, rank and device of tensors, given as (tensor, rank), and cast them as autocast
    asks.

    None, for one of the ``optional`` arguments, stays None.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: its rank or its device is another one.
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
    kind = device.type if device else 'cpu'
    check_required(kind)
    if kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in tensors
    )


def check_dtype(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """Check that tensors which may be left out have the dtype of the first.

    Raises:
        TypeError: one has another.
    """
    for name, tensor in others.items():
        if tensor is not None and tensor.dtype != first.dtype:
            raise TypeError(
                f'{name} must have the dtype of {first_name}, {first.dtype}, got {tensor.dtype}.'
            )


def check_same(first_name: str, first: Tensor, name: str, tensor: Tensor, *, dims: int) -> None:
    """Check that two tensors agree in their leading dimensions.

    Raises:
        ValueError: they do not.
    """
    if first.shape[:dims] != tensor.shape[:dims]:
        what = ('batch', 'groups', 'channels per group')[:dims]
        raise ValueError(
            f'{first_name} and {name} must agree in {", ".join(what)}, got '
            f'{first_name}.shape={tuple(first.shape)}, {name}.shape={tuple(tensor.shape)}.'
        )


def check_taps(name: str, tensor: Tensor, window: Window) -> None:
    """Check that dimension 2 holds one entry per tap.

    Raises:
        ValueError: it does not.
    """
    if tensor.shape[2] != window.taps:
        raise ValueError(
            f'{name} must have one entry per tap, {window.taps} for kernel {window.kernel}, '
            f'in dimension 2, got {name}.shape={tuple(tensor.shape)}.'
        )


def check_outputs(
    name: str, tensor: Tensor, source: str, size: Sequence[int], window: Window
) -> None:
    """Check that a tensor lies on the output positions of a window on a map of this size.

    Raises:
        ValueError: it does not.
    """
    expected = window.output_size(size[0], size[1])
    if tuple(tensor.shape[-2:]) != expected:
        raise ValueError(
            f'{name} must end in the output size {expected} of {window} on a map ({source}) of '
            f'{tuple(size)}, got {name}.shape={tuple(tensor.shape)}.'
        )


def check_shape(name: str, tensor: Tensor | None, what: str, shape: Sequence[int]) -> None:
    """Check the shape of a tensor that may be left out.

    Raises:
        ValueError: it is another one.
    """
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f'{name} must be {what}, {tuple(shape)}, got {name}.shape={tuple(tensor.shape)}.'
        )
