"""The processor and its instruction sets. Imports nothing."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPUINFO = Path('/proc/cpuinfo')
# instruction sets that matter here, by their flags in /proc/cpuinfo
INSTRUCTION_SETS = {
    'avx2': 'AVX2',
    'avx512f': 'AVX-512',
    'avx512_bf16': 'AVX512-BF16',
    'amx_bf16': 'AMX',
}


def chip_name() -> str:
    """Return the name of the processor."""
    match = re.search(r'model name\s*: (.*)', _cpuinfo())
    return match.group(1) if match else platform.processor() or platform.machine()


def instruction_sets() -> str:
    """Return which of the instruction sets that matter here the processor has, and which not."""
    match = re.search(r'flags\s*: (.*)', _cpuinfo())
    flags = match.group(1).split() if match else []
    parts = []
    for flag, name in INSTRUCTION_SETS.items():
        parts.append(name if flag in flags else f'no {name}')
    return ', '.join(parts)


def _cpuinfo() -> str:
    return CPUINFO.read_text() if CPUINFO.is_file() else ''
