"""The compiled CPU kernels, where they were built: see csrc/."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from .window import Window

WindowNumbers = Window | Sequence[int]


def _load() -> str | None:
    """Load the compiled library and return None, or why it is not loaded."""
    candidates = [Path(__file__).with_name(f'_C{suffix}') for suffix in EXTENSION_SUFFIXES]
    found = [path for path in candidates if path.is_file()]
    if not found:
        return 'not built: python setup.py build_ext --inplace, or pip install --no-build-isolation, needs a compiler'
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f'{found[0].name} was built for another torch or machine: {error}'
    return None


# None, or the reason why the kernels of this module cannot be called
MISSING = _load()


def capability() -> str:
    """Return the instruction set of the kernels in use: 'avx512', 'avx2' or 'plain'."""
    return torch.ops.mmrednet_native.capability()


def threads() -> int:
    """Return how many threads a large problem is shared by; ``torch.set_num_threads`` sets it."""
    return torch.ops.mmrednet_native.threads()


def aggregate(value: Tensor, weight: Tensor, window: WindowNumbers) -> Tensor:
    """See :func:`mmrednet.ops.local_aggregate`."""
    return torch.ops.mmrednet_native.aggregate(value, weight, list(window))


def correlate(query: Tensor, key: Tensor, window: WindowNumbers) -> Tensor:
    """See :func:`mmrednet.ops.local_correlate`."""
    return torch.ops.mmrednet_native.correlate(query, key, list(window))


def scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: WindowNumbers) -> Tensor:
    """See :func:`mmrednet.ops.local_scatter`."""
    return torch.ops.mmrednet_native.scatter(grad, weight, list(size), list(window))


def involution(value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: WindowNumbers) -> Tensor:
    """See :func:`mmrednet.ops.local_involution`."""
    return torch.ops.mmrednet_native.involution(value, hidden, weight, bias, list(window))


def attention(query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None, columns: Tensor | None,
              bias: Tensor | None, window: WindowNumbers) -> tuple[Tensor, Tensor]:
    """See :func:`mmrednet.ops.attention.definition`."""
    return torch.ops.mmrednet_native.attention(query, key, value, rows, columns, bias, list(window))
