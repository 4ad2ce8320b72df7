"""Files of weights, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from . import safetensors
from .errors import CheckpointError

ENDINGS = ('.pth', '.pt', '.pth.tar', '.safetensors', '.npz')


def check_target(path: str | Path, *, force: bool = False) -> Path:
    """Return the path of a file that may be written.

    Raises:
        ValueError: its ending is none of ``ENDINGS``.
        FileExistsError: it exists, and ``force`` is not set.
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path).expanduser()
    if not path.name.endswith(ENDINGS):
        raise ValueError(f'the output must end in one of {ENDINGS}, got {path.name!r}.')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder of the output must exist, got {str(path)!r}.')
    if path.exists() and not force:
        raise FileExistsError(f'{path} exists; --force (force=True) overwrites it.')
    return path


def write_checkpoint(
    path: str | Path,
    state: dict[str, Tensor],
    *,
    metadata: dict[str, str] | None = None,
    container: tuple[str, ...] = ('state_dict',),
    force: bool = False,
) -> None:
    """Write tensors in the format that the ending names.

    The file appears when it is complete: a failure leaves nothing, or what was there.

    Args:
        path: ending in one of ``ENDINGS``.
        state: the tensors.
        metadata: texts: beside the tensors of a ``.safetensors`` file, under 'meta' in torch's; an
            ``.npz`` has none.
        container: keys around the tensors in torch's files, () for none.
        force: whether an existing file is overwritten.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: see :func:`check_target`.
        CheckpointError: numpy has no such dtype.
    """
    path = check_target(path, force=force)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with partial.open('wb') as file:
            _write(file, path.suffix, state, metadata or {}, container)
            file.flush()
            os.fsync(file.fileno())
        check_target(path, force=force)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write(
    file: BinaryIO,
    ending: str,
    state: dict[str, Tensor],
    metadata: dict[str, str],
    container: tuple[str, ...],
) -> None:
    if ending == '.safetensors':
        safetensors.save(file, state, metadata)
    elif ending == '.npz':
        if any(value.dtype == torch.bfloat16 for value in state.values()):
            raise CheckpointError('an .npz file cannot hold bfloat16; choose .safetensors or .pth.')
        arrays: dict[str, Any] = {name: value.numpy() for name, value in state.items()}
        np.savez(file, **arrays)
    else:
        content: dict[str, Any] = state
        for key in reversed(container):
            content = {key: content}
        if metadata:
            content = {**(content if container else {'state_dict': content}), 'meta': metadata}
        torch.save(content, file)
