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

from ..dispatch import fall_back, unavailable

# the first whose matrix products take fewer than sixteen columns
OLDEST = (3, 5)


def _find() -> tuple[str | None, str]:
    """Return None and the version of Triton, or why it is not used."""
    if os.environ.get('MMREDNET_TRITON') == '0':
        return 'switched off by MMREDNET_TRITON=0', ''
    try:
        found = version('triton')
    except PackageNotFoundError:
        return 'not installed: pip install triton', ''
    release = tuple(int(number) for number in re.findall(r'\d+', found)[:2])
    if release < OLDEST:
        return f'{found} is too old: at least {OLDEST[0]}.{OLDEST[1]} is needed', ''
    return None, found


# None, or the reason why the kernels of this package cannot be called
MISSING, VERSION = _find()
unavailable['triton'] = MISSING


def register(family: str, **ops: tuple[Any, Callable]) -> None:
    """Make functions of a module of this package the CUDA kernels of custom ops.

    Args:
        family: Name of the module. It is imported when the first CUDA tensor arrives.
        ops: For the name of each function in the module, the custom op and its definition. The
            definition computes what the kernel cannot take: the module's
            ``reasons_against_<name>``, where it has one, returns a list of reasons.
    """
    if MISSING is None:
        for name, (op, definition) in ops.items():
            op.register_kernel('cuda')(_imported_late(family, name, definition))


def _imported_late(family: str, name: str, definition: Callable) -> Callable:
    def kernel(*arguments: Any) -> Any:
        module = import_module(f'.{family}', __name__)
        reasons_against = getattr(module, f'reasons_against_{name}', None)
        reasons = reasons_against(*arguments) if reasons_against else []
        if reasons:
            fall_back('triton', f'{family}.{name}', reasons)
            return definition(*arguments)
        return getattr(module, name)(*arguments)

    return kernel


def state() -> str:
    """Say whether the kernels are used on CUDA devices, and why not."""
    plain = 'plain torch, one tap at a time'
    if MISSING is not None:
        return f'{plain} (triton: {MISSING})'
    return f'triton {VERSION}' + (
        '' if torch.cuda.is_available() else ', unused: torch sees no CUDA device'
    )
