"""The C++ sources of the CPU kernels, how they are compiled, and whether a library fits.

A library fits one version of torch. ``setup.py`` compiles one into the package, and loads this file
by its path: it imports torch alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from pathlib import Path

import torch

CSRC = Path(__file__).with_name('csrc')
# -Wno-psabi: how vectors are passed to functions differs between instruction sets. Only inlined
# functions take vectors, so it does not matter.
# -fno-math-errno: math functions need not set errno, and can be vectorised.
FLAGS = ['-O3', '-Wall', '-Wno-psabi', '-fno-math-errno']
# the instruction sets of the kernels, by their number in csrc/instruction_set.h
INSTRUCTION_SETS = ('plain', 'avx2', 'avx512', 'avx512bf16')


def compile_flags(instruction_set: str | None = None) -> list[str]:
    """Return the flags of the compiler.

    Args:
        instruction_set: The only instruction set for which kernels are compiled. Default: None, all
            of them.
    """
    flags = list(FLAGS)
    if instruction_set is not None:
        flags.append(f'-DMMREDNET_ONLY_ISA={INSTRUCTION_SETS.index(instruction_set)}')
    from torch.backends import openmp

    if openmp.is_available() and sys.platform == 'linux':
        # at::parallel_for is a template that uses OpenMP. The flag is not passed to the linker,
        # because the library must be the one that torch has loaded.
        flags.append('-fopenmp')
    return flags


def sources() -> list[Path]:
    """Return the source files, without headers."""
    return sorted(CSRC.glob('*.cpp'))


def fingerprint(instruction_set: str | None = None) -> str:
    """Return a hash of the sources and flags, of torch and of the platform: a library with the
    same one fits.

    Args:
        instruction_set: See :func:`compile_flags`.
    """
    digest = hashlib.sha256()
    for path in sorted([*CSRC.glob('*.cpp'), *CSRC.glob('*.h')]):
        digest.update(path.name.encode() + b'\0' + path.read_bytes())
    platform = (torch.__version__, sysconfig.get_platform(), sysconfig.get_config_var('SOABI'))
    digest.update(repr((compile_flags(instruction_set), *platform)).encode())
    return digest.hexdigest()[:16]


def stamp_of(library: Path) -> Path:
    """Return the file beside a library that has its fingerprint."""
    return library.with_suffix('.json')


def write_stamp(library: Path, instruction_set: str | None = None) -> None:
    """Write the fingerprint of a library that was compiled from the current sources."""
    content = dict(fingerprint=fingerprint(instruction_set), torch=torch.__version__)
    stamp_of(library).write_text(json.dumps(content))


def misfit(library: Path, instruction_set: str | None = None) -> str | None:
    """Return why a library cannot be used, or None if it fits."""
    try:
        content = json.loads(stamp_of(library).read_text())
    except (OSError, ValueError):
        return 'it does not say what it was built from'
    if content.get('torch') != torch.__version__:
        return f'it was built for torch {content.get("torch")}, this is {torch.__version__}'
    if content.get('fingerprint') != fingerprint(instruction_set):
        return 'it was built from other sources'
    return None
