"""The devices that are examined."""

from __future__ import annotations

import torch


def devices() -> list[str]:
    """Return the devices that mmrednet is for: the CPU and all CUDA devices that torch sees."""
    return ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]
