"""Files of weights, read without executing anything that is in them and without believing the sizes
they state.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import safetensors
from .allowed import ignoring
from .errors import CheckpointError
from .foreign import HEAD, what_else
from .limits import MAX_BYTES, MAX_EXPANSION, MAX_VIEWS, plausible
from .pickles import check_pickles
from .values import check_weights

# under which keys training scripts keep the weights, the first that is there
CONTAINERS = (
    'state_dict',
    'model_state_dict',
    'model',
    'net',
    'network',
    'params',
    'state_dict_ema',
    'model_ema',
)
ARRAY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file.

    Args:
        path: of the file.
        state: its tensors, on the CPU and as they are stored.
        container: the keys that led to them in the file, as ('state_dict',).
        others: keys beside the tensors and beside the container, which are not used.
        metadata: texts beside the tensors.
    """

    path: Path
    state: dict[str, Tensor]
    container: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | Path, *, key: str | None = None, check: bool = True) -> Checkpoint:
    """Read the tensors of a ``.pth``, ``.pth.tar``, ``.safetensors`` or ``.npz`` file, told apart
    by their content.

    Args:
        path: of the file.
        key: where in the file the weights are, as 'state_dict_ema'; by default the first of
            ``CONTAINERS``.
        check: whether all tensors must be weights; where not all are used, ``check_weights`` may
            follow for those.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file holds more than plain tensors, is broken, states sizes that it
            cannot have, or has weights that are not finite or no floating point numbers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint must be an existing file, got {str(path)!r}.')
    reader, expansion = _reader_of(path)
    content, metadata = reader(path)
    if not metadata and isinstance(content, Mapping) and isinstance(content.get('meta'), Mapping):
        metadata = {
            str(name): text for name, text in content['meta'].items() if isinstance(text, str)
        }
    state, container, others = _find_tensors(path, content, key)
    _check_size(
        path, sum(value.numel() * value.element_size() for value in state.values()), expansion
    )
    _check_tensors(path, state)
    if check:
        check_weights(path, state)
    return Checkpoint(path, state, container, others, metadata)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_in_name(path: str | Path) -> str | None:
    """Return the first digits of the SHA-256 that OpenMMLab and torchvision write into a file's
    name, if it has any.

    Eight digits that are a date, as 20210517, are none.
    """
    found = re.search(r'[-_]([0-9a-f]{8})\.(pth|pt|pth\.tar|safetensors)$', Path(path).name)
    return found[1] if found and not _is_date(found[1]) else None


def _is_date(digits: str) -> bool:
    if not digits.isdecimal() or not digits.startswith('20'):
        return False
    try:
        datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


def check_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        CheckpointError: the file's name states another one.
    """
    digest, stated = sha256_of(path), hash_in_name(path)
    if stated and not digest.startswith(stated):
        raise CheckpointError(
            f'{path} must have the SHA-256 that its name states, {stated}..., got {digest}; fetch '
            'it '
            'again, or rename it if you know better.'
        )
    return digest


def _reader_of(path: Path) -> tuple[Callable[[Path], tuple[Any, dict[str, str]]], int]:
    """Return what reads a file of this content, and how many times the file's size its tensors may
    take.
    """
    with path.open('rb') as file:
        head = file.read(HEAD)
    # the length of its header in eight bytes, and the header
    is_safetensors = head[8:9] == b'{' and head[5:8] == bytes(3)
    if not head or not is_safetensors and what_else(path, head):
        raise CheckpointError(
            f'{path} must hold weights, got {what_else(path, head) if head else "an empty file"}.'
        )
    if head.startswith(b'PK'):
        return (_read_torch, MAX_VIEWS) if _is_torch_archive(path) else (_read_npz, MAX_EXPANSION)
    return (
        safetensors.load if path.suffix == '.safetensors' or is_safetensors else _read_torch
    ), MAX_VIEWS


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise CheckpointError(f'{path} is broken, perhaps cut off: {error}.') from error


def _is_torch_archive(path: Path) -> bool:
    """Return whether an archive is torch's rather than numpy's, after a look at the sizes that it
    states.
    """
    entries = _entries(path)
    is_torch = any(entry.filename.endswith('data.pkl') for entry in entries)
    if is_torch and any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f'{path} must be stored as torch does, got an archive with compressed parts.'
        )
    stray = next((entry.filename for entry in entries if not entry.filename.endswith('.npy')), None)
    if not is_torch and stray:
        raise CheckpointError(
            f'{path} must be an archive of torch or of arrays, got other parts in it, as {stray!r}.'
        )
    _check_size(path, sum(entry.file_size for entry in entries), 1 if is_torch else MAX_EXPANSION)
    return is_torch


def _check_size(path: Path, stated: int, expansion: int) -> None:
    size = path.stat().st_size
    if stated > min(MAX_BYTES, expansion * max(size, 4096)):
        raise CheckpointError(
            f'{path} has {size} bytes but states {stated} bytes of tensors, more than {expansion} '
            f'times as many or than {MAX_BYTES}: it is not read.'
        )


def _read_torch(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        check_pickles(path)
        with ignoring():
            return torch.load(path, map_location='cpu', weights_only=True), {}
    except Exception as error:
        raise CheckpointError(
            f'{path} cannot be read as plain tensors, and nothing else is loaded: '
            f'{type(error).__name__}: '
            f'{_reason(str(error))[:300]} If you trust the file, save its state dict alone where '
            'it was made: '
            f'torch.save(model.state_dict(), PATH).'
        ) from error


def _reason(text: str) -> str:
    """Return what torch refused: what the unpickler says, the sentences on a global, or the first
    one.
    """
    refused = re.search(r'WeightsUnpickler error:\s*([^\n]+)', text)
    sentences = re.split(
        r'\n|Please|Re-running|In PyTorch',
        refused[1] if refused else text.replace('Weights only load failed.', ''),
    )
    return (
        ' '.join(part.strip() for part in sentences if 'GLOBAL' in part or 'global' in part)
        or sentences[0].strip()
    )


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    result = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as file:
                    result[entry.filename.removesuffix('.npy')] = _read_array(file, entry)
            # what broken bytes raise is up to numpy, zlib and bz2
            except Exception as error:
                raise CheckpointError(
                    f'{path}, array {entry.filename!r}: {error or type(error).__name__}.'
                ) from error
    return result, {}


def _read_array(file: Any, entry: zipfile.ZipInfo) -> Tensor:
    """Read one array whose header agrees with the size of its part of the archive."""
    version = np.lib.format.read_magic(file)
    if version not in ARRAY_HEADERS:
        raise ValueError(f'the format of arrays must be 1.0 or 2.0, got {version}')
    shape, fortran, dtype = ARRAY_HEADERS[version](file)
    if dtype.hasobject or dtype.kind not in 'fiub':
        raise ValueError(f'arrays must hold numbers, got dtype {dtype}')
    if (
        not plausible(shape, dtype.itemsize)
        or math.prod(shape) * dtype.itemsize != entry.file_size - file.tell()
    ):
        raise ValueError(
            f'a shape {shape} of {dtype} does not fit the {entry.file_size} bytes that are there'
        )
    data = np.frombuffer(bytearray(file.read()), dtype)
    return torch.from_numpy(
        data.reshape(shape, order='F' if fortran else 'C').astype(dtype.newbyteorder('='))
    )


def _find_tensors(
    path: Path, content: Any, key: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Return the tensors, the keys that lead to them, and what else is beside them."""
    container: tuple[str, ...] = ()
    others: list[str] = []
    wanted: tuple[str, ...] = (key,) if key else CONTAINERS
    # scripts wrap a dict in a dict, no deeper
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((name for name in wanted if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            if key and not container:
                raise CheckpointError(
                    f'key must be one of those in {path}, {list(content)[:20]}, got {key!r}.'
                )
            break
        others += [str(name) for name in content if name != inner]
        container, content, wanted = (*container, inner), content[inner], CONTAINERS
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} must hold a dict of tensors, got {type(content).__name__}.')
    state = {
        str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)
    }
    others += [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    return state, container, tuple(others)


def _check_tensors(path: Path, state: dict[str, Tensor]) -> None:
    if not state:
        raise CheckpointError(
            f'{path} must hold tensors, by themselves or under one of {CONTAINERS}, got none.'
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != 'cpu':
            raise CheckpointError(
                f'{path}, {name}: weights must be dense tensors of plain numbers, got '
                f'{value.layout}, {value.dtype} on {value.device}.'
            )
