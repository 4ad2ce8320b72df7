"""Values whose sizes depend on an option of the network, brought to its sizes where the function
stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# of the published involution, and so of the stem's kernels
GROUP_CHANNELS = 16
STEM_KERNEL = 'stem.1.conv2.conv.'
STEM_INPUT = 'stem.0.conv.weight'


def stem_kernel_size(state: Mapping[str, Tensor]) -> int | None:
    """Return the kernel size of the involution in a RedNet's stem, None if it cannot be told."""
    kernels, first = state.get(f'{STEM_KERNEL}weight'), state.get(STEM_INPUT)
    if kernels is None or first is None or len(first) < GROUP_CHANNELS:
        return None
    size = math.isqrt(len(kernels) // (len(first) // GROUP_CHANNELS))
    return size if size * size * (len(first) // GROUP_CHANNELS) == len(kernels) else None


def fit(state: dict[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return a backbone's tensors with those resized whose function has another size in the
    network.

    The stem of a RedNet classifier generates 3x3 kernels, that of a detector 7x7 ones: smaller
        kernels become larger ones with zeros around them. Tables of relative positions (axial
        attention) count positions beyond their ends as
    their ends: longer ones repeat them, shorter ones leave out what only longer maps look up.
    """
    result, size = dict(state), stem_kernel_size(state)
    for name, value in state.items():
        shape = shapes.get(name)
        if shape is None or value.shape == shape or value.dim() != len(shape):
            continue
        if name.startswith(STEM_KERNEL) and size is not None:
            result[name] = _enlarge_kernels(value, size, shape[0] * size * size / len(value))
        elif name.endswith('.relative') and value.shape[0] == shape[0]:
            result[name] = _resize_table(value, shape[1])
    return result


def _enlarge_kernels(value: Tensor, size: int, taps: float) -> Tensor:
    """Put zeros around the kernels, whose taps are rows of ``value``, unless the new size is not
    larger and odd.
    """
    target = math.isqrt(int(taps))
    border = (target - size) // 2
    if target * target != taps or border < 1 or size + 2 * border != target:
        return value
    kernels = value.reshape(-1, size, size, *value.shape[1:])
    larger = kernels.new_zeros(len(kernels), target, target, *value.shape[1:])
    larger[:, border : border + size, border : border + size] = kernels
    return larger.reshape(-1, *value.shape[1:])


def _resize_table(value: Tensor, length: int) -> Tensor:
    border = (length - value.shape[1]) // 2
    if border < 0:
        return value[:, -border : value.shape[1] + border].contiguous()
    return torch.cat([value[:, :1].expand(-1, border), value, value[:, -1:].expand(-1, border)], 1)
