"""The compiled CPU kernels of csrc/. Loading their library registers them for CPU tensors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from . import _build, _first_use
from ._processor import instruction_set
from .dispatch import unavailable

# the library whose kernels are used, if there is one
loaded: list[Path] = []


def _load() -> str | None:
    """Load a compiled library that fits. Return None, or the reason why none is loaded."""
    reasons = []
    for library, only in _candidates():
        if not library.is_file():
            continue
        reason = _build.misfit(library, only) or _load_library(library)
        if reason is None:
            return None
        reasons.append(f'{library.name}: {reason}')
    return '; '.join(reasons) or 'not built'


def _candidates() -> Iterator[tuple[Path, str | None]]:
    """Yield the libraries of the package, for all instruction sets, then that of the user's cache,
    for the one of this processor. The name of the latter takes longer to find.
    """
    for suffix in EXTENSION_SUFFIXES:
        yield Path(__file__).with_name(f'_C{suffix}'), None
    yield _first_use.cached_library(), instruction_set()


def _load_library(library: Path) -> str | None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return str(error)
    # The library defines the operators for processes without mmrednet. Here Python defines them,
    # with their gradients.
    torch.ops.mmrednet_native.release_schemas()
    loaded.append(library)
    return None


# None, or the reason why the kernels of this module cannot be called
MISSING = _load()
# why they could not be compiled, where that was tried
FAILURE: _first_use.BuildError | None = None
unavailable['native'] = MISSING


@functools.cache
def _compile_once() -> None:
    """Compile and load the kernels, or warn that plain torch computes.

    Who installed a wheel without kernels would not know otherwise.
    """
    global MISSING, FAILURE
    try:
        library = _first_use.compile_into_cache()
        MISSING = _load_library(library)
    except _first_use.BuildError as error:
        MISSING, FAILURE = str(error), error
    unavailable['native'] = MISSING
    if MISSING:
        warnings.warn(
            'mmrednet: plain torch computes on the CPU, several times slower than the compiled '
            f'kernels, which are missing ({MISSING}). `mmrednet doctor` says more.',
            stacklevel=2,
        )


def ensure(tensor: Tensor) -> None:
    """Compile the kernels when an operator computes on a CPU for the first time without them."""
    # a program that is traced calls operators on tensors without data
    if MISSING and tensor.device.type == 'cpu' and not torch.compiler.is_compiling():
        _compile_once()


def capability() -> str:
    """Return the instruction set of the kernels: 'avx512bf16', 'avx512', 'avx2' or 'plain'."""
    return torch.ops.mmrednet_native.capability()


def threads() -> int:
    """Return the number of threads for a large problem. ``torch.set_num_threads`` sets it."""
    return torch.ops.mmrednet_native.threads()
