"""The compiled CPU kernels, where they were built: loading them gives the CPU its implementations.
See csrc/.
"""

from __future__ import annotations

import functools
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from .dispatch import unavailable


def _load() -> str | None:
    """Load the compiled library and return None, or why it is not loaded."""
    candidates = [Path(__file__).with_name(f'_C{suffix}') for suffix in EXTENSION_SUFFIXES]
    found = [path for path in candidates if path.is_file()]
    if not found:
        return (
            'not built: python setup.py build_ext --inplace, or pip install --no-build-isolation, '
            'needs a compiler'
        )
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f'{found[0].name} was built for another torch or machine: {error}'
    return None


# None, or the reason why the kernels of this module cannot be called
MISSING = _load()
unavailable['native'] = MISSING


@functools.cache
def _say_missing() -> None:
    warnings.warn(
        'mmrednet: plain torch computes on the CPU, several times slower than the compiled '
        'kernels, which '
        f'are missing ({MISSING}).',
        stacklevel=2,
    )


def notice_missing(tensor: Tensor) -> None:
    """Warn, once, that plain torch computes on the CPU: pip does not show what a build without a
    compiler says.
    """
    if MISSING and tensor.device.type == 'cpu':
        _say_missing()


def capability() -> str:
    """Return the instruction set of the kernels in use: 'avx512', 'avx2' or 'plain'."""
    return torch.ops.mmrednet_native.capability()


def threads() -> int:
    """Return how many threads a large problem is shared by; ``torch.set_num_threads`` sets it."""
    return torch.ops.mmrednet_native.threads()
