"""The instruction set of the CPU kernels that this processor uses."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ._build import INSTRUCTION_SETS

CPUINFO = Path('/proc/cpuinfo')
# limits the instruction set; csrc/native.cpp reads it too
LIMIT = 'MMREDNET_CPU_CAPABILITY'
# features that kernels are compiled for, by their names in CPUINFO; csrc/native.cpp asks for the
# same
AVX512 = {'avx512f', 'avx512bw', 'avx512dq', 'avx512vl', 'avx2', 'fma'}
FEATURES = {
    'plain': set(),
    'avx2': {'avx2', 'fma'},
    'avx512': AVX512,
    'avx512bf16': {*AVX512, 'avx512_bf16'},
}


@functools.cache
def processor_flags() -> frozenset[str]:
    """Return the features of the processor by Linux' names; empty where there is no such list."""
    try:
        with CPUINFO.open() as lines:
            # all cores have the same features: the file is long on machines with many of them
            flags = next((line for line in lines if line.startswith('flags')), '')
    except OSError:
        return frozenset()
    return frozenset(flags.partition(':')[2].split())


def widest_instruction_set() -> str | None:
    """Return the widest instruction set that this processor has; None where it cannot be told."""
    flags = processor_flags()
    supported = [name for name in INSTRUCTION_SETS if FEATURES[name] <= flags]
    return supported[-1] if flags else None


def instruction_set() -> str | None:
    """Return the instruction set that the kernels use: the widest one that ``LIMIT`` allows."""
    widest, limit = widest_instruction_set(), os.environ.get(LIMIT)
    # another value is an error of the kernels
    if widest is None or limit not in INSTRUCTION_SETS:
        return widest
    return min(widest, limit, key=INSTRUCTION_SETS.index)
