"""Triton kernels for CUDA tensors, one file per family; Triton is imported when the first such
tensor arrives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ..dispatch import fall_back, unavailable
from . import trust

# the first release whose matrix products may have fewer than sixteen columns
OLDEST = (3, 5)


def _find() -> tuple[str | None, str]:
    """Return None and the version of Triton, or why it is not used."""
    if os.environ.get('MMREDNET_TRITON') == '0':
        return 'switched off by MMREDNET_TRITON=0', ''
    try:
        installed = version('triton')
    except PackageNotFoundError:
        return 'not installed: pip install triton', ''
    # only the first two numbers are compared: suffixes such as 3.6.0+git may follow
    release = tuple(int(number) for number in re.findall(r'\d+', installed)[:2])
    if release < OLDEST:
        return f'{installed} is too old: at least {OLDEST[0]}.{OLDEST[1]} is needed', ''
    return None, installed


# None, or the reason why the kernels of this package cannot be called
MISSING, VERSION = _find()
unavailable['triton'] = MISSING


def register(family: str, **ops: tuple[Any, Callable]) -> None:
    """Make functions of a module of this package the CUDA kernels of custom ops.

    Args:
        family: Name of the module. It is imported when the first CUDA tensor arrives.
        ops: The custom op and its definition, by the name of the function in the module. The
            definition is the fallback for inputs that the kernel cannot take. The module's
            ``reasons_against_<name>``, if it has one, returns the list of reasons.
    """
    if MISSING is None:
        for name, (op, definition) in ops.items():
            op.register_kernel('cuda')(_imported_late(family, name, definition))


def _imported_late(family: str, name: str, definition: Callable) -> Callable:
    """Return a CUDA kernel that imports its module, and Triton with it, at the first call."""

    def kernel(*arguments: Any) -> Any:
        if trust.is_checking():
            # kernels must not be compared with kernels
            return definition(*arguments)
        module = import_module(f'.{family}', __name__)
        reasons_against = getattr(module, f'reasons_against_{name}', None)
        reasons = reasons_against(*arguments) if reasons_against else []
        if reasons:
            fall_back('triton', f'{family}.{name}', reasons)
            return definition(*arguments)
        distrust = trust.distrusted(family, _first_map(arguments))
        if distrust:
            # one warning for a family, whichever of its operators is called
            fall_back('triton', family, [distrust])
            return definition(*arguments)
        return getattr(module, name)(*arguments)

    return kernel


def _first_map(arguments: tuple[Any, ...]) -> Tensor:
    """Return the first argument that is a map, whose dtype and layout kernels are made for."""
    return next(x for x in arguments if isinstance(x, Tensor) and x.dim() > 3)


def state() -> str:
    """Say whether the kernels are used on CUDA devices, and if not, why."""
    if MISSING is not None:
        return f'plain torch, one tap at a time (triton: {MISSING})'
    if trust.failures:
        failed = '; '.join(f'{family}: {reason}' for family, reason in trust.failures.items())
        return f'triton {VERSION}, without families that failed their check ({failed})'
    if torch.cuda.is_available():
        return f'triton {VERSION}'
    return f'triton {VERSION}, unused: torch sees no CUDA device'
