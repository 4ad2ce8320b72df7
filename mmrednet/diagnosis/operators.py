"""Runs every spatial operator forward and backward on each device, against its definition."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from ..packages import missing_message
from .definitions import Tensors, computed, defined
from .devices import devices
from .sections import Problem, Section, quiet

CHANNELS = 16
# an odd size, so that strides and tiles have a tail
SIZE = (11, 9)
# the largest error of float32 against float64 that rounding explains, relative to the norm; norms
# by the statistics of a small batch multiply it
TOLERANCE = 1e-3
# gradients that are zero but for rounding have no relative error of their own
LEAST_SHARE = 1e-2


def examine_operators() -> Section:
    """Return the error of every operator on each device, of the result and of all gradients."""
    section = Section('Operators, forward and backward, against their definitions')
    reason = missing_message('This', 'mmengine', 'mmcv')
    if reason:
        section.rows.append(('not run', reason))
        return section
    start = time.perf_counter()
    with quiet():
        from ..layers import OPERATORS
    for name, layer_class in OPERATORS.items():
        results = []
        for device in devices():
            text, problem = _examine(name, layer_class, device)
            results.append(f'{device} {text}')
            section.problems += [problem] if problem else []
        section.rows.append((name, ', '.join(results)))
    seconds = time.perf_counter() - start
    section.rows.append(('', f'relative errors in float32, after {seconds:.1f} s'))
    return section


def _examine(name: str, layer_class: Any, device: str) -> tuple[str, Problem | None]:
    """Return what to print for an operator on a device, and what is wrong with it, if anything."""
    try:
        with quiet(), torch.random.fork_rng(), torch.backends.cudnn.flags(allow_tf32=False):
            error = _error(layer_class, device)
    except Exception as exception:  # noqa: BLE001
        # any error of any operator is a finding, and the others must run
        text = f'{name} cannot compute on {device}: {type(exception).__name__}: {exception}'
        uses_mmcv = getattr(layer_class, 'mmcv_class', None)
        remedy = "Mend mmcv's compiled operators." if uses_mmcv else 'Please report all of this.'
        return 'fails', Problem(text, remedy)
    if error <= TOLERANCE:
        return f'{error:.0e}', None
    switch = 'MMREDNET_TRITON=0' if device.startswith('cuda') else 'MMREDNET_CPU_CAPABILITY=plain'
    problem = Problem(
        f'{name} on {device} differs from its definition by {error:.1e}, more than {TOLERANCE:g}.',
        f'Please report all of this. Until it is mended, try {switch}.',
    )
    return f'{error:.0e} (wrong)', problem


def _error(layer_class: Any, device: str) -> float:
    """Return the largest relative error of an operator on a device."""
    # the random numbers of this process stay as they are, and those of the operators are the same
    # on every machine
    torch.manual_seed(0)
    layer = layer_class(CHANNELS, **layer_class.example)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    x = torch.randn(2, CHANNELS, *SIZE)
    direction = torch.randn_like(x)
    return _largest_error(computed(layer, x, direction, device), defined(layer, x, direction))


def _largest_error(results: Tensors, expected: Tensors) -> float:
    """Return the largest error of a tensor in relation to its norm."""
    largest = max(tensor.norm() for tensor in expected.values())
    errors = []
    for name, tensor in expected.items():
        scale = tensor.norm().clamp(min=LEAST_SHARE * largest)
        errors.append(float((results[name] - tensor).norm() / scale))
    # max() passes NaN by
    return max(errors, key=lambda error: error if error == error else float('inf'))
