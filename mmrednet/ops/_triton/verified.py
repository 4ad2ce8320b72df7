"""Chips on which all kernels were checked by ``tools/benchmarks/gpu_report.py``.

The report prints the entry to add where its checks pass. An entry holds for one version of the
kernels' sources: who changes a kernel runs the report again.
"""

from __future__ import annotations

from typing import NamedTuple


class Verified(NamedTuple):
    """A chip whose kernels need no check on first use.

    Args:
        chip: Name of the chip, as torch reports it.
        triton: Version of Triton.
        sources: Fingerprint of the kernels' sources.
    """

    chip: str
    triton: str
    sources: str


VERIFIED: frozenset[Verified] = frozenset()
