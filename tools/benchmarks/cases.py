"""The cases of all benchmarks, on CPU and GPU: sizes, random inputs, and the work of each operator.

A case is one operator on one map of RedNet-50 or of its relatives with attention.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrednet.ops import (
    Gamma,
    Window,
    axial_attention,
    local_aggregate,
    local_attention,
    local_correlate,
    local_involution,
    local_vector_attention,
    multiply_adds,
    vector_statistics,
)

# channels of a group of RedNet, and how many times fewer features its generator has
GROUP_CHANNELS, REDUCTION = 16, 4
# heads of axial attention
AXIAL_HEADS = 8
# Maps of the four stages of RedNet-50 and SASA-50, (channels, height, width), by the size of the
# image. The tiny one is for Triton's interpreter.
STAGES = {
    '224': [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)],
    '800x1344': [(64, 200, 336), (128, 100, 168), (256, 50, 84), (512, 25, 42)],
    'tiny': [(32, 3, 5)],
}
# Axial attention is timed on the maps of the middle.
AXIAL_STAGES = {'800x1344': STAGES['800x1344'][1:3], 'tiny': STAGES['tiny']}
LAYOUTS = ('channels-last', 'contiguous', 'strided')


@dataclass
class Work:
    """Least bytes moved and operations of a pass. A multiply-add is two operations.

    The matrix unit can compute products with a weight that all positions share. Products with
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
class Case:
    """An operator with inputs, the gradient of its result, and the work of both passes.

    Args:
        name: Name in tables.
        operator: Our operator as a function of the inputs.
        inputs: Tensors by name, in the order of the operator's arguments.
        grad: Gradient of the result, of the size of the result.
        forward: Work of the forward pass.
        backward: Work of the backward pass.
        window: Window of the operator, or None for axial attention.
    """

    name: str
    operator: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    grad: Tensor
    forward: Work
    backward: Work
    window: Window | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the inputs and of the result."""
        return size_of(*self.inputs.values(), self.grad)


def size_of(*tensors: Tensor) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def features(
    layout: str,
    batch: int,
    groups: int,
    channels: int,
    size: Sequence[int],
    dtype: torch.dtype,
    device: str = 'cpu',
) -> Tensor:
    """Return a random feature map (B, G, D, H, W) in one of ``LAYOUTS``.

    A channels-last one is the view that modules have of a channels-last map. A strided one leaves
    out every other row and column.
    """
    if layout == 'channels-last':
        x = torch.randn(batch, *size, groups, channels, device=device)
        return x.to(dtype).permute(0, 3, 4, 1, 2)
    # on the device from the start: moving a tensor with gaps would make it dense
    step = 2 if layout == 'strided' else 1
    full_size = [step * length for length in size]
    x = torch.randn(batch, groups, channels, *full_size, device=device)
    return x.to(dtype)[..., ::step, ::step]


def _works(
    inputs: dict[str, Tensor],
    grad: Tensor,
    forward: Counter[str],
    backward: Counter[str],
    saved: int = 0,
) -> tuple[Work, Work]:
    """Return the work of both passes from their multiply-adds.

    Inputs are read once and results are written once. The backward pass reads the inputs and the
    gradient of the result, and writes the gradients of the inputs. ``saved`` bytes are written by
    the forward pass and read by the backward pass.
    """
    inputs_bytes, grad_bytes = size_of(*inputs.values()), size_of(grad)
    return (
        _work(inputs_bytes + grad_bytes + saved, forward),
        _work(2 * inputs_bytes + grad_bytes + saved, backward),
    )


def _work(moved: int, count: Counter[str]) -> Work:
    matrix = count['conv'] + count['einsum']
    vector = count['aggregate'] + count['correlate']
    return Work(moved, 2 * matrix, 2 * vector)


@dataclass(frozen=True)
class Setting:
    """What a case is made for.

    Args:
        batch: Number of images.
        stage: Channels, height and width of the map.
        kernel: Size of the window.
        dtype: Dtype of the inputs.
        device: Device of the inputs. Default: ``'cpu'``.
        layout: Layout of the maps, one of ``LAYOUTS``. Default: ``'channels-last'``.
        heads: Number of heads of local attention. By default heads have 16 channels, since
            FlexAttention takes no smaller ones on a GPU.
    """

    batch: int
    stage: Sequence[int]
    kernel: int
    dtype: torch.dtype
    device: str = 'cpu'
    layout: str = 'channels-last'
    heads: int | None = None

    @property
    def channels(self) -> int:
        """Channels of the map."""
        return self.stage[0]

    @property
    def groups(self) -> int:
        """Groups of 16 channels."""
        return self.channels // GROUP_CHANNELS

    @property
    def window(self) -> Window:
        """Window of the operator."""
        return Window(self.kernel)

    def features(self, groups: int, channels: int) -> Tensor:
        """Return a random map (B, G, D, H, W)."""
        size = self.stage[1:]
        return features(self.layout, self.batch, groups, channels, size, self.dtype, self.device)

    def parameter(self, *shape: int) -> Tensor:
        """Return a random tensor that all positions share."""
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def name(self, operator: str) -> str:
        """Return the name of a case in tables."""
        sizes = ' x '.join(str(number) for number in (self.batch, *self.stage))
        return f'{operator} {sizes}'


def aggregate(setting: Setting) -> Case:
    """Return an aggregation in groups of 16 channels."""
    window = setting.window
    inputs = dict(
        value=setting.features(setting.groups, GROUP_CHANNELS),
        weight=setting.features(setting.groups, window.taps),
    )
    grad = torch.randn_like(inputs['value'])
    count = multiply_adds.aggregate(inputs['value'].shape, inputs['weight'].shape)
    # the gradients are one scatter and one correlation, as large as the aggregation
    works = _works(inputs, grad, Counter(aggregate=count), Counter(aggregate=2 * count))

    def operator(value: Tensor, weight: Tensor) -> Tensor:
        return local_aggregate(value, weight, window)

    return Case(setting.name('aggregate'), operator, inputs, grad, *works, window)


def correlate(setting: Setting) -> Case:
    """Return a correlation in groups of 16 channels."""
    window = setting.window
    inputs = dict(
        query=setting.features(setting.groups, GROUP_CHANNELS),
        key=setting.features(setting.groups, GROUP_CHANNELS),
    )
    grad = setting.features(setting.groups, window.taps)
    count = multiply_adds.correlate(inputs['query'].shape, window.taps)
    # the gradients are one aggregation and one scatter, as large as the correlation
    works = _works(inputs, grad, Counter(correlate=count), Counter(correlate=2 * count))

    def operator(query: Tensor, key: Tensor) -> Tensor:
        return local_correlate(query, key, window)

    return Case(setting.name('correlate'), operator, inputs, grad, *works, window)


def involution(setting: Setting) -> Case:
    """Return an involution whose generator has a quarter of the map's channels."""
    window, hidden = setting.window, setting.channels // REDUCTION
    rows = setting.groups * window.taps
    inputs = dict(
        value=setting.features(setting.groups, GROUP_CHANNELS),
        hidden=setting.features(1, hidden)[:, 0],
        # scaled, so that kernels are about one whatever the number of features
        weight=setting.parameter(rows, hidden) / hidden**0.5,
        bias=setting.parameter(rows),
    )
    grad = torch.randn_like(inputs['value'])
    shapes = [inputs[name].shape for name in ('value', 'hidden', 'weight')]
    count = multiply_adds.involution(*shapes)
    # the kernels again; then two gradients of each product
    backward = Counter(conv=3 * count['conv'], aggregate=2 * count['aggregate'])
    works = _works(inputs, grad, count, backward)

    def operator(value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return local_involution(value, hidden, weight, bias, window)

    return Case(setting.name('involution'), operator, inputs, grad, *works, window)


def attention(setting: Setting) -> Case:
    """Return local attention with relative rows and columns."""
    window, heads = setting.window, setting.heads or setting.groups
    channels = setting.channels // heads
    inputs = dict(
        # the usual scale of logits: without it each softmax has one weight of nearly one
        query=setting.features(heads, channels) / channels**0.5,
        key=setting.features(heads, channels),
        value=setting.features(heads, channels),
        rows=setting.parameter(heads, channels // 2, setting.kernel),
        columns=setting.parameter(heads, channels // 2, setting.kernel),
    )
    grad = torch.randn_like(inputs['value'])
    shapes = [inputs[name].shape for name in ('query', 'value', 'rows', 'columns')]
    count = multiply_adds.attention(*shapes, window.taps)
    # logits and weights again; then two gradients of each product
    backward = Counter(
        correlate=3 * count['correlate'],
        einsum=3 * count['einsum'],
        aggregate=2 * count['aggregate'],
    )
    # the logarithms of the softmax's sums, in float32
    saved = 4 * setting.batch * heads * math.prod(setting.stage[1:])
    works = _works(inputs, grad, count, backward, saved)

    def operator(
        query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        return local_attention(query, key, value, window, rows=rows, columns=columns)

    return Case(setting.name('local attention'), operator, inputs, grad, *works, window)


def axial(setting: Setting) -> Case:
    """Return axial attention along rows. Keys have half the channels of values."""
    channels, height, width = setting.stage
    heads, values = AXIAL_HEADS, channels // AXIAL_HEADS
    keys, lines = values // 2, setting.batch * height
    # views of one tensor, as the layer's convolution computes them
    qkv = setting.parameter(lines, heads, 2 * keys + values, width)
    query, key, value = qkv.split([keys, keys, values], 2)
    relative = setting.parameter(2 * keys + values, 2 * width - 1)
    scale = torch.rand(3, heads, device=setting.device)
    inputs = dict(query=query, key=key, value=value, relative=relative, scale=scale)
    grad = setting.parameter(lines, heads, values, 2, width)
    count = multiply_adds.axial_attention(query.shape, value.shape, 3, True)
    # the logits again; then two gradients of each product
    backward = Counter(einsum=2 * count['einsum'] + 3 * keys * lines * heads * width**2)
    works = _works(inputs, grad, count, backward)

    def operator(*inputs: Tensor) -> Tensor:
        # a softmax does not change with a shift
        return axial_attention(*inputs, torch.zeros_like(inputs[-1]))

    name = f'axial attention {lines} x {heads} x {values} x {width}'
    return Case(name, operator, inputs, grad, *works)


def vector(setting: Setting, patchwise: bool = False) -> Case:
    """Return vector attention of the released networks: a quarter of the channels for relations,
    and groups of 8.
    """
    window, channels, groups = setting.window, setting.channels // 4, setting.channels // 8
    places = 0 if patchwise else 2
    features = channels * (window.taps + 1) if patchwise else channels + places
    hidden, outputs = (groups, groups * window.taps) if patchwise else (channels, groups)
    maps = [setting.features(1, count)[:, 0] for count in (*[channels + places] * 2, 8 * groups)]
    norms = [torch.rand(count, device=setting.device) for count in (features,) * 2 + (hidden,) * 2]
    inputs = dict(
        **dict(zip(('query', 'key', 'value'), maps, strict=True)),
        scale1=norms[0],
        shift1=norms[1],
        weight1=setting.parameter(hidden, features) / features**0.5,
        scale2=norms[2],
        shift2=norms[3],
        weight2=setting.parameter(outputs, hidden) / hidden**0.5,
    )
    grad = torch.randn_like(inputs['value'])
    shapes = [inputs[name].shape for name in ('query', 'value', 'weight1', 'weight2')]
    count = multiply_adds.vector_attention(*shapes, window.taps, patchwise)
    # features again; then two gradients of each product
    backward = Counter(conv=3 * count['conv'], aggregate=2 * count['aggregate'])
    works = _works(inputs, grad, count, backward)

    def operator(query: Tensor, key: Tensor, value: Tensor, *gamma: Tensor) -> Tensor:
        # a softmax does not change with a shift
        bias = gamma[-1].new_zeros(outputs)
        return local_vector_attention(
            *(query, key, value, Gamma(*gamma, bias), window),
            relation='concatenation' if patchwise else 'subtraction',
            patchwise=patchwise,
            position_channels=places,
        )

    name = 'patchwise' if patchwise else 'pairwise'
    return Case(setting.name(f'vector attention, {name}'), operator, inputs, grad, *works, window)


def patchwise_vector(setting: Setting) -> Case:
    """Return patchwise vector attention."""
    return vector(setting, patchwise=True)


def statistics(setting: Setting, patchwise: bool = False) -> Case:
    """Return the statistics of the second norm of vector attention in training, of the same sizes.

    The result is the mean, followed by the variance.
    """
    attention_inputs = vector(setting, patchwise).inputs
    names = ('query', 'key', 'scale1', 'shift1', 'weight1')
    inputs = {name: attention_inputs[name] for name in names}
    hidden = len(inputs['weight1'])
    grad = torch.randn(2 * hidden, device=setting.device)
    vectors = setting.batch * math.prod(setting.stage[1:])
    if not patchwise:
        vectors *= setting.window.taps
    count = vectors * math.prod(inputs['weight1'].shape)
    # hidden features again; then the gradients of features and weight
    works = _works(inputs, grad, Counter(conv=count), Counter(conv=3 * count))

    def operator(query: Tensor, key: Tensor, *layer: Tensor) -> Tensor:
        moments = vector_statistics(
            *(query, key, setting.window),
            relation='concatenation' if patchwise else 'subtraction',
            patchwise=patchwise,
            position_channels=0 if patchwise else 2,
            first_layer=layer,
        )
        return torch.cat(moments)

    name = 'patchwise' if patchwise else 'pairwise'
    title = setting.name(f'vector statistics, {name}')
    return Case(title, operator, inputs, grad, *works, setting.window)


def patchwise_statistics(setting: Setting) -> Case:
    """Return the statistics of patchwise vector attention."""
    return statistics(setting, patchwise=True)


CASES: dict[str, Callable[[Setting], Case]] = {
    'aggregate': aggregate,
    'correlate': correlate,
    'involution': involution,
    'attention': attention,
    'axial': axial,
    'vector': vector,
    'patchwise': patchwise_vector,
    'statistics': statistics,
    'patchwise-statistics': patchwise_statistics,
}


def convolution(case: Case) -> tuple[Work, Work]:
    """Return the work of both passes of a 3x3 convolution of the first input of a case."""
    value = next(iter(case.inputs.values()))
    channels = value.shape[1] * value.shape[2]
    weight_bytes = 9 * channels**2 * value.element_size()
    operations = 2 * 9 * channels * value.numel()
    return (
        Work(2 * size_of(value) + weight_bytes, operations, 0),
        Work(3 * size_of(value) + 2 * weight_bytes, 2 * operations, 0),
    )
