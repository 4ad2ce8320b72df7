"""Reads the tensors of a checkpoint file, without executing anything that is in it and without
trusting the sizes that it states.

Libraries read the tensors: ``safetensors``, ``torch.load(weights_only=True, mmap=True)`` and
``numpy.load(allow_pickle=False)``. This file tells the formats apart by their content, compares
stated sizes with the size of the file before memory is taken, and checks the result.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from .pickle_guard import check_torch_file, safe_globals, stand_ins

# Limits on what a file may state, all in one place.
# bytes of all tensors; the largest network here has 2 GB
MAX_BYTES = 16 << 30
# how many times its own size a compressed file may unpack to; compressed weights gain 10 %
MAX_EXPANSION = 100
# how many times the size of the file its tensors may have; views of one storage are rare
MAX_VIEWS = 4
# dimensions of a tensor; weights of a 3D convolution have five
MAX_RANK = 16
# characters, dots and digits in a row of a key; keys of real networks stay below 300, 20 and 5
MAX_KEY_LENGTH = 1000
MAX_KEY_DOTS = 64
MAX_KEY_DIGITS = 18

# keys under which training scripts keep the state dict, the first that is there
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
# scripts wrap a dict in a dict, no deeper
MAX_CONTAINERS = 3
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# integer tensors that belong to a state dict, beside single numbers, which count something
INDEX_TABLES = ('flatten_index', 'relative_position_index')

# bytes that tell a format
HEAD_SIZE = 512
# other files that people take for weights: offset, first bytes, and what to say
FOREIGN_FILES = (
    (0, b'<', 'a web page: the download gave a page instead of the file'),
    (0, b'version https://git-lfs', 'a pointer of Git LFS: the file itself was not fetched'),
    (
        0,
        b'\x89HDF\r\n\x1a\n',
        "an HDF5 file, as Keras writes: save its arrays by name with numpy's savez",
    ),
    (0, b'\x1f\x8b', 'a gzip file, as .tar.gz: unpack it, and give the file of weights in it'),
    (257, b'ustar', 'a tar archive: unpack it, and give the file of weights in it'),
)
# bytes of a JSON file that is looked into; the index of a large model has 100 kB
MAX_INDEX_SIZE = 16 << 20


class CheckpointError(ValueError):
    """A checkpoint cannot be read safely, is of no known format, or does not fit the network."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file.

    Args:
        path: Path of the file.
        state: Tensors by key, on the CPU and in the dtypes of the file.
        container: Keys that lead to the state dict in the file, such as ('state_dict',).
        unused_keys: Keys beside the tensors and beside the containers.
        metadata: Texts beside the tensors.
    """

    path: Path
    state: dict[str, Tensor]
    container: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | Path, *, key: str | None = None, check: bool = True) -> Checkpoint:
    """Read the tensors of a ``.pth``, ``.pth.tar``, ``.safetensors`` or ``.npz`` file.

    The format is told by the content, not by the ending. Tensors of ``.pth`` and ``.safetensors``
    are mapped from the file: their memory is taken when they are used, and the file must not be
    overwritten in place meanwhile.

    Args:
        path: Path of the file.
        key: Key of the state dict in the file, such as 'state_dict_ema'. Default: the first of
            ``CONTAINERS`` that is there.
        check: Whether every tensor must be a weight, see :func:`check_weights`. A caller that uses
            some of the tensors checks those alone.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file holds more than plain tensors, is broken, states sizes that it
            cannot have, or has weights that are not finite or not floating point.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint must be an existing file, got {str(path)!r}.')
    reader = _reader_of(path)
    content, metadata = reader(path)
    state, container, unused_keys = _find_state(path, content, key)
    stated = sum(value.numel() * value.element_size() for value in state.values())
    _check_size(path, stated, MAX_EXPANSION if reader is _read_npz else MAX_VIEWS)
    _check_tensors(path, state)
    if check:
        check_weights(path, state)
    return Checkpoint(path, state, container, unused_keys, metadata)


Content = tuple[Any, dict[str, str]]


def _reader_of(path: Path) -> Callable[[Path], Content]:
    """Return the function that reads a file of this content."""
    with path.open('rb') as file:
        head = file.read(HEAD_SIZE)
    if not head:
        raise CheckpointError(f'{path} must hold weights, got an empty file.')
    # eight bytes with the length of a JSON header, then the header
    if head[8:9] == b'{' and head[5:8] == bytes(3):
        return _read_safetensors
    foreign = _foreign_file(path, head)
    if foreign:
        raise CheckpointError(f'{path} must hold weights, got {foreign}.')
    if head.startswith(b'PK'):
        return _read_torch if _is_torch_archive(path) else _read_npz
    return _read_safetensors if path.suffix == '.safetensors' else _read_torch


def _foreign_file(path: Path, head: bytes) -> str:
    """Return what a file is that holds no weights, '' if that is not known."""
    text = head.lstrip()
    for offset, start, description in FOREIGN_FILES:
        if (head[offset:] if offset else text).startswith(start):
            return description
    return _describe_json(path) if text.startswith(b'{') else ''


def _describe_json(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes() if path.stat().st_size <= MAX_INDEX_SIZE else b'')
        files = sorted({str(name) for name in content['weight_map'].values()})
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 'a JSON file'
    more = f' and {len(files) - 5} more' if len(files) > 5 else ''
    return (
        f'the index of a model in {len(files)} files: give one that has the weights wanted, '
        f'{files[:5]}{more}, or join them in one'
    )


def _is_torch_archive(path: Path) -> bool:
    """Return whether an archive is torch's rather than numpy's, after a look at its sizes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise CheckpointError(f'{path} is broken, perhaps cut off: {error}.') from error
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
    # headers count for much in tiny files
    if stated > min(MAX_BYTES, expansion * max(size, 4096)):
        raise CheckpointError(
            f'{path} has {size} bytes but states {stated} bytes of tensors, more than {expansion} '
            f'times as many or than {MAX_BYTES}: it is not read.'
        )


def _plausible(shape: Sequence[int], itemsize: int) -> bool:
    """Return whether a tensor may have this shape: few dimensions whose product, zeros left out, is
    no more than ``MAX_BYTES``.

    The rank is checked first, since a product of thousands of large numbers takes long.
    """
    if len(shape) > MAX_RANK or not all(0 <= size <= MAX_BYTES for size in shape):
        return False
    return math.prod(max(1, size) for size in shape) * itemsize <= MAX_BYTES


def _read_safetensors(path: Path) -> Content:
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            keys = file.offset_keys()
            for key in keys:
                shape = file.get_slice(key).get_shape()
                if not _plausible(shape, itemsize=1):
                    raise ValueError(
                        f'{key!r:.100} must have up to {MAX_RANK} dimensions and {MAX_BYTES} '
                        f'elements, got the shape {str(shape):.100}'
                    )
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    # what broken bytes raise is up to the library
    except Exception as error:
        raise CheckpointError(
            f'{path} is no safetensors file, or a broken one, perhaps cut off: {error}.'
        ) from error


def load_torch_file(path: Path, *, map_location: Any, entries: list[Any] | None = None) -> Any:
    """Load a file of torch after all checks, without executing anything that is in it.

    Args:
        path: Path of the file.
        map_location: Where its tensors go, as ``torch.load`` takes it.
        entries: What torch may build beside tensors, as entries of its table of safe globals.
            Default: none, stand-ins that do nothing take the place of what the file names, and
            its tensors are mapped from it.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It names anything else, or is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint must be an existing file, got {str(path)!r}.')
    try:
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            _check_crcs(path)
        names = check_torch_file(path)
        with stand_ins(names) if entries is None else safe_globals(entries):
            # a run that is resumed writes its own checkpoints, so what it loads is not mapped
            mmap = is_archive and entries is None
            # safe_loading replaces torch.load by a function that ends here
            load = getattr(torch.load, 'replaced', torch.load)
            return load(path, map_location=map_location, weights_only=True, mmap=mmap)
    # what broken pickles raise is up to the unpickler
    except Exception as error:
        raise CheckpointError(
            f'{path} cannot be read as plain tensors, and nothing else is loaded: '
            f'{type(error).__name__}: {_torch_reason(str(error)):.300} If you trust the file, save '
            'its state dict alone where it was made: torch.save(model.state_dict(), PATH).'
        ) from error


def _read_torch(path: Path) -> Content:
    content = load_torch_file(path, map_location='cpu')
    meta = content.get('meta') if isinstance(content, Mapping) else None
    texts = meta.items() if isinstance(meta, Mapping) else ()
    return content, {str(name): text for name, text in texts if isinstance(text, str)}


def _check_crcs(path: Path) -> None:
    """Compare the parts of an archive with their checksums, which torch does not do."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(
            f'{broken!r} does not have its checksum: bytes of the file have changed, or it was '
            'written without checksums.'
        )


def _torch_reason(text: str) -> str:
    """Return what torch refused: what the unpickler says, the sentences on a global, or the first
    one.
    """
    refused = re.search(r'WeightsUnpickler error:\s*([^\n]+)', text)
    message = refused[1] if refused else text.replace('Weights only load failed.', '')
    sentences = re.split(r'\n|Please|Re-running|In PyTorch', message)
    on_globals = [part.strip() for part in sentences if 'global' in part.lower()]
    return ' '.join(on_globals) or sentences[0].strip()


def _read_npz(path: Path) -> Content:
    state = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as file:
                    _check_array_header(file, entry)
                key = entry.filename.removesuffix('.npy')
                array = arrays[key]
                # torch has no arrays of the other byte order
                native = array.astype(array.dtype.newbyteorder('='), copy=False)
                state[key] = torch.from_numpy(native)
            # what broken bytes raise is up to numpy, zlib and bz2
            except Exception as error:
                raise CheckpointError(
                    f'{path}, array {entry.filename!r}: {error or type(error).__name__}.'
                ) from error
    return state, {}


def _check_array_header(file: Any, entry: zipfile.ZipInfo) -> None:
    """Compare an array's shape with the size of its part of the archive: numpy takes the memory
    that the shape asks for.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f'the format of arrays must be 1.0 or 2.0, got {version}')
    if dtype.hasobject or dtype.kind not in 'fiub':
        raise ValueError(f'arrays must hold numbers, got dtype {dtype}')
    available = entry.file_size - file.tell()
    plausible = _plausible(shape, dtype.itemsize)
    if not plausible or math.prod(shape) * dtype.itemsize != available:
        raise ValueError(
            f'a shape {shape} of {dtype} does not fit the {entry.file_size} bytes that are there'
        )


def _find_state(
    path: Path, content: Any, key: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Return the tensors, the keys that lead to them, and the other keys on the way."""
    container: tuple[str, ...] = ()
    unused: list[str] = []
    candidates: tuple[str, ...] = (key,) if key else CONTAINERS
    for _ in range(MAX_CONTAINERS):
        if not isinstance(content, Mapping):
            break
        inner = next((name for name in candidates if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            if key and not container:
                raise CheckpointError(
                    f'key must be one of those in {path}, {list(content)[:20]}, got {key!r}.'
                )
            break
        unused += [str(name) for name in content if name != inner]
        container, content, candidates = (*container, inner), content[inner], CONTAINERS
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} must hold a dict of tensors, got {type(content).__name__}.')
    state = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            state[str(name)] = value.detach()
        else:
            unused.append(str(name))
    return state, container, tuple(unused)


def _check_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Check keys and kinds of tensors, but not yet their values."""
    if not state:
        raise CheckpointError(
            f'{path} must hold tensors, by themselves or under one of {CONTAINERS}, got none.'
        )
    for key, value in state.items():
        if (
            len(key) > MAX_KEY_LENGTH
            or key.count('.') > MAX_KEY_DOTS
            or re.search(rf'\d{{{MAX_KEY_DIGITS + 1}}}', key)
        ):
            raise CheckpointError(
                f'{path}: keys must have up to {MAX_KEY_LENGTH} characters, {MAX_KEY_DOTS} dots '
                f'and {MAX_KEY_DIGITS} digits in a row, got {len(key)} characters and '
                f'{key.count(".")} dots in {key!r:.100} ...'
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != 'cpu':
            raise CheckpointError(
                f'{path}, {key}: weights must be dense tensors of plain numbers, got '
                f'{value.layout}, {value.dtype} on {value.device}.'
            )


def check_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Check tensors that are loaded or written.

    Raises:
        CheckpointError: Some are not finite, or not floating point.
    """
    dtypes = {key: str(value.dtype) for key, value in state.items() if not _has_dtype(key, value)}
    if dtypes:
        raise CheckpointError(
            f'{path}: weights must be floating point, got {len(dtypes)} other tensors: '
            f'{dict(list(dtypes.items())[:5])}.'
        )
    broken = [key for key, value in state.items() if not _is_finite(value)]
    if broken:
        raise CheckpointError(
            f'{path}: weights must be finite, got NaN or infinity in {len(broken)} of {len(state)} '
            f'tensors: {broken[:5]}.'
        )


def describe_non_weights(unused: Mapping[str, Tensor]) -> list[str]:
    """Return a line that names the tensors which :func:`check_weights` would refuse, [] if none."""
    keys = [
        key for key, value in unused.items() if not _has_dtype(key, value) or not _is_finite(value)
    ]
    if not keys:
        return []
    more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
    return [f'not used, and not finite or not floating point: {", ".join(keys[:5])}{more}']


def _has_dtype(key: str, value: Tensor) -> bool:
    """Return whether a tensor has the dtype of weights, or is a counter or a table of indices."""
    return value.dtype in WEIGHT_DTYPES or value.dim() == 0 or key.endswith(INDEX_TABLES)


def _is_finite(value: Tensor) -> bool:
    if value.dtype not in WEIGHT_DTYPES or not value.numel():
        return True
    # NaN and infinity are seen in the extremes, and no copy is made as isfinite() does
    return all(bool(extreme.isfinite()) for extreme in value.aminmax())


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
