"""Loads whole training checkpoints, and makes ``torch.load`` do so for every library.

Beside tensors, a training checkpoint holds the state of an optimizer and mmengine's history of
logged numbers. ``load_file`` reads these as well. It allows what such files need and nothing else.

``safe_loading`` puts ``load_file`` in the place of ``torch.load`` for a while. Loaders of mmengine,
mmdet, mmseg and others all end there, whether they ask for ``weights_only`` or not.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from .pickle_guard import StandIn
from .reading import load_torch_file

# numbers, truth values and texts; a dtype of another kind may hold objects, or be of any size
DTYPE_CODE = re.compile(r'[<>|=]?([biufc]\d{1,2}|[SU]\d{1,6}|\?)')
# where numpy before and after 2.0 keeps the functions by which it pickles
NUMPY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')
# entries of torch's table for objects that files do not name, but whose state they set
UNNAMED = 'mmrednet.unnamed'

# one replacement of torch.load for the whole process, while any context is open
_LOCK = threading.Lock()
_OPEN_CONTEXTS = 0


def training_globals() -> list[Any]:
    """Return entries of torch's table of safe globals for what training checkpoints name.

    They are history buffers, the names of their methods, numpy's numbers and arrays, and
    argparse's options. Where numpy's own function would take any memory, or the builtin
    ``getattr`` would reach anything, a function of this file stands in.
    """
    objects: dict[str, Any] = {
        'argparse.Namespace': argparse.Namespace,
        'builtins.getattr': _history_method,
        'numpy.ndarray': StandIn,
        'numpy.dtype': _dtype,
        f'{UNNAMED}.ndarray': np.ndarray,
    }
    for module in NUMPY_MODULES:
        objects[f'{module}._reconstruct'] = _empty_array
        objects[f'{module}.scalar'] = _scalar
    codes = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?SU'
    for code in codes:
        objects[f'{UNNAMED}.{code}'] = type(np.dtype(code))
    # the checks of files need no mmengine; where it is absent no file of its can be resumed
    with contextlib.suppress(ImportError):
        from mmengine.logging import HistoryBuffer

        objects['mmengine.logging.history_buffer.HistoryBuffer'] = HistoryBuffer
    return [(value, name) for name, value in objects.items()]


def _history_method(owner: Any, name: str) -> Any:
    """Return a public method of HistoryBuffer; stands in for ``getattr`` when a file is read.

    A pickle names a method by a call of ``getattr``, which would reach any attribute of anything.

    Raises:
        UnpicklingError: The file asks for something else.
    """
    from mmengine.logging import HistoryBuffer

    method = vars(HistoryBuffer).get(name)
    if owner is not HistoryBuffer or name.startswith('_') or not callable(method):
        raise UnpicklingError(
            f'a checkpoint may name public methods of HistoryBuffer, got {name!r} of {owner!r}.'
        )
    return method


def _dtype(code: str, *_: Any) -> np.dtype:
    """Return numpy's dtype for a number, a truth value or a text."""
    if not isinstance(code, str) or not DTYPE_CODE.fullmatch(code):
        raise UnpicklingError(f'a dtype must be that of numbers or texts, got {code!r:.40}.')
    return np.dtype(code)


def _empty_array(*_: Any) -> np.ndarray:
    """Return the empty array whose shape and values a pickle sets next.

    numpy's own function takes the memory of any shape that is stated. It then compares the shape
    with the bytes of the values, which makes the second step safe.
    """
    return np.ndarray((0,), 'b')


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """Return a number of numpy."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in 'biufc' or not dtype.itemsize:
        raise UnpicklingError(f'a scalar must be a number, got dtype {dtype!r:.40}.')
    if not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise UnpicklingError(f'a scalar of {dtype} must have {dtype.itemsize} bytes.')
    return np.frombuffer(data, dtype)[0]


def load_file(file: Any, map_location: Any = None) -> Any:
    """Load everything in a file of torch, without executing anything that is in it.

    Args:
        file: Path of the file, or a file that is open for reading.
        map_location: Where its tensors go, as ``torch.load`` takes it. Default: where they were.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It names what training checkpoints do not need, or is broken.
    """
    entries = training_globals()
    if not hasattr(file, 'read'):
        return load_torch_file(Path(file), map_location=map_location, entries=entries)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'checkpoint.pth'
        with path.open('wb') as copy:
            shutil.copyfileobj(file, copy)
        return load_torch_file(path, map_location=map_location, entries=entries)


class _GuardedLoad:
    """Takes the place of ``torch.load``. All arguments but the first two have no effect.

    Args:
        replaced: The function ``torch.load``.
    """

    def __init__(self, replaced: Callable) -> None:
        self.replaced = replaced

    def __call__(self, f: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
        return load_file(f, map_location)


@contextlib.contextmanager
def safe_loading() -> Iterator[None]:
    """Let no checkpoint execute anything, whichever library loads it.

    While the context is open, ``torch.load`` is :func:`load_file` in the whole process. This covers
    ``load_from``, ``resume`` and ``init_cfg`` of mmengine, mmdet and mmseg, their inferencers, and
    downloads. A file that needs more than training checkpoints do is an error. Contexts may be
    nested. The function may also decorate another one::

        with mmrednet.safe_loading():
            inferencer = DetInferencer('config.py', 'weights.pth')

    Raises:
        CheckpointError: In the calls of ``torch.load``, see :func:`load_file`.
    """
    _change_contexts(1)
    try:
        yield
    finally:
        _change_contexts(-1)


def _change_contexts(change: int) -> None:
    """Count the open contexts; the first one replaces ``torch.load``, the last one restores it."""
    global _OPEN_CONTEXTS
    with _LOCK:
        if not _OPEN_CONTEXTS:
            torch.load = torch.serialization.load = _GuardedLoad(torch.load)
        _OPEN_CONTEXTS += change
        if not _OPEN_CONTEXTS:
            torch.load = torch.serialization.load = getattr(torch.load, 'replaced')  # noqa: B009
