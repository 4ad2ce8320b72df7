"""Which kernels compute the operators.

Torch's dispatcher chooses by the device. A kernel that cannot take an input gives its reasons, and
the definition in plain torch is the fallback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

LOGGER = logging.getLogger('mmrednet')
# names of kernels, and the type of device that each is for
DEVICES = {'native': 'cpu', 'triton': 'cuda'}
# why kernels cannot be called at all, or None; filled by the modules that find or build them
unavailable: dict[str, str | None] = {}

# the kernels of the innermost ``require_kernels``, or None
_required: str | None = None
# (operator, reason) of fallbacks that were logged
_logged: set[tuple[str, str]] = set()


@contextmanager
def require_kernels(name: str) -> Iterator[None]:
    """Let the operators of :mod:`mmrednet.ops` raise an error where a kernel would fall back.

    Without it they fall back to the definition in plain torch and log the reason once. The
    requirement holds for the whole process, since gradients may be computed by another thread.

    Args:
        name: Name of the kernels: ``'native'``, compiled for the CPU, or ``'triton'``, for CUDA.

    Raises:
        ValueError: There are no kernels of this name.
        RuntimeError: Raised by an operator: the kernels are not available, the tensors are on
            another device, or the kernel cannot take them. The message has all reasons.
    """
    global _required
    if name not in DEVICES:
        raise ValueError(f'name must be one of {tuple(DEVICES)}, got {name!r}.')
    previous, _required = _required, name
    try:
        yield
    finally:
        _required = previous


def check_required(device_type: str) -> None:
    """Raise if kernels are required that do not compute tensors on this type of device."""
    if _required is None:
        return
    reasons = []
    if DEVICES[_required] != device_type:
        reasons.append(
            f'they are for tensors on {DEVICES[_required]!r}, got tensors on {device_type!r}'
        )
    missing = unavailable.get(_required)
    if missing:
        reasons.append(missing)
    if reasons:
        raise RuntimeError(f'The {_required} kernels were required: {"; ".join(reasons)}.')


def fall_back(kernels: str, operator: str, reasons: Sequence[str]) -> None:
    """Report that an operator falls back from a kernel to its definition.

    Args:
        kernels: Name of the kernels.
        operator: Name of the operator.
        reasons: Why the kernel cannot take the input. Each is logged once.

    Raises:
        RuntimeError: The kernels were required. The message has all reasons.
    """
    if _required == kernels:
        raise RuntimeError(
            f'The {kernels} kernels were required, and cannot compute {operator}: '
            f'{"; ".join(reasons)}.'
        )
    for reason in reasons:
        if (operator, reason) not in _logged:
            _logged.add((operator, reason))
            LOGGER.warning(
                '%s falls back from its %s kernel to plain torch: %s', operator, kernels, reason
            )


def report_missing_kernel(operator: str, tensor: Tensor) -> None:
    """Report that an operator without a Triton kernel computes its definition on CUDA.

    Args:
        operator: Name of the operator.
        tensor: One of its arguments. On other devices nothing is reported.
    """
    if tensor.is_cuda:
        fall_back('triton', operator, ['it has no kernel'])
