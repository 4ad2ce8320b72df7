"""Times of classifiers on one machine."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.machine import chip_name
from benchmarks.timing import WARM_UP, medians
from torch import Tensor, nn

from mmrednet import keep_memory
from mmrednet.ops import active_kernels

from .rows import Row

LAYOUTS = (torch.contiguous_format, torch.channels_last)
# at most this many rounds and about this long for each layout; a slower network runs once
MAX_ROUNDS, MAX_SECONDS = 9, 2.0


def measure(
    rows: Sequence[Row], root: Path, device: str, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Time the classifiers with a published accuracy: one image, float32, the faster layout.

    Args:
        rows: Rows of networks. Others than classifiers with a score are passed over.
        root: Root of the repository.
        device: Device to run on, 'cpu' or 'cuda'.
        earlier: Result of an earlier call. Times of other networks are kept if the machine is the
            same. Default: None.

    Returns:
        machine, the load average of the minute before, and milliseconds by the keys of the rows.
    """
    machine, load = describe_machine(device), round(os.getloadavg()[0], 1)
    timed = [row for row in rows if row.family and row.score]
    keys = {row.key for row in timed}
    milliseconds = {}
    if earlier and earlier['machine'] == machine:
        for key, value in earlier['milliseconds'].items():
            if key not in keys:
                milliseconds[key] = value
    if earlier and milliseconds:
        # times of a busy machine are among them
        load = max(load, earlier['load'])
    for row in timed:
        network, shape = row.build(root)
        seconds = _seconds(network.to(device), torch.randn(1, 3, *shape, device=device))
        milliseconds[row.key] = round(1e3 * seconds, 2)
        print(f'{row.key}: {milliseconds[row.key]:.1f} ms', flush=True)
    return dict(machine=machine, load=load, milliseconds=milliseconds)


def _seconds(network: nn.Module, image: Tensor) -> float:
    """Return the median time of a forward pass in the faster of two memory layouts."""
    contestants = {str(layout): _runner(network, image, layout) for layout in LAYOUTS}
    start = time.perf_counter()
    contestants[str(LAYOUTS[0])]()
    once = time.perf_counter() - start
    if once > MAX_SECONDS:
        return once
    rounds = max(1, min(MAX_ROUNDS, int(MAX_SECONDS / once) - WARM_UP))
    return min(medians(contestants, rounds).values())


def _runner(network: nn.Module, image: Tensor, layout: torch.memory_format) -> Callable[[], object]:
    network, image = copy.deepcopy(network), image.contiguous(memory_format=layout)
    for parameter in network.parameters():
        # channels_last is a layout of four axes
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)

    def run() -> None:
        with torch.inference_mode():
            network(image)
        if image.is_cuda:
            torch.cuda.synchronize()

    return run


def describe_machine(device: str) -> dict[str, Any]:
    """Return what times depend on: the chip, threads, torch, kernels and what is kept of memory."""
    if device.startswith('cuda'):
        return dict(
            chip=torch.cuda.get_device_name(device),
            torch=torch.__version__,
            kernels=active_kernels()['other devices'],
        )
    return dict(
        chip=chip_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        kernels=active_kernels()['cpu'],
        memory=str(keep_memory()),
    )
