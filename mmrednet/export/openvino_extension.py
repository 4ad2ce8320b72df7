"""The operators of ours as an extension library of OpenVINO, compiled into the user's cache.

Its sources are in csrc/. It runs the kernels of mmrednet/ops/csrc for one instruction set, in
float32, and needs neither torch nor Python.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sysconfig
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ..ops import _build
from ..ops._first_use import (
    BuildError,
    build_once,
    cache_folder,
    compiler,
    compiler_version,
    errors_of,
)
from ..ops._processor import instruction_set

LOGGER = logging.getLogger('mmrednet')
CSRC = Path(__file__).with_name('csrc')
# ending of the library beside a model that needs it
ENDING = '.ops.so'
# libraries of OpenVINO that the extension needs; models in ONNX are read by a library of their own
LIBRARIES = ('libopenvino.so*', 'libopenvino_onnx_frontend.so*', 'libtbb.so*')


def openvino_folder() -> Path:
    """Return the folder of the package openvino.

    Raises:
        BuildError: It is not installed, or has no headers.
    """
    spec = find_spec('openvino')
    remedy = "pip install 'mmrednet[openvino]'"
    if spec is None or spec.origin is None:
        raise BuildError('openvino is not installed', remedy)
    folder = Path(spec.origin).parent
    if not (folder / 'include' / 'openvino').is_dir():
        raise BuildError(f'{folder} has no headers in include/openvino', remedy)
    return folder


def sources() -> list[Path]:
    """Return the source files, without headers: the extension, and the kernels for float32."""
    return [CSRC / 'extension.cpp', _build.CSRC / f'kernels_{_namespace()}_float32.cpp']


def _namespace() -> str:
    """Return the namespace of the kernels for this processor, see ops/csrc/kernel_table.h."""
    name = instruction_set() or 'plain'
    # those for float32 are the same
    return 'avx512' if name == 'avx512bf16' else name


def _flags() -> list[str]:
    """Return the flags of the compiler that do not depend on where anything is installed."""
    only = _build.INSTRUCTION_SETS.index(_namespace())
    return [
        *_build.FLAGS,
        '-std=c++17',
        '-fPIC',
        f'-DMMREDNET_ONLY_ISA={only}',
        f'-DMMREDNET_KERNELS={_namespace()}',
    ]


def cached_extension() -> Path:
    """Return the path in the user's cache of the library that fits, whether it exists or not.

    Raises:
        BuildError: OpenVINO is not installed, or has no headers.
    """
    digest = hashlib.sha256()
    for path in [*sources(), *sorted(CSRC.glob('*.h')), *sorted(_build.CSRC.glob('*.h'))]:
        digest.update(path.name.encode() + b'\0' + path.read_bytes())
    # the library looks for others of OpenVINO in its folder
    runtime = (str(openvino_folder()), version('openvino'))
    platform = (sysconfig.get_platform(), compiler_version())
    digest.update(repr((_flags(), *runtime, *platform)).encode())
    return cache_folder() / 'openvino' / digest.hexdigest()[:16] / 'mmrednet_openvino.so'


def build_extension() -> Path:
    """Compile the extension into the user's cache, unless it is there.

    Returns:
        The path of the library, for ``openvino.Core.add_extension``.

    Raises:
        BuildError: It cannot be compiled. The message says why, and what to do.
    """
    library = cached_extension()
    # the name has a hash of all that it was built from
    build_once(library, library.is_file, _compile)
    return library


def _compile(library: Path) -> None:
    LOGGER.warning(
        'mmrednet compiles its operators for OpenVINO %s into %s, once; it takes about a minute.',
        version('openvino'),
        library.parent,
    )
    start = time.perf_counter()
    # the extension first: where headers are missing, the error comes within seconds
    objects = []
    for source in sources():
        objects.append(library.with_name(f'{source.stem}.o'))
        _run([*_include_flags(), '-c', str(source)], objects[-1])
    # a process that is killed leaves no half of a library under the name
    unfinished = library.with_suffix('.unfinished')
    _run(['-shared', *map(str, objects), *_link_flags()], unfinished)
    os.replace(unfinished, library)
    LOGGER.warning('The operators are compiled, after %.0f s.', time.perf_counter() - start)


def _run(arguments: list[str], output: Path) -> None:
    command = [compiler(), *_flags(), *arguments, '-o', str(output)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(
            f'compilation failed: {errors_of(result.stderr)}',
            'set CXX to a compiler that this OpenVINO supports, such as GCC 11 or newer',
        )


def _include_flags() -> list[str]:
    headers = openvino_folder() / 'include'
    return ['-I', str(_build.CSRC), '-I', str(CSRC), '-isystem', str(headers)]


def _link_flags() -> list[str]:
    folder = openvino_folder() / 'libs'
    libraries = []
    for pattern in LIBRARIES:
        libraries.extend(sorted(folder.glob(pattern))[:1])
    return [*map(str, libraries), f'-Wl,-rpath,{folder}']
