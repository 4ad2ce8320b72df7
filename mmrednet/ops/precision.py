"""Full precision for sums that half precision cannot hold."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from .checks import AUTOCAST_DEVICES


def full_precision(device_type: str) -> AbstractContextManager:
    """Return a context without autocast; devices such as 'meta' have no autocast."""
    if device_type in AUTOCAST_DEVICES:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
