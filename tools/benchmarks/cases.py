"""What is asked of the fused operators: random inputs at the shapes of RedNet-50, and the floors of
the answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrednet.ops import Window, multiply_adds

GROUP_CHANNELS = 16
# maps of the four stages, (channels, height, width), at 800 x 1344 and at a size for the
# interpreter
STAGES = {
    False: [(64, 200, 336), (128, 100, 168), (256, 50, 84), (512, 25, 42)],
    True: [(32, 3, 5)],
}
# axial attention belongs to the maps of the middle
AXIAL_STAGES = {False: STAGES[False][1:3], True: STAGES[True]}


@dataclass
class Work:
    """What has to be moved and computed at least: two operations for a multiply-add.

    Products with a weight that all positions share can be taken by the matrix unit; products with
    neighbours, where every position has weights of its own, are those of the vector unit.
    """

    bytes: int
    matrix: int
    vector: int

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes, self.matrix + other.matrix, self.vector + other.vector
        )


@dataclass
class Problem:
    """Inputs, the gradient of the result, how the operator is called, and the work of both
    passes."""

    name: str
    inputs: dict[str, Tensor]
    grad: Tensor
    forward: Work
    backward: Work
    window: Window | None = None

    @property
    def bytes(self) -> int:
        """What one set of inputs occupies."""
        return size_of(*self.inputs.values(), self.grad)


def size_of(*tensors: Tensor) -> int:
    """Return the bytes of tensors, each read or written once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _works(
    inputs: Sequence[Tensor],
    grad: Tensor,
    kept: int,
    forward: Counter,
    backward: Counter,
) -> tuple[Work, Work]:
    """Return the work of both passes from their multiply-adds; the backward pass reads ``kept``
    bytes more.
    """
    read = size_of(*inputs)
    return tuple(
        Work(
            moved,
            2 * (count['conv'] + count['einsum']),
            2 * (count['aggregate'] + count['correlate']),
        )
        for moved, count in (
            (read + size_of(grad) + kept, forward),
            (2 * read + size_of(grad) + kept, backward),
        )
    )


def channels_last(
    batch: int, groups: int, channels: int, size: Sequence[int], dtype: torch.dtype, device: str
) -> Tensor:
    """Return random numbers (B, G, D, H, W) as modules see a channels-last map."""
    made = torch.randn(batch, *size, groups, channels, device=device)
    return made.to(dtype).permute(0, 3, 4, 1, 2)


def involution(
    batch: int, stage: Sequence[int], kernel: int, dtype: torch.dtype, device: str
) -> Problem:
    """Return involution of a stage, with a quarter of its channels for the generator."""
    channels, *size = stage
    window, groups, hidden = Window(kernel), channels // GROUP_CHANNELS, channels // 4
    inputs = dict(
        value=channels_last(batch, groups, GROUP_CHANNELS, size, dtype, device),
        hidden=channels_last(batch, 1, hidden, size, dtype, device)[:, 0],
        weight=torch.randn(groups * window.taps, hidden, device=device).to(dtype) / hidden**0.5,
        bias=torch.randn(groups * window.taps, device=device).to(dtype),
    )
    grad = torch.randn_like(inputs['value'])
    count = multiply_adds.involution(
        *(inputs[name].shape for name in ('value', 'hidden', 'weight'))
    )
    # kernels again; then two gradients of every product
    back = Counter(conv=3 * count['conv'], aggregate=2 * count['aggregate'])
    return Problem(
        f'involution {shape_of(batch, stage)}',
        inputs,
        grad,
        *_works(list(inputs.values()), grad, 0, count, back),
        window,
    )


def attention(
    batch: int, stage: Sequence[int], kernel: int, dtype: torch.dtype, device: str
) -> Problem:
    """Return local attention of a stage with relative rows and columns, in heads of 16 channels.

    FlexAttention takes no smaller heads on a GPU.
    """
    channels, *size = stage
    window, heads = Window(kernel), channels // GROUP_CHANNELS
    inputs = {
        name: channels_last(batch, heads, GROUP_CHANNELS, size, dtype, device)
        for name in ('query', 'key', 'value')
    }
    inputs['query'] = inputs['query'] / GROUP_CHANNELS**0.5
    for name in ('rows', 'columns'):
        inputs[name] = torch.randn(heads, GROUP_CHANNELS // 2, kernel, device=device).to(dtype)
    grad = torch.randn_like(inputs['value'])
    count = multiply_adds.attention(
        *(inputs[name].shape for name in ('query', 'value', 'rows', 'columns')), window.taps
    )
    # logits and weights again; then two gradients of every product
    back = Counter(
        {name: number * (2 if name == 'aggregate' else 3) for name, number in count.items()}
    )
    # the logarithms of the sums, in float32
    kept = 4 * batch * heads * math.prod(size)
    return Problem(
        f'local attention {shape_of(batch, stage)}',
        inputs,
        grad,
        *_works(list(inputs.values()), grad, kept, count, back),
        window,
    )


def axial(batch: int, stage: Sequence[int], _: int, dtype: torch.dtype, device: str) -> Problem:
    """Return axial attention along the rows of a stage in eight heads, whose keys have half the
    channels of values.
    """
    channels, height, width = stage
    heads, values = 8, channels // 8
    keys, lines = values // 2, batch * height
    qkv = (
        torch.randn(lines, heads, 2 * keys + values, width, device=device)
        .to(dtype)
        .split([keys, keys, values], 2)
    )
    inputs = dict(zip(('query', 'key', 'value'), qkv, strict=True))
    inputs['relative'] = torch.randn(2 * keys + values, 2 * width - 1, device=device).to(dtype)
    inputs['scale'] = torch.rand(3, heads, device=device)
    grad = torch.randn(lines, heads, values, 2, width, device=device).to(dtype)
    count = multiply_adds.axial_attention(inputs['query'].shape, inputs['value'].shape, 3, True)
    # logits again; then two gradients of every product
    back = Counter(einsum=2 * count['einsum'] + 3 * keys * lines * heads * width**2)
    return Problem(
        f'axial attention {lines} x {heads} x {values} x {width}',
        inputs,
        grad,
        *_works(list(inputs.values()), grad, 0, count, back),
    )


def convolution(problem: Problem) -> tuple[Work, Work]:
    """Return the work of a 3x3 convolution of the first input of a problem, with as many output
    channels.
    """
    value = next(iter(problem.inputs.values()))
    channels = value.shape[1] * value.shape[2]
    weight = 9 * channels**2 * value.element_size()
    products = 2 * 9 * channels * value.numel()
    return (
        Work(2 * size_of(value) + weight, products, 0),
        Work(3 * size_of(value) + 2 * weight, 2 * products, 0),
    )


def shape_of(batch: int, stage: Sequence[int]) -> str:
    """Return the sizes of a map as a table names them."""
    return ' x '.join(str(number) for number in (batch, *stage))
