"""Pickles looked through before torch unpickles them: what they name, and how much they would
build.

What torch allows under ``weights_only`` can still fill the memory or never end:
    ``bytearray(10**12)``, or a tuple of twice a tuple of twice a tuple, as a key. Here every
    instruction is followed, and of each value only its size is kept.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from .allowed import IGNORED

# what state dicts are made of, and what training scripts keep beside them
ALLOWED = re.compile(
    '|'.join(
        (
            r'collections\.(OrderedDict|Counter)',
            r'_codecs\.encode',
            r'torch\.\w+Storage',
            r'torch\.(Size|device)',
            r'torch\.(float|bfloat|int|uint|bool|complex|per_)\w*',
            r'torch\.nn\.parameter\.Parameter',
            r'torch\.serialization\._get_layout',
            r'torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state|sparse_tensor|qtensor)',
            *map(re.escape, IGNORED),
        )
    )
)
# how many values and characters, every use of a value counted, a pickle may build: per byte of its
# own, and at least
EXPANSION = 100
LEAST = 1 << 20
DEPTH = 100
# torch's older format begins with a number, whatever the pickle's protocol
MAGIC = re.compile(rb'\x80.\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.', re.DOTALL)
# number, version, machine, content, names of storages; behind them lie the storages
PICKLES_OF_A_FILE = 5
GROWING = {'APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD'}


class _Value:
    """The size of a value, and how deep others lie in it; of lists and dicts, so far."""

    def __init__(self, size: int, parts: Iterable[_Value] = ()) -> None:
        self.size, self.depth = size, 0
        self.take(parts)

    def take(self, parts: Iterable[_Value]) -> None:
        for part in parts:
            self.size += part.size
            self.depth = max(self.depth, part.depth + 1)


def check_pickles(path: Path) -> None:
    """Look through all that torch would unpickle of a file, an archive or one of the older format.

    Raises:
        pickle.UnpicklingError: torch did not write the file, it names what weights do not need, or
            builds too much.
        ValueError, LookupError, OSError: it is broken.
    """
    with path.open('rb') as file:
        if file.read(2) == b'PK':
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    # torch finds names whatever their case
                    if entry.filename.lower().endswith('data.pkl'):
                        with archive.open(entry) as stream:
                            check_pickle(stream)  # type: ignore[arg-type]
            return
        file.seek(0)
        if not MAGIC.match(file.read(64)):
            raise pickle.UnpicklingError(
                'torch did not write it (for .pdparams, see docs/pretrained.md).'
            )
        file.seek(0)
        for _ in range(PICKLES_OF_A_FILE):
            check_pickle(file)


def check_pickle(stream: BinaryIO) -> None:
    """Follow one pickle to its end.

    Raises:
        pickle.UnpicklingError: it names what weights do not need, or builds too much.
        ValueError, LookupError: it is broken.
    """
    stack: list[_Value | None] = []
    memo: dict[Any, _Value | None] = {}
    start, built = stream.tell(), 0
    for opcode, argument, position in pickletools.genops(stream):
        if opcode.name == 'GLOBAL':
            _check_name(str(argument))
        if 'PUT' in opcode.name:
            memo[argument] = stack[-1]
        elif 'GET' in opcode.name:
            stack.append(memo[argument])
        else:
            value, added = _step(stack, opcode, argument)
            built += added
            if (
                built > LEAST + EXPANSION * ((position or 0) - start)
                or value
                and value.depth > DEPTH
            ):
                raise pickle.UnpicklingError(
                    f'it builds more than {EXPANSION} times its own size, or deeper than '
                    f'{DEPTH} values in each other.'
                )


def _step(stack: list[_Value | None], opcode: Any, argument: Any) -> tuple[_Value | None, int]:
    """Do what an instruction does to the stack, where None is a mark.

    Returns:
        The value that it makes or adds to, and by how much that grows.
    """
    taken: list[_Value] = []
    if pickletools.markobject in opcode.stack_before:
        while (part := stack.pop()) is not None:
            taken.append(part)
    for _ in opcode.stack_before[: _outside(opcode)]:
        taken.append(stack.pop())  # type: ignore[arg-type]
    if not opcode.stack_after:
        return None, 0
    if opcode.name == 'MARK':
        stack.append(None)
        return None, 0
    before = 0
    if opcode.name in GROWING:
        value, parts = taken[-1], taken[:-1]
        before = value.size
        value.take(parts)
    else:
        value = _Value(1 + (len(argument) if isinstance(argument, (str, bytes)) else 0), taken)
    stack += [value] * len(opcode.stack_after)
    return value, value.size - before


def _outside(opcode: Any) -> int:
    """Return how many values an instruction takes from below the mark, or at all where it needs
    none.
    """
    before = opcode.stack_before
    return before.index(pickletools.markobject) if pickletools.markobject in before else len(before)


def _check_name(argument: str) -> None:
    module, _, name = argument.partition(' ')
    # as Python 3 calls what pickles of protocol 2 call as Python 2 did
    full = f'{"builtins" if module == "__builtin__" else module}.{name}'
    if not ALLOWED.fullmatch(full):
        raise pickle.UnpicklingError(f'it names {full}, which weights do not need.')
