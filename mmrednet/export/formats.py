"""The formats of exported networks: what each needs, how it is written and how it is run."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from ..ops import _native
from .onnx_file import KNOWN, write_onnx
from .openvino_extension import ENDING, build_extension
from .pooling import blocking_pools, pools_of_any_size
from .programs import blocking, operators, portable, without_kernels
from .runtime import RUNS

FORMS = ('portable', 'native')
Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Format:
    """A format of files.

    Args:
        ending: Ending of the file.
        packages: Packages that writing and running need.
        extra: Extra of mmrednet that installs them.
        forms: Forms of the operators that it can have, the default first.
        write: Writes a program with these names of outputs, in this form.
        beside: Endings of further files of an export.
        keeps_operators: Whether the native form has all operators of ours. Default: False.
    """

    ending: str
    packages: tuple[str, ...]
    extra: str
    forms: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, Sequence[str], str], None]
    beside: tuple[str, ...] = ()
    keeps_operators: bool = False


def library_beside(path: Path) -> Path:
    """Return the path of the library with operators of ours beside a file that needs it."""
    return path.with_suffix(ENDING)


def _write_onnx(program: ExportedProgram, path: Path, names: Sequence[str], _: str) -> None:
    write_onnx(program, path, names)


def _in_form(program: ExportedProgram, form: str) -> ExportedProgram:
    return portable(program) if form == 'portable' else program


def _write_program(program: ExportedProgram, path: Path, _: Sequence[str], form: str) -> None:
    program = copy.copy(_in_form(program, form))
    # an image of 16 MB in a program for any size, which nothing reads in a file
    program.example_inputs = None
    torch.export.save(program, path)


def _write_package(program: ExportedProgram, path: Path, _: Sequence[str], form: str) -> None:
    program = pools_of_any_size(_in_form(program, form))
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    if not any(name.startswith('mmrednet.') for name in operators(program)):
        return
    # the kernels, for a process without mmrednet: compiled now if nothing has used them yet
    _native.ensure(torch.empty(0))
    if _native.loaded:
        shutil.copyfile(_native.loaded[-1], library_beside(path))


def _write_openvino(program: ExportedProgram, path: Path, names: Sequence[str], form: str) -> None:
    import openvino

    native = form == 'native'
    library = build_extension() if native else None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        write_onnx(program, file, names, native=native)
        model = openvino.convert_model(file, extension=library and str(library))
        openvino.save_model(model, path, compress_to_fp16=False)
    if library:
        shutil.copyfile(library, library_beside(path))


ONNX_PACKAGES = ('onnx', 'onnxscript')
FORMATS: dict[str, Format] = {
    'onnx': Format(
        ending='.onnx',
        packages=(*ONNX_PACKAGES, 'onnxruntime'),
        extra='export',
        forms=('portable',),
        write=_write_onnx,
        beside=('.onnx.data',),
    ),
    'exported-program': Format(
        ending='.pt2',
        packages=(),
        extra='',
        forms=('native', 'portable'),
        write=_write_program,
        keeps_operators=True,
    ),
    'aoti': Format(
        ending='.aoti.pt2',
        packages=(),
        extra='',
        forms=('native', 'portable'),
        write=_write_package,
        beside=(ENDING,),
        keeps_operators=True,
    ),
    'openvino': Format(
        ending='.xml',
        packages=(*ONNX_PACKAGES, 'openvino'),
        extra='openvino',
        forms=FORMS,
        write=_write_openvino,
        beside=('.bin', ENDING),
    ),
}


def run(name: str, path: Path) -> Run:
    """Return a function from an image to the outputs of a file of this format."""
    return RUNS[name](path, torch.get_num_threads())


def missing_message(name: str) -> str | None:
    """Return what a format lacks on this machine and how to get it, or None."""
    entry = FORMATS[name]
    missing = [package for package in entry.packages if find_spec(package) is None]
    if missing:
        return f"--to {name} needs {', '.join(missing)}: pip install 'mmrednet[{entry.extra}]'."
    if name == 'aoti' and not any(map(shutil.which, ('c++', 'g++', 'clang++'))):
        return '--to aoti needs a C++ compiler, such as g++, which is not on the PATH.'
    return None


def blocking_message(program: ExportedProgram, name: str, form: str) -> str | None:
    """Return which operators keep a program out of a format, or None."""
    counts: dict[str, int] = blocking(program, KNOWN)
    if form == 'native' and FORMATS[name].keeps_operators:
        counts = {key: n for key, n in counts.items() if not key.startswith('mmrednet.')}
        counts |= without_kernels(program)
    if name == 'aoti' and (pools := blocking_pools(program)):
        counts['pooling with ceil_mode for images of any size'] = pools
    if not counts:
        return None
    listing = ', '.join(f'{key} ({count})' for key, count in sorted(counts.items()))
    return f'--to {name} --form {form} has no form of these operators: {listing}.'
