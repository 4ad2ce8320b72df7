"""Compiles the CPU kernels into the user's cache, for this processor alone, when they are first
used and the package has no library that fits. Other libraries of ours are built the same way.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from . import _build
from ._processor import instruction_set

LOGGER = logging.getLogger('mmrednet')
# what switches compilation on first use off
SWITCH = 'MMREDNET_BUILD'


class BuildError(RuntimeError):
    """A library cannot be compiled.

    Args:
        reason: Reason why the compiler cannot run, or fails.
        remedy: Instructions for the user.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f'{reason}: {remedy}')
        self.reason, self.remedy = reason, remedy


def cache_folder() -> Path:
    """Return the package's folder in the user's cache, whether it exists or not."""
    root = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    return Path(root) / 'mmrednet'


def cached_library() -> Path:
    """Return the path in the user's cache of the library that fits, whether it exists or not."""
    compiler = hashlib.sha256(compiler_version().encode()).hexdigest()[:8]
    name = f'{_build.fingerprint(instruction_set())}-{compiler}'
    return cache_folder() / 'kernels' / name / '_C.so'


def compiler() -> str:
    """Return the command of the C++ compiler."""
    return os.environ.get('CXX', 'c++')


def compiler_version() -> str:
    """Return the first line of the compiler's version, or nothing without a compiler."""
    try:
        result = subprocess.run(
            [compiler(), '--version'], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ''
    return result.stdout.partition('\n')[0]


def compile_into_cache() -> Path:
    """Compile the kernels into the user's cache, unless they are there.

    One line says how long it may take, and another how long it took.

    Returns:
        The path of the library.

    Raises:
        BuildError: They cannot be compiled. The message says why, and what to do.
    """
    library = cached_library()
    build_once(library, lambda: _build.misfit(library, instruction_set()) is None, _compile)
    return library


def build_once(library: Path, fits: Callable[[], bool], build: Callable[[Path], None]) -> None:
    """Build a library in the user's cache, unless it is there.

    Of several processes one builds and the others wait.

    Args:
        library: Path of the library.
        fits: Returns whether the file at the path is the library.
        build: Writes the library to the path.

    Raises:
        BuildError: It cannot be built. The message says why, and what to do.
    """
    if library.is_file() and fits():
        return
    if os.environ.get(SWITCH) == '0':
        raise BuildError(f'compilation is switched off by {SWITCH}=0', f'unset {SWITCH}')
    if sys.platform == 'win32':
        raise BuildError('they cannot be compiled on Windows', 'use Linux, WSL or macOS')
    if not compiler_version():
        raise BuildError(
            f'there is no C++ compiler {compiler()!r}', 'install one, such as g++, or set CXX'
        )
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _locked(library.with_suffix('.lock')):
            if not (library.is_file() and fits()):
                build(library)
    except OSError as error:
        raise BuildError(
            f'{library.parent} cannot be written ({error})',
            'set XDG_CACHE_HOME to a folder that can',
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # not on Windows, where the kernels are not compiled on first use
    import fcntl

    with open(path, 'w') as file:
        # the system frees the lock of a process that was killed
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(library: Path) -> None:
    from torch.utils import cpp_extension

    # a process that was killed leaves torch's own lock behind
    (library.parent / 'lock').unlink(missing_ok=True)
    # ninja is one of the environment's programs, which need not be on the path
    programs = str(Path(sys.executable).parent)
    os.environ['PATH'] = os.pathsep.join([os.environ.get('PATH', ''), programs])
    LOGGER.warning(
        'mmrednet compiles its CPU kernels for torch %s into %s, once; it takes about a minute.',
        torch.__version__,
        library.parent,
    )
    start = time.perf_counter()
    try:
        cpp_extension.load(
            name=library.stem,
            sources=[str(path) for path in _build.sources()],
            extra_cflags=_build.compile_flags(instruction_set()),
            build_directory=str(library.parent),
            is_python_module=False,
        )
    except (RuntimeError, subprocess.CalledProcessError, ImportError) as error:
        raise BuildError(f'compilation failed: {errors_of(str(error))}', _remedy(error)) from error
    _build.write_stamp(library, instruction_set())
    LOGGER.warning('The CPU kernels are compiled, after %.0f s.', time.perf_counter() - start)


def errors_of(output: str) -> str:
    """Return what a failed build says, without its commands."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if 'error' in line.lower()]
    return '; '.join((errors or lines)[:3])


def _remedy(error: Exception) -> str:
    """Return what to do about a failed build."""
    text = str(error).lower()
    if 'ninja is required' in text:
        return 'pip install ninja'
    if 'killed' in text:
        return 'set MAX_JOBS=1, as memory is short'
    return 'set CXX to a compiler that this torch supports, such as GCC 11 or newer'
