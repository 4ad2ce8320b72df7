"""What times depend on: the processor, its threads, torch, the kernels and the allocator."""

from __future__ import annotations

import torch

from mmrednet import keep_memory
from mmrednet.diagnosis.processor import chip_name, instruction_sets
from mmrednet.ops import active_kernels


def describe_processor() -> str:
    """Return processor, threads, version of torch and kernels in one line."""
    return (
        f'{chip_name()} ({instruction_sets()}), {torch.get_num_threads()} threads, torch '
        f'{torch.__version__}, kernels: {active_kernels()["cpu"]}.'
    )


def describe() -> str:
    """Return the machine and the setting of a benchmark in two lines."""
    return f'{describe_processor()}\n{keep_memory()}.'
