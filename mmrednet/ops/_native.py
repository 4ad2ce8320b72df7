"""The compiled CPU kernels of csrc/. Loading their library registers them for CPU tensors."""

from __future__ import annotations

import functools
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from .dispatch import unavailable


def _load() -> str | None:
    """Load the compiled library. Return None, or the reason why it is not loaded."""
    candidates = [Path(__file__).with_name(f'_C{suffix}') for suffix in EXTENSION_SUFFIXES]
    libraries = [path for path in candidates if path.is_file()]
    if not libraries:
        return (
            'not built: python setup.py build_ext --inplace, or pip install --no-build-isolation, '
            'needs a compiler'
        )
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return f'{libraries[0].name} was built for another torch or machine: {error}'
    return None


# None, or the reason why the kernels of this module cannot be called
MISSING = _load()
unavailable['native'] = MISSING


@functools.cache
def _say_missing() -> None:
    warnings.warn(
        'mmrednet: plain torch computes on the CPU, several times slower than the compiled '
        f'kernels, which are missing ({MISSING}).',
        stacklevel=2,
    )


def notice_missing(tensor: Tensor) -> None:
    """Warn once that plain torch computes on the CPU.

    pip hides the output of a build that found no compiler, so that users would not know.
    """
    if MISSING and tensor.device.type == 'cpu':
        _say_missing()


def capability() -> str:
    """Return the instruction set of the kernels: 'avx512bf16', 'avx512', 'avx2' or 'plain'."""
    return torch.ops.mmrednet_native.capability()


def threads() -> int:
    """Return the number of threads for a large problem. ``torch.set_num_threads`` sets it."""
    return torch.ops.mmrednet_native.threads()
