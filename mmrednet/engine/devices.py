"""Checks that a device is there, and that mmcv's operators run on it."""

from __future__ import annotations

import torch

INSTALLATION = 'docs/install.md has the commands'


def check_device(device: str, scope: str | None = None) -> None:
    """Check that a model can be run on a device.

    Args:
        device: Such as 'cpu' or 'cuda:0'.
        scope: Framework of the model. Detectors need mmcv's compiled operators on the device.
            Default: None.

    Raises:
        ImportError: mmcv's operators are not compiled for the device.
        ValueError: It is no device, or it is not there.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be such as 'cpu' or 'cuda:0', got {device!r}.") from error
    if parsed.type != 'cuda':
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (parsed.index or 0) >= count:
        raise ValueError(f'device must be one that is here, got {device!r}: {_gpus(count)}.')
    if scope == 'mmdet':
        _check_operators(device)


def _gpus(count: int) -> str:
    """Return which GPUs torch has, in words."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, use 'cpu'"
    if count == 0:
        return f"torch {torch.__version__} finds no NVIDIA GPU, use 'cpu'"
    return f"there are {count}, the last one is 'cuda:{count - 1}'"


def _check_operators(device: str) -> None:
    """Check that mmcv's operators, such as the suppression of boxes, are compiled for CUDA."""
    from mmcv.ops import get_compiling_cuda_version

    version = get_compiling_cuda_version()
    if version == 'not available':
        raise ImportError(
            f'detectors on {device!r} need the CUDA operators of mmcv, which is compiled without '
            f'CUDA here: install mmcv for torch {torch.__version__} with CUDA '
            f'{torch.version.cuda} ({INSTALLATION}), or set CUDA_VISIBLE_DEVICES= to use the CPU.'
        )


def missing_operators(error: ImportError) -> str | None:
    """Return what to do about an error of mmcv's compiled operators, or None if it is another."""
    if 'mmcv._ext' not in str(error) and '/_ext.' not in str(error):
        return None
    return (
        f'mmcv has no compiled operators that fit torch {torch.__version__} ({error}): reinstall '
        f'mmcv with its operators ({INSTALLATION}).'
    )
