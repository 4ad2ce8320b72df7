"""What files of training scripts hold beside tensors, and what stands for it when they are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# names for stand-ins are understood from this version on
_KNOWS_NAMES = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2]) >= (2, 6)

# mmengine's history of logged numbers, with the names of its methods; numpy's numbers; the options
# of timm's scripts
IGNORED = (
    'mmengine.logging.history_buffer.HistoryBuffer',
    'builtins.getattr',
    'argparse.Namespace',
    'numpy.ndarray',
    'numpy.dtype',
    *(
        f'numpy.{module}.multiarray.{name}'
        for module in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ),
)


class Ignored:
    """Takes whatever an object is made of, and keeps and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Ignored:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@contextlib.contextmanager
def ignoring() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` put stand-ins in place of ``IGNORED``, and refuse all
    other classes.

    What the process has allowed elsewhere, as mmengine's classes to resume a run, is refused as
    well. Before torch 2.6, which knows no stand-ins, files with such objects are refused.
    """
    if not _KNOWS_NAMES:
        yield
        return
    elsewhere = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(Ignored, name) for name in IGNORED])  # type: ignore[list-item]
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(elsewhere)
