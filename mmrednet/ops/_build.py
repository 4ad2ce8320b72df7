"""Compiles the CPU kernels of csrc/: when the package is built, or when they are first used.

A library fits one version of torch. ``setup.py`` compiles into the package, and loads this file by
its path: it imports torch alone. Where the package has no library that fits, the first operator on
a CPU compiles one into the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LOGGER = logging.getLogger('mmrednet')
CSRC = Path(__file__).with_name('csrc')
# -Wno-psabi: how vectors are passed to functions differs between instruction sets. Only inlined
# functions take vectors, so it does not matter.
# -fno-math-errno: math functions need not set errno, and can be vectorised.
FLAGS = ['-O3', '-Wall', '-Wno-psabi', '-fno-math-errno']
# what switches compilation on first use off
SWITCH = 'MMREDNET_BUILD'


def compile_flags() -> list[str]:
    """Return the flags of the compiler."""
    from torch.backends import openmp

    if openmp.is_available() and sys.platform == 'linux':
        # at::parallel_for is a template that uses OpenMP. The flag is not passed to the linker,
        # because the library must be the one that torch has loaded.
        return [*FLAGS, '-fopenmp']
    return FLAGS


def sources() -> list[Path]:
    """Return the source files, without headers."""
    return sorted(CSRC.glob('*.cpp'))


def fingerprint() -> str:
    """Return a hash of the sources and flags, of torch and of the platform: a library with the
    same one fits.
    """
    digest = hashlib.sha256()
    for path in sorted([*CSRC.glob('*.cpp'), *CSRC.glob('*.h')]):
        digest.update(path.name.encode() + b'\0' + path.read_bytes())
    platform = (torch.__version__, sysconfig.get_platform(), sysconfig.get_config_var('SOABI'))
    digest.update(repr((compile_flags(), *platform)).encode())
    return digest.hexdigest()[:16]


def stamp_of(library: Path) -> Path:
    """Return the file beside a library that has its fingerprint."""
    return library.with_suffix('.json')


def write_stamp(library: Path) -> None:
    """Write the fingerprint of a library that was compiled from the current sources."""
    content = dict(fingerprint=fingerprint(), torch=torch.__version__)
    stamp_of(library).write_text(json.dumps(content))


def misfit(library: Path) -> str | None:
    """Return why a library cannot be used, or None if it fits."""
    try:
        content = json.loads(stamp_of(library).read_text())
    except (OSError, ValueError):
        return 'it does not say what it was built from'
    if content.get('torch') != torch.__version__:
        return f'it was built for torch {content.get("torch")}, this is {torch.__version__}'
    if content.get('fingerprint') != fingerprint():
        return 'it was built from other sources'
    return None


def cache_folder() -> Path:
    """Return the package's folder in the user's cache, whether it exists or not."""
    root = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    return Path(root) / 'mmrednet'


def cached_library() -> Path:
    """Return the path in the user's cache of the library that fits, whether it exists or not."""
    compiler = hashlib.sha256(_compiler_version().encode()).hexdigest()[:8]
    return cache_folder() / 'kernels' / f'{fingerprint()}-{compiler}' / '_C.so'


def _compiler() -> str:
    return os.environ.get('CXX', 'c++')


def _compiler_version() -> str:
    """Return the first line of the compiler's version, or nothing without a compiler."""
    try:
        result = subprocess.run(
            [_compiler(), '--version'], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ''
    return result.stdout.partition('\n')[0]


def compile_into_cache() -> Path:
    """Compile the kernels into the user's cache, unless they are there.

    Of several processes one compiles and the others wait. One line says how long it may take, and
    another how long it took.

    Returns:
        The path of the library.

    Raises:
        RuntimeError: They cannot be compiled. The message says why, and what to do.
    """
    library = cached_library()
    if library.is_file() and misfit(library) is None:
        return library
    if os.environ.get(SWITCH) == '0':
        raise RuntimeError(f'compilation is switched off by {SWITCH}=0')
    if sys.platform == 'win32':
        raise RuntimeError('they are for Linux and macOS')
    if not _compiler_version():
        raise RuntimeError(
            f'there is no C++ compiler {_compiler()!r}: install one, such as g++, or set CXX'
        )
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _locked(library.with_suffix('.lock')):
            if misfit(library) is not None:
                _compile(library)
    except OSError as error:
        raise RuntimeError(f'{library.parent} cannot be written: {error}') from error
    return library


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
        'mmrednet compiles its CPU kernels for torch %s into %s, once; it takes some minutes.',
        torch.__version__,
        library.parent,
    )
    start = time.perf_counter()
    try:
        cpp_extension.load(
            name=library.stem,
            sources=[str(path) for path in sources()],
            extra_cflags=compile_flags(),
            build_directory=str(library.parent),
            is_python_module=False,
        )
    except (RuntimeError, subprocess.CalledProcessError, ImportError) as error:
        raise RuntimeError(f'compilation failed: {_last_lines(error)}') from error
    write_stamp(library)
    LOGGER.warning('The CPU kernels are compiled, after %.0f s.', time.perf_counter() - start)


def _last_lines(error: Exception) -> str:
    """Return what a failed build says, without its commands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if 'error' in line.lower()]
    return '; '.join((errors or lines)[:3])
