"""Versions of what mmrednet runs with, and from which distribution each package comes."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

import torch

from .. import __version__
from ..packages import DISTRIBUTIONS
from .processor import chip_name, instruction_sets
from .sections import Problem, Section, quiet

# which packages only a part of the library needs, and which part
OPTIONAL = {'mmdet': 'detectors', 'mmseg': 'segmenters'}


def examine_versions() -> Section:
    """Return the versions of Python, torch, Triton and the OpenMMLab stack, and the processor."""
    section = Section('Versions')
    section.rows += [
        ('mmrednet', __version__),
        ('Python', f'{platform.python_version()}, {platform.system()} {platform.machine()}'),
        ('torch', f'{torch.__version__}, {_accelerator()}'),
        ('triton', _version('triton') or 'missing'),
    ]
    providers = packages_distributions()
    for name in DISTRIBUTIONS:
        _examine_package(section, name, providers.get(name, []))
    section.rows += [
        ('processor', f'{chip_name()}, {os.cpu_count()} cores; {instruction_sets()}'),
        ('threads', f'{torch.get_num_threads()}'),
    ]
    for index in range(torch.cuda.device_count()):
        section.rows.append((f'cuda:{index}', _describe_device(index)))
    if not torch.cuda.is_available() and shutil.which('nvidia-smi'):
        section.problems.append(_unused_driver())
    return section


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _accelerator() -> str:
    """Return for which accelerator torch was built."""
    if torch.version.cuda:
        return f'built for CUDA {torch.version.cuda}'
    if torch.version.hip:
        return f'built for ROCm {torch.version.hip}'
    return 'built without CUDA'


def _describe_device(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    memory = properties.total_memory / 2**30
    return f'{properties.name}, capability {properties.major}.{properties.minor}, {memory:.0f} GiB'


def _unused_driver() -> Problem:
    if torch.version.cuda is None:
        return Problem(
            'There is an NVIDIA driver, but this torch was built without CUDA.',
            'To use the GPU, install a CUDA build: https://pytorch.org/get-started/locally',
        )
    return Problem(
        f'There is an NVIDIA driver, but torch, built for CUDA {torch.version.cuda}, sees no '
        'device.',
        'Run nvidia-smi and check that CUDA_VISIBLE_DEVICES is not empty and that the driver is '
        f'new enough for CUDA {torch.version.cuda}.',
    )


def _examine_package(section: Section, name: str, providers: list[str]) -> None:
    """Add a package of the OpenMMLab stack to the section.

    Args:
        section: Section to which a row and problems are added.
        name: Import name of the package.
        providers: Names of the installed distributions that contain it.
    """
    if find_spec(name) is None:
        _report_missing(section, name)
        return
    # a distribution is listed once for each of its folders
    distributions = sorted(set(providers))
    described = [f'{_version(provider)} ({provider})' for provider in distributions]
    section.rows.append((name, ' and '.join(described) or 'of no distribution'))
    if len(distributions) > 1:
        section.problems.append(
            Problem(
                f'{" and ".join(distributions)} both install {name}, over each other.',
                f'pip uninstall {" ".join(distributions)}, then install one of them again.',
            )
        )
    _check_import(section, name)


def _report_missing(section: Section, name: str) -> None:
    maintained, original = DISTRIBUTIONS[name]
    if name in OPTIONAL:
        section.rows.append((name, f'missing; {OPTIONAL[name]} need it'))
        return
    section.rows.append((name, 'missing'))
    section.problems.append(
        Problem(
            f'{name} is missing: without it mmrednet.ops works, but no layer or network.',
            f'pip install {maintained} (or, of the original distribution, {original}); '
            'docs/install.md has the commands.',
        )
    )


def _check_import(section: Section, name: str) -> None:
    try:
        with quiet():
            import_module(name)
    except Exception as error:  # noqa: BLE001
        # packages raise any kind of error about versions of each other
        section.problems.append(
            Problem(
                f'{name} cannot be imported: {type(error).__name__}: {error}',
                'Install versions that belong together: docs/install.md names them.',
            )
        )
