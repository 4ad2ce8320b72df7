"""Which kernels compute the operators: torch's dispatcher decides by the device, and a kernel that
cannot take an input says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LOGGER = logging.getLogger('mmrednet')
# kernels, and the type of the device that they are for
DEVICES = {'native': 'cpu', 'triton': 'cuda'}
# why kernels cannot be called at all, or None; filled by the modules that find or build them
unavailable: dict[str, str | None] = {}

_required: str | None = None
_logged: set[tuple[str, str]] = set()


@contextmanager
def require_kernels(name: str) -> Iterator[None]:
    """Let the operators of :mod:`mmrednet.ops` raise where these kernels cannot compute them.

    Without it they compute the definition in plain torch instead, and log the reason once. The
    requirement holds for the whole process, since gradients may be computed by another thread.

    Args:
        name: ``'native'``, the compiled kernels for the CPU, or ``'triton'``, those for CUDA.

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
    """Say why the definition computes an operator instead of a kernel.

    Every reason is logged once. Where the kernels were required, all reasons are raised.
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
