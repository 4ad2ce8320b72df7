"""Which kernels compute on each type of device, and why not the others."""

from __future__ import annotations

import os

import torch

from ..ops import _native, _processor, _triton, active_kernels
from .sections import Problem, Section, quiet


def examine_kernels() -> Section:
    """Return which kernels are active. The CPU kernels are compiled first if they are missing."""
    section = Section('Kernels')
    problem = _compile_missing()
    section.rows += active_kernels().items()
    if problem:
        section.problems.append(problem)
    elif narrow := _narrow_kernels():
        section.rows.append(('', narrow))
    if _triton.MISSING and torch.cuda.is_available():
        section.problems.append(
            Problem(
                f'Plain torch computes on CUDA devices, several times slower: {_triton.MISSING}.',
                'Unset MMREDNET_TRITON.'
                if 'MMREDNET_TRITON' in _triton.MISSING
                else "pip install -U triton, in the version that torch's CUDA builds bring.",
            )
        )
    return section


def _compile_missing() -> Problem | None:
    """Compile the CPU kernels if none are loaded. Return why that is not possible."""
    with quiet():
        _native.ensure(torch.empty(0))
    if _native.MISSING is None:
        return None
    if _native.FAILURE:
        text = f'The CPU kernels are missing, and plain torch computes: {_native.FAILURE.reason}.'
        remedy = _native.FAILURE.remedy
        return Problem(text, f'{remedy[0].upper()}{remedy[1:]}, and run this again.')
    return Problem(
        f'The compiled CPU kernels cannot be loaded: {_native.MISSING}.',
        'Set CXX to the compiler of your system, delete mmrednet/kernels in the folder for caches, '
        'and run this again.',
    )


def _narrow_kernels() -> str | None:
    """Return why the kernels do not use the widest instruction set of the processor, if so."""
    widest, used = _processor.widest_instruction_set(), _native.capability()
    if widest is None or widest == used:
        return None
    limit = os.environ.get(_processor.LIMIT)
    if limit == used:
        return f'the processor has {widest}; {_processor.LIMIT}={limit} limits the kernels'
    return f'the processor has {widest}, for which the kernels need GCC (11 or newer for bfloat16)'
