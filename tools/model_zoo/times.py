"""Times of the zoo's classifiers on one machine."""

from __future__ import annotations

import copy
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import WARM_UP, medians
from torch import Tensor, nn

from mmrednet.ops import active_kernels

from .rows import Row

LAYOUTS = (torch.contiguous_format, torch.channels_last)
# at most so many rounds, and about so long for a network and layout; what takes longer runs once
ROUNDS, SECONDS = 9, 2.0


def measure(
    rows: Sequence[Row], root: Path, device: str, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Time the classifiers with a published accuracy: one image, float32, in the better memory
    layout.

    Args:
        rows: of :func:`model_zoo.rows.read_rows`; others among them are passed over.
        root: of the repository.
        device: 'cpu' or 'cuda'.
        known: what was measured before; times of other networks are kept if the machine is the
            same.

    Returns:
        machine, the load average of the minute before, and milliseconds by the keys of the rows.
    """
    machine, load = describe_machine(device), round(os.getloadavg()[0], 1)
    timed = [row for row in rows if row.family and row.score]
    result = {}
    if known and known['machine'] == machine:
        result = {
            key: value
            for key, value in known['milliseconds'].items()
            if key not in {row.key for row in timed}
        }
    if known and result:
        load = max(load, known['load'])
    for row in timed:
        network, shape = row.build(root)
        result[row.key] = round(
            1e3 * _seconds(network.to(device), torch.randn(1, 3, *shape, device=device)), 2
        )
        print(f'{row.key}: {result[row.key]:.1f} ms', flush=True)
    return dict(machine=machine, load=load, milliseconds=result)


def _seconds(network: nn.Module, image: Tensor) -> float:
    contestants = {str(layout): _runner(network, image, layout) for layout in LAYOUTS}
    start = time.perf_counter()
    contestants[str(LAYOUTS[0])]()
    once = time.perf_counter() - start
    if once > SECONDS:
        return once
    rounds = max(1, min(ROUNDS, int(SECONDS / once) - WARM_UP))
    return min(medians(contestants, rounds).values())


def _runner(network: nn.Module, image: Tensor, layout: torch.memory_format) -> Callable[[], object]:
    moved, image = copy.deepcopy(network), image.contiguous(memory_format=layout)
    for parameter in moved.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)

    def run() -> None:
        with torch.inference_mode():
            moved(image)
        if image.is_cuda:
            torch.cuda.synchronize()

    return run


def describe_machine(device: str) -> dict[str, Any]:
    """Return the chip, the threads, the versions and the kernels that times depend on."""
    if device.startswith('cuda'):
        return dict(
            chip=torch.cuda.get_device_name(device),
            torch=torch.__version__,
            kernels=active_kernels()['other devices'],
        )
    cpuinfo = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.*)', cpuinfo.read_text()) if cpuinfo.is_file() else None
    return dict(
        chip=found.group(1) if found else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        kernels=active_kernels()['cpu'],
    )
