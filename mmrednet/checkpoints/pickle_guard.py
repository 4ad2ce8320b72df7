"""Checks a ``.pth`` file before torch unpickles it.

A pickle is not data but a program. It is a list of instructions for a small machine with a stack:
push a number, make a tuple of the top three values, import a name, call it. Two things make such a
program dangerous:

1. It may import and call anything, for example ``os.system``. Here every name is compared with
   ``ALLOWED_NAMES``, and a file with any other name is refused.
2. It may build values without bound. ``bytearray(10**12)`` is one short call. A tuple of twice a
   tuple of twice a tuple doubles with every two bytes. ``torch.load(weights_only=True)`` forbids
   other names but not growth. Here the instructions are followed without being executed: of each
   value only its size and its depth are kept, and a file that builds too much is refused.

The instructions also state the size of each tensor's storage. It must be the size of the bytes that
the file holds for it, so torch takes no more memory than the file has.

``check_torch_file`` is the entry point. Nothing in this file unpickles anything, except a plain
list of strings, see ``_StringsUnpickler``.
"""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

# bytes per element of the storages that weights may have
STORAGE_ITEMSIZES = {
    'torch.ComplexDoubleStorage': 16,
    'torch.DoubleStorage': 8,
    'torch.ComplexFloatStorage': 8,
    'torch.LongStorage': 8,
    'torch.FloatStorage': 4,
    'torch.IntStorage': 4,
    'torch.QInt32Storage': 4,
    'torch.HalfStorage': 2,
    'torch.BFloat16Storage': 2,
    'torch.ShortStorage': 2,
    'torch.ByteStorage': 1,
    'torch.CharStorage': 1,
    'torch.BoolStorage': 1,
    'torch.QInt8Storage': 1,
    'torch.QUInt8Storage': 1,
}
# What training scripts keep beside the weights: mmengine's history of logged numbers with the names
# of its methods, numpy's numbers, and the options of timm's scripts. None of it is executed: a
# stand-in that does nothing takes the place of each name.
STAND_IN_NAMES = frozenset(
    (
        'mmengine.logging.history_buffer.HistoryBuffer',
        'builtins.getattr',
        'argparse.Namespace',
        'numpy.ndarray',
        'numpy.dtype',
        'numpy.core.multiarray._reconstruct',
        'numpy.core.multiarray.scalar',
        'numpy._core.multiarray._reconstruct',
        'numpy._core.multiarray.scalar',
    )
)
# what state dicts are made of
ALLOWED_NAMES = re.compile(
    r'collections\.(OrderedDict|Counter)'
    r'|_codecs\.encode'
    r'|torch\.(Size|device)'
    r'|torch\.(float|bfloat|int|uint|bool|complex|per_)\w*'
    r'|torch\.nn\.parameter\.Parameter'
    r'|torch\.serialization\._get_layout'
    r'|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)'
    r'|torch\._utils\._rebuild_(sparse_tensor|qtensor)'
)
# Values and characters that a pickle may build per byte of its own. A value that is used twice
# counts twice. Real files stay below 10; each step of doubling costs an attacker two bytes.
MAX_GROWTH = 100
# what any file may build, so that short pickles are not refused for a repeated word
FREE_SIZE = 1 << 20
# values inside each other; state dicts with the state of an optimizer have about 10
MAX_DEPTH = 100
# The older format is five pickles: a magic number, a version, the machine, the content, and the
# keys of the storages, whose bytes follow.
LEGACY_MAGIC = re.compile(rb'\x80.\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.', re.DOTALL)
# before the bytes of each storage stands its number of elements
LEGACY_STORAGE_HEADER = 8
# instructions that name things in other ways than GLOBAL; torch does not write them
FORBIDDEN_OPCODES = {'STACK_GLOBAL', 'INST', 'OBJ', 'NEWOBJ_EX', 'EXT1', 'EXT2', 'EXT4'}
# instructions that add to the value below their operands instead of making a new one
GROWING_OPCODES = {'APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD'}
TUPLE_OPCODES = {'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'}
# of a storage's description: 'storage', type, key, location, number of elements, view of it or None
STORAGE_FIELDS = (5, 6)


class PickleSummary(NamedTuple):
    """What a pickle names, and the size in bytes of each storage by key."""

    names: set[str]
    storages: dict[str, int]


def check_torch_file(path: Path) -> set[str]:
    """Check everything that torch would unpickle of a file, and the sizes of its storages.

    Args:
        path: An archive, or a file of torch's older format.

    Returns:
        The names in it that need a stand-in, for :func:`stand_ins`.

    Raises:
        pickle.UnpicklingError: It is not torch's, names what weights do not need, builds too much,
            or states storages that it does not have.
        ValueError, LookupError, OSError, zipfile.BadZipFile: It is broken.
    """
    with path.open('rb') as file:
        is_archive = file.read(2) == b'PK'
    names = _check_archive(path) if is_archive else _check_legacy(path)
    return names & STAND_IN_NAMES


def _check_archive(path: Path) -> set[str]:
    names: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        # torch finds names whatever their case, so two that differ in case alone are one
        if len({name.lower() for name in sizes}) != len(archive.infolist()):
            raise pickle.UnpicklingError('two parts of the archive have the same name.')
        for filename in sizes:
            if not filename.lower().endswith('data.pkl'):
                continue
            with archive.open(filename) as stream:
                summary = check_pickle(stream)  # type: ignore[arg-type]
            folder = filename[: -len('data.pkl')]
            for key, size in summary.storages.items():
                stored = sizes.get(f'{folder}data/{key}')
                if stored != size:
                    raise pickle.UnpicklingError(
                        f'it states {size} bytes for storage {key!r:.40}, but has {stored}.'
                    )
            names |= summary.names
    return names


def _check_legacy(path: Path) -> set[str]:
    with path.open('rb') as file:
        if not LEGACY_MAGIC.match(file.read(64)):
            raise pickle.UnpicklingError(
                'torch did not write it (for .pdparams, see docs/pretrained.md).'
            )
        file.seek(0)
        header = [check_pickle(file) for _ in range(3)]
        content = check_pickle(file)
        keys = _read_keys(file)
        available = path.stat().st_size - file.tell()
    # torch fills the storages of this list alone, and leaves others as the memory was
    if sorted(keys) != sorted(content.storages):
        raise pickle.UnpicklingError(
            f'it lists {len(keys)} storages, but its tensors need {len(content.storages)} others.'
        )
    needed = sum(LEGACY_STORAGE_HEADER + size for size in content.storages.values())
    if needed > available:
        raise pickle.UnpicklingError(
            f'its storages need {needed} bytes, but {available} bytes follow.'
        )
    return content.names.union(*(summary.names for summary in header))


class _StringsUnpickler(pickle.Unpickler):
    """Unpickles what names nothing: numbers, strings, and lists of them."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f'a list of keys must name nothing, got {module}.{name}.')


def _read_keys(file: BinaryIO) -> list[str]:
    """Read the list of storage keys, after the same check as the other pickles."""
    start = file.tell()
    check_pickle(file)
    end = file.tell()
    file.seek(start)
    keys = _StringsUnpickler(file).load()
    file.seek(end)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError('the keys of its storages must be a list of strings.')
    return keys


class _Unknown:
    """Stands for a literal that is not followed."""


class _Value:
    """What is kept of a value on the stack.

    Args:
        size: Number of values and characters in it, each use counted.
        parts: Values that it is made of.
        literal: The value itself if it is a number, a string, a name, None, or a short tuple of
            these. Only descriptions of storages need it.
    """

    def __init__(self, size: int, parts: Iterable[_Value] = (), literal: object = _Unknown) -> None:
        self.size = size
        self.depth = 0
        self.literal = literal
        self.add(parts)

    def add(self, parts: Iterable[_Value]) -> None:
        for part in parts:
            self.size += part.size
            self.depth = max(self.depth, part.depth + 1)


# None is a mark: it tells how far down the stack an instruction such as TUPLE takes values
Stack = list[_Value | None]


def check_pickle(stream: BinaryIO) -> PickleSummary:
    """Follow one pickle to its end, without executing it.

    Raises:
        pickle.UnpicklingError: It names what weights do not need, or builds too much.
        ValueError, LookupError: It is broken.
    """
    summary = PickleSummary(set(), {})
    stack: Stack = []
    memo: dict[Any, _Value | None] = {}
    start, built = stream.tell(), 0
    for opcode, argument, position in pickletools.genops(stream):
        if opcode.name in FORBIDDEN_OPCODES:
            raise pickle.UnpicklingError(f'it has the instruction {opcode.name}.')
        if opcode.name == 'GLOBAL':
            summary.names.add(_checked_name(str(argument)))
        # PUT remembers the top of the stack under a number, GET pushes what was remembered
        if 'PUT' in opcode.name:
            memo[argument] = stack[-1]
            continue
        if 'GET' in opcode.name:
            stack.append(memo[argument])
            continue
        if opcode.name == 'BINPERSID':
            _add_storage(summary.storages, stack[-1])
        value, growth = _step(stack, opcode, argument)
        built += growth
        if built > FREE_SIZE + MAX_GROWTH * ((position or 0) - start) or (
            value is not None and value.depth > MAX_DEPTH
        ):
            raise pickle.UnpicklingError(
                f'it builds more than {MAX_GROWTH} times its own size, or deeper than {MAX_DEPTH} '
                'values in each other.'
            )
    return summary


def _step(stack: Stack, opcode: Any, argument: Any) -> tuple[_Value | None, int]:
    """Do to the stack what an instruction does.

    ``pickletools`` states for each instruction what it takes from the stack and what it leaves, so
    all of them are handled alike.

    Returns:
        The value that it makes or adds to, if any, and by how much that value grows.
    """
    operands = _pop_operands(stack, opcode)
    if opcode.name == 'MARK':
        stack.append(None)
    if opcode.name == 'MARK' or not opcode.stack_after:
        return None, 0
    if opcode.name in GROWING_OPCODES:
        value = operands[0]
        before = value.size
        value.add(operands[1:])
    else:
        characters = len(argument) if isinstance(argument, (str, bytes)) else 0
        value = _Value(1 + characters, operands, _literal(opcode, argument, operands))
        before = 0
    stack += [value] * len(opcode.stack_after)
    return value, value.size - before


def _pop_operands(stack: Stack, opcode: Any) -> list[_Value]:
    """Take an instruction's operands from the stack, the lowest first."""
    operands: list[_Value] = []
    below_mark = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        below_mark = opcode.stack_before.index(pickletools.markobject)
        while (value := stack.pop()) is not None:
            operands.append(value)
    for _ in range(below_mark):
        operands.append(stack.pop())  # type: ignore[arg-type]
    return operands[::-1]


def _literal(opcode: Any, argument: Any, operands: list[_Value]) -> object:
    if opcode.name == 'GLOBAL':
        return _dotted_name(argument)
    if opcode.name == 'NONE':
        return None
    if opcode.name in TUPLE_OPCODES and len(operands) <= max(STORAGE_FIELDS):
        return tuple(operand.literal for operand in operands)
    if isinstance(argument, (int, str)):
        return argument
    return _Unknown


def _add_storage(storages: dict[str, int], value: _Value | None) -> None:
    """Add the size of the storage that a value describes."""
    fields = value.literal if value is not None else None
    if not isinstance(fields, tuple) or len(fields) not in STORAGE_FIELDS:
        raise pickle.UnpicklingError('it describes a storage in another way than torch does.')
    id_type, type_name, key, _, count = fields[:5]
    itemsize = STORAGE_ITEMSIZES.get(type_name) if isinstance(type_name, str) else None
    if (
        id_type != 'storage'
        or itemsize is None
        or type(key) is not str
        or type(count) is not int
        or count < 0
        # views of storages were given up before torch 0.4
        or fields[5:] not in ((), (None,))
    ):
        raise pickle.UnpicklingError('it describes a storage in another way than torch does.')
    if storages.setdefault(key, count * itemsize) != count * itemsize:
        raise pickle.UnpicklingError(f'it states two sizes of storage {key!r:.40}.')


def _dotted_name(argument: str) -> str:
    module, _, name = argument.partition(' ')
    # what Python 2 called __builtin__; pickles of protocol 2 still do
    return f'{"builtins" if module == "__builtin__" else module}.{name}'


def _checked_name(argument: str) -> str:
    name = _dotted_name(argument)
    if (
        name not in STORAGE_ITEMSIZES
        and name not in STAND_IN_NAMES
        and not ALLOWED_NAMES.fullmatch(name)
    ):
        raise pickle.UnpicklingError(f'it names {name}, which weights do not need.')
    return name


class StandIn:
    """Takes whatever an object is made of, keeps nothing, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# torch's table of allowed classes is one for the whole process
_TABLE_LOCK = threading.RLock()
# from this version on the table takes a name beside a class
_TAKES_NAMES = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


@contextlib.contextmanager
def safe_globals(entries: list[Any]) -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` build these objects, and no others.

    Meanwhile the process's own entries are removed from torch's table, since one of them may be the
    class of a name in the file. Afterwards the table is as before, plus what other threads added.

    Args:
        entries: Pairs of an object and its name in files. Before torch 2.6 an object is found by
            its own name alone.
    """
    added = entries if _TAKES_NAMES else [value for value, _ in entries]
    with _TABLE_LOCK:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(added)
        try:
            yield
        finally:
            now = torch.serialization.get_safe_globals()
            torch.serialization.clear_safe_globals()
            additions = [entry for entry in now if entry not in added]
            torch.serialization.add_safe_globals([*before, *additions])


def stand_ins(names: set[str]) -> contextlib.AbstractContextManager[None]:
    """Let ``torch.load(weights_only=True)`` put a :class:`StandIn` in place of these names.

    Without names torch's table is left alone. Before torch 2.6 the files that need stand-ins are
    refused by torch.

    Args:
        names: What :func:`check_torch_file` returned.
    """
    if not names or not _TAKES_NAMES:
        return contextlib.nullcontext()
    return safe_globals([(StandIn, name) for name in sorted(names)])
