"""Freed memory is kept in runs on a CPU."""

from __future__ import annotations

from mmengine.device import get_device
from mmengine.logging import print_log

from ..memory import keep_memory


def keep_memory_on_cpu(device: str | None = None) -> None:
    """Call :func:`mmrednet.keep_memory` for a run on the CPU, and log what it did.

    Args:
        device: Device of the run. Default: the one that mmengine chooses.
    """
    device = device or get_device()
    # a GPU run computes little in the memory of the processor
    if device == 'cpu':
        print_log(f'{keep_memory()}.', logger='current')
