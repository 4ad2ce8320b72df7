"""Writes checkpoint files, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .reading import CheckpointError

ENDINGS = ('.pth', '.pt', '.pth.tar', '.safetensors', '.npz')
# names of dtypes in .safetensors
SAFETENSORS_DTYPES = {
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}


def check_target(path: str | Path, *, force: bool = False) -> Path:
    """Return the path of a file that may be written.

    Raises:
        ValueError: Its ending is none of ``ENDINGS``.
        FileExistsError: It exists, and ``force`` is not set.
        FileNotFoundError: Its folder does not exist.
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
        path: Path of the file, ending in one of ``ENDINGS``.
        state: Tensors by key.
        metadata: Texts beside the tensors of a ``.safetensors`` file, or under 'meta' in torch's
            files. An ``.npz`` file has none.
        container: Keys around the state dict in torch's files, () for none.
        force: Whether an existing file is overwritten.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: See :func:`check_target`.
        CheckpointError: The format has no such dtype.
    """
    path = check_target(path, force=force)
    state = {key: _without_surroundings(value) for key, value in state.items()}
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with partial.open('wb') as file:
            _write(file, path.suffix, state, metadata or {}, container)
            file.flush()
            os.fsync(file.fileno())
        # another process may have written it meanwhile
        check_target(path, force=force)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _without_surroundings(value: Tensor) -> Tensor:
    """Return a tensor whose storage holds its values alone, since torch saves whole storages."""
    value = value.detach().cpu().contiguous()
    is_alone = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if is_alone else value.clone()


def _write(
    file: BinaryIO,
    ending: str,
    state: dict[str, Tensor],
    metadata: dict[str, str],
    container: tuple[str, ...],
) -> None:
    if ending == '.safetensors':
        _write_safetensors(file, state, metadata)
    elif ending == '.npz':
        if any(value.dtype == torch.bfloat16 for value in state.values()):
            raise CheckpointError('an .npz file cannot hold bfloat16; choose .safetensors or .pth.')
        arrays: dict[str, Any] = {key: value.numpy() for key, value in state.items()}
        np.savez(file, **arrays)
    else:
        content: dict[str, Any] = state
        for key in reversed(container):
            content = {key: content}
        if metadata:
            content = {**(content if container else {'state_dict': content}), 'meta': metadata}
        torch.save(content, file)


def _write_safetensors(file: BinaryIO, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the length of a JSON header in eight bytes, the header, and the tensors.

    The library would sort the tensors by dtype and name. Their order has to survive, for it is
    restored when a file is converted back.
    """
    header: dict[str, Any] = {'__metadata__': metadata} if metadata else {}
    end = 0
    for key, value in state.items():
        if value.dtype not in SAFETENSORS_DTYPES:
            raise CheckpointError(f'a .safetensors file is not written with {value.dtype}, {key}.')
        start, end = end, end + value.numel() * value.element_size()
        dtype = SAFETENSORS_DTYPES[value.dtype]
        header[key] = dict(dtype=dtype, shape=list(value.shape), data_offsets=[start, end])
    text = json.dumps(header, separators=(',', ':')).encode()
    # tensors begin at a multiple of eight bytes
    text += b' ' * (-len(text) % 8)
    file.write(len(text).to_bytes(8, 'little') + text)
    for value in state.values():
        file.write(value.flatten().view(torch.uint8).numpy().data)
