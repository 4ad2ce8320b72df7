"""Checks the kernels of a family on first use, on chips where nobody has checked them.

The first call of a family with a dtype and a layout compares its kernels with their definitions in
float64, on a small problem, forward and gradients. Where they disagree, or a kernel does not
compile, the definitions compute the family in this process, and one warning says so. Verdicts are
kept in the user's cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._first_use import cache_folder
from ..dispatch import LOGGER
from ..precision import full_precision
from .verified import VERIFIED, Verified

# Largest norm of the error over the norm of the result. Products of float32 may be those of TF32;
# in half precision gradients of weights are sums that cancel.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
# what is no kernel, and does not make a verdict stale
NOT_KERNELS = ('__init__.py', 'problems.py', 'trust.py', 'verified.py')
REPORT = (
    'please report this to the maintainers of mmrednet, with the output of '
    'tools/benchmarks/gpu_report.py --check-only; MMREDNET_TRITON=1 uses the kernels all the same'
)

# families whose kernels disagree with their definitions, and why
failures: dict[str, str] = {}
# keys of checks that were made or read, and what they found: a reason, or None
_verdicts: dict[tuple, str | None] = {}
_lock = threading.Lock()
_is_checking = False


def is_checking() -> bool:
    """Return whether a check runs.

    Operators compute their definitions meanwhile, in all threads: the gradients of a definition may
    be computed by another thread than the check.
    """
    return _is_checking


def distrusted(family: str, tensor: Tensor) -> str | None:
    """Return why the kernels of a family are not used for tensors like this one, or None.

    The first call checks them. No check is made while a CUDA graph is captured or a program is
    traced: without a verdict from before the definition is used there.

    Args:
        family: Name of the family.
        tensor: First map of a call, whose dtype, layout and device the check has.
    """
    if os.environ.get('MMREDNET_TRITON') == '1' or entry(tensor.device) in VERIFIED:
        return None
    if family in failures:
        return failures[family]
    key = (family, str(tensor.dtype), _layout(tensor), *_machine(tensor.device))
    with _lock:
        if key not in _verdicts:
            is_known, verdict = _read(key)
            if not is_known and _is_recording(tensor):
                return (
                    'it was not checked on this device yet, and cannot be while a CUDA graph is '
                    'captured or a program is traced: call it once before'
                )
            _verdicts[key] = verdict if is_known else _check_and_keep(key, family, tensor)
    verdict = _verdicts[key]
    if verdict is not None:
        failures.setdefault(family, verdict)
    return verdict


def _is_recording(tensor: Tensor) -> bool:
    """Return whether a check would become part of a CUDA graph or of a traced program."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if isinstance(tensor, torch._subclasses.FakeTensor):
        return True
    if not tensor.is_cuda:
        return False
    with torch.cuda.device(tensor.device):
        return torch.cuda.is_current_stream_capturing()


def _layout(tensor: Tensor) -> str:
    """Return 'channels-last', 'contiguous' or 'strided', as kernels tell them apart."""
    *_, channel, _, column = (1, *tensor.stride())
    if channel == 1 and column != 1 and tensor.dim() > 3:
        return 'channels-last'
    return 'contiguous' if column == 1 else 'strided'


@functools.cache
def fingerprint() -> str:
    """Return a hash of the kernels' sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob('*.py')):
        if path.name not in NOT_KERNELS:
            digest.update(path.name.encode() + b'\0' + path.read_bytes())
    return digest.hexdigest()[:16]


def entry(device: torch.device) -> Verified:
    """Return the entry of a device for the table of verified ones."""
    chip, _, _, triton, sources = _machine(device)
    return Verified(chip, triton, sources)


@functools.cache
def _machine(device: torch.device) -> tuple[str, ...]:
    """Return chip, driver, versions of torch and Triton, and the fingerprint of the sources."""
    import triton

    is_cuda = device.type == 'cuda'
    chip = torch.cuda.get_device_name(device) if is_cuda else 'interpreter'
    driver = _driver() if is_cuda else ''
    return chip, driver, torch.__version__, triton.__version__, fingerprint()


def _driver() -> str:
    """Return the version of NVIDIA's driver, or of the CUDA that it supports."""
    with suppress(OSError):
        text = Path('/proc/driver/nvidia/version').read_text()
        match = re.search(r'\b\d+\.\d+(\.\d+)?\b', text)
        if match:
            return match[0]
    library: Any = torch._C
    return str(library._cuda_getDriverVersion())


def _path(key: tuple) -> Path:
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    return cache_folder() / 'triton' / f'{name}.json'


def _read(key: tuple) -> tuple[bool, str | None]:
    """Return whether there is a verdict in the cache, and the verdict."""
    with suppress(OSError, ValueError, KeyError):
        content = json.loads(_path(key).read_text())
        # a hash may collide, and a file may be another's
        if tuple(content['key']) == key:
            return True, content['verdict']
    return False, None


def _write(key: tuple, verdict: str | None) -> None:
    path = _path(key)
    # a cache that cannot be written costs a check in each process
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, suffix='.tmp')
        with os.fdopen(descriptor, 'w') as file:
            json.dump(dict(key=key, verdict=verdict), file)
        # processes that write at the same time replace each other's whole files
        os.replace(name, path)


def _check_and_keep(key: tuple, family: str, tensor: Tensor) -> str | None:
    """Compare the kernels of a family with their definitions, and keep the verdict."""
    LOGGER.info('%s: its kernels are compared with their definitions, once.', family)
    try:
        verdict = check(family, tensor.dtype, _layout(tensor), tensor.device)
    except torch.cuda.OutOfMemoryError:
        # it says nothing about the kernels: another process checks again
        return 'it could not be checked on this device, which is out of memory'
    _write(key, verdict)
    return verdict


def check(family: str, dtype: torch.dtype, layout: str, device: torch.device) -> str | None:
    """Compare the kernels of a family with their definitions on a small problem.

    Args:
        family: Name of the family.
        dtype: Dtype of the problem.
        layout: Layout of its maps.
        device: Its device.

    Returns:
        None, or why they cannot be trusted.
    """
    # by name, as kernels are: the operators that it imports have registered their kernels here
    problems = import_module(f'{__package__}.problems').PROBLEMS

    about = f'{_machine(device)[0]}, {str(dtype).removeprefix("torch.")}, {layout}'
    try:
        with _alone(device):
            for name, result, expected in problems[family](dtype, layout, device):
                error = _relative_error(result, expected)
                # NaN is no number below a limit
                if not error <= TOLERANCE[dtype]:
                    return (
                        f'{name} differs from its definition by {error:.1e}, more than '
                        f'{TOLERANCE[dtype]:.0e} ({about}); {REPORT}'
                    )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first = f': {lines[0]}' if lines else ''
        return f'it does not run ({about}): {type(error).__name__}{first}; {REPORT}'
    return None


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Let operators compute their definitions, without gradients and autocast."""
    global _is_checking
    _is_checking = True
    try:
        with torch.no_grad(), full_precision(device.type):
            yield
    finally:
        _is_checking = False


def _relative_error(result: Tensor, expected: Tensor) -> float:
    difference = result.double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp_min(1e-9))
