"""The safetensors format: eight bytes with the length of a JSON header, the header, and the tensors
one after another.

The header gives for each name dtype, shape and place in the data, and texts under ``__metadata__``.
The format is small enough to be checked in full here, and needs no library.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError
from .limits import MAX_BYTES, MAX_RANK, plausible

DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# the limit of the format's own library
MAX_HEADER = 100_000_000


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file in the order of its header, and the texts beside them.

    Raises:
        CheckpointError: the file is broken; the message says how.
    """
    with path.open('rb') as file:
        length, size = int.from_bytes(file.read(8), 'little'), path.stat().st_size - 8
        if not 0 < length <= min(MAX_HEADER, size):
            raise CheckpointError(
                f'{path} is no safetensors file, or a broken one: its header must fit into the '
                f'{size} bytes behind its length, got {length} bytes.'
            )
        header = _header(path, file.read(length))
        data = file.read()
    metadata = header.pop('__metadata__', {})
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in metadata.values()
    ):
        raise CheckpointError(
            f'{path}: __metadata__ must be texts by name, got {str(metadata)[:100]}.'
        )
    places = {name: _place(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, first, last) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise CheckpointError(
                f'{path}, {name}: tensors must lie one behind another, got one at {first} after '
                f'{end} bytes.'
            )
        end = last
    if end != len(data):
        raise CheckpointError(
            f'{path} is broken, perhaps cut off: it must have {end} bytes of tensors, got '
            f'{len(data)}.'
        )
    return {name: _tensor(data, *place) for name, place in places.items()}, metadata


def _header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError('a name occurs twice')
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is no safetensors file, or a broken one: its header cannot be read: {error}.'
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f'{path}: the header must be a dict, got {type(header).__name__}.')
    return header


def _place(path: Path, name: str, entry: Any) -> tuple[torch.dtype, list[int], int, int]:
    """Return dtype, shape and place of a tensor whose size fits them."""
    try:
        dtype, shape, (first, last) = DTYPES[entry['dtype']], entry['shape'], entry['data_offsets']
        fits = (
            isinstance(shape, list)
            and plausible(shape, dtype.itemsize)
            and all(type(place) is int and place >= 0 for place in (first, last))
            and (last - first == math.prod(shape) * dtype.itemsize)
        )
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise CheckpointError(
            f'{path}, {name}: dtype, one of {list(DTYPES)}, shape and data_offsets must fit each '
            f'other, in up to {MAX_RANK} dimensions and {MAX_BYTES} bytes, got {str(entry)[:200]}.'
        )
    return dtype, shape, first, last


def _tensor(data: bytes, dtype: torch.dtype, shape: list[int], first: int, last: int) -> Tensor:
    if first == last:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[first:last]), dtype=dtype).reshape(shape)


def save(file: BinaryIO, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors, in their order, and texts."""
    header: dict[str, Any] = {'__metadata__': metadata} if metadata else {}
    end = 0
    for name, value in state.items():
        first, end = end, end + value.numel() * value.element_size()
        header[name] = dict(
            dtype=NAMES[value.dtype], shape=list(value.shape), data_offsets=[first, end]
        )
    text = json.dumps(header, separators=(',', ':')).encode()
    # tensors begin at a multiple of eight bytes
    text += b' ' * (-len(text) % 8)
    file.write(len(text).to_bytes(8, 'little') + text)
    for value in state.values():
        file.write(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
