"""What is asked of the fused operators: random inputs at the shapes of RedNet-50, and the floors of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrednet.ops import Window

GROUP_CHANNELS = 16
# maps of the four stages, (channels, height, width), at 800 x 1344 and at a size for the interpreter
STAGES = {False: [(64, 200, 336), (128, 100, 168), (256, 50, 84), (512, 25, 42)], True: [(32, 3, 5)]}


@dataclass
class Problem:
    """Inputs in channels-last layout, how the operator is called, and what it has to move and to compute at least."""

    name: str
    inputs: dict[str, Tensor]
    window: Window
    outputs: int
    flops: int

    @property
    def bytes(self) -> int:
        """Every input read once and every output written once."""
        (first, *_) = self.inputs.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in self.inputs.values()) + (
            self.outputs * first.element_size())


def channels_last(batch: int, groups: int, channels: int, size: Sequence[int], dtype: torch.dtype,
                  device: str) -> Tensor:
    """Return random numbers (B, G, D, H, W) as modules see a channels-last map."""
    made = torch.randn(batch, *size, groups, channels, device=device)
    return made.to(dtype).permute(0, 3, 4, 1, 2)


def involution(batch: int, stage: Sequence[int], kernel: int, dtype: torch.dtype, device: str) -> Problem:
    """Return involution of a stage, with a quarter of its channels for the generator."""
    channels, *size = stage
    window, groups, hidden = Window(kernel), channels // GROUP_CHANNELS, channels // 4
    inputs = dict(value=channels_last(batch, groups, GROUP_CHANNELS, size, dtype, device),
                  hidden=channels_last(batch, 1, hidden, size, dtype, device)[:, 0],
                  weight=torch.randn(groups * window.taps, hidden, device=device).to(dtype) / hidden**0.5,
                  bias=torch.randn(groups * window.taps, device=device).to(dtype))
    positions = batch * size[0] * size[1]
    return Problem(f'involution {_shape(batch, stage)}', inputs, window, positions * channels,
                   2 * positions * groups * window.taps * (hidden + GROUP_CHANNELS))


def attention(batch: int, stage: Sequence[int], kernel: int, dtype: torch.dtype, device: str,
              heads: int = 8) -> Problem:
    """Return local attention of a stage with relative rows and columns."""
    channels, *size = stage
    window, depth = Window(kernel), channels // heads
    inputs = {name: channels_last(batch, heads, depth, size, dtype, device) for name in ('query', 'key', 'value')}
    inputs['query'] = inputs['query'] / depth**0.5
    for name in ('rows', 'columns'):
        inputs[name] = torch.randn(heads, depth // 2, kernel, device=device).to(dtype)
    positions = batch * size[0] * size[1]
    return Problem(f'local attention {_shape(batch, stage)}', inputs, window, positions * channels,
                   2 * positions * heads * (window.taps * 2 * depth + depth * kernel))


def _shape(batch: int, stage: Sequence[int]) -> str:
    return ' x '.join(str(number) for number in (batch, *stage))
