"""Whether mmcv's compiled operators can be imported and compute on every device."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from ..packages import DISTRIBUTIONS
from .devices import devices
from .sections import Problem, Section, quiet

# heads of detectors and deformable convolutions call them; classifiers and segmenters do not
USERS = 'detectors and deformable convolutions'
BUILD = (
    'MMCV_WITH_OPS=1 {force}pip install --no-build-isolation --no-cache-dir --no-deps '
    '--force-reinstall {distribution}'
)


def examine_mmcv() -> Section:
    """Return whether mmcv's operators work on each device."""
    section = Section("mmcv's compiled operators")
    if find_spec('mmcv') is None:
        section.rows.append(('all devices', 'missing, like mmcv'))
        return section
    try:
        with quiet():
            from mmcv import ops
    except Exception as error:  # noqa: BLE001
        # a library for another torch raises all kinds of errors
        section.rows.append(('all devices', 'cannot be imported'))
        text = f"mmcv's compiled operators cannot be imported, which {USERS} need: {error}."
        section.problems.append(Problem(text, _remedy('cpu')))
        return section
    for device in devices():
        failure = _failure(ops, device)
        section.rows.append((device, 'cannot compute' if failure else 'work'))
        if failure:
            text = f"mmcv's operators cannot compute on {device}, as {USERS} need: {failure}."
            section.problems.append(Problem(text, _remedy(device)))
    return section


def _remedy(device: str) -> str:
    # without a visible GPU mmcv compiles for the CPU alone
    force = '' if device == 'cpu' else 'FORCE_CUDA=1 '
    command = BUILD.format(force=force, distribution=_distribution())
    return f'Compile mmcv for this torch, which takes minutes: {command}'


def _distribution() -> str:
    """Return the installed distribution of mmcv, with its version, as pip takes it."""
    for name in DISTRIBUTIONS['mmcv']:
        try:
            return f'{name}=={version(name)}'
        except PackageNotFoundError:
            continue
    # mmcv-lite, which has no operators, gives way to the full one
    return DISTRIBUTIONS['mmcv'][0]


def _failure(ops: Any, device: str) -> str | None:
    """Return what is wrong with suppression and pooling on a device, or None."""
    # the first two boxes overlap by more than half
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 12, 12]], device=device)
    scores = torch.tensor([0.5, 0.9, 0.7], device=device)
    # averages of a map whose values are its columns: those of the bin's centres
    columns = torch.arange(16.0, device=device).expand(1, 1, 16, 16).contiguous()
    region = torch.tensor([[0.0, 2, 2, 6, 6]], device=device)
    try:
        indices = ops.nms(boxes, scores, 0.5)[1].tolist()
        pooled = ops.roi_align(columns, region, (1, 2), 1.0, 2, 'avg', True).flatten().tolist()
    except Exception as error:  # noqa: BLE001
        return f'{type(error).__name__}: {error}'
    if indices != [1, 2] or [round(value, 4) for value in pooled] != [2.5, 4.5]:
        return f'wrong results, {indices} and {pooled}'
    return None
