"""Small problems on which the kernels of a family are compared with their definitions.

Each function yields the name of a result or gradient, what the kernel computed, and what the
definition gives in float64. Kernels run first, so that no expected value lies in memory that they
are given. Kernels are called directly; operators within a definition compute definitions too,
as long as a check runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..window import Window

Comparison = tuple[str, Tensor, Tensor]
# a tail of a tile in both directions, several taps, and channels of two groups
WINDOW, SIZE, GROUPS, CHANNELS = Window(3), (3, 18), 2, 16
SHIFTED = Window(3, border='shift')


class Maker:
    """Makes random tensors of one dtype, layout and device, without torch's global generator.

    Args:
        dtype: Dtype of the tensors.
        layout: 'channels-last', 'contiguous' or 'strided'.
        device: Device of the tensors.
    """

    def __init__(self, dtype: torch.dtype, layout: str, device: torch.device) -> None:
        self.dtype, self.layout, self.device = dtype, layout, device
        self.generator = torch.Generator('cpu').manual_seed(0)

    def table(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a contiguous tensor."""
        values = torch.randn(shape, generator=self.generator, device='cpu')
        return values.to(self.device, dtype or self.dtype)

    def maps(self, channels: int, groups: int = GROUPS) -> Tensor:
        """Return a map (1, G, D, H, W) in the layout."""
        x = self.table(1, *SIZE, groups, channels)
        if self.layout == 'channels-last':
            return x.permute(0, 3, 4, 1, 2)
        x = x.permute(0, 3, 4, 1, 2).contiguous()
        if self.layout == 'contiguous':
            return x
        return x.repeat_interleave(2, -1)[..., ::2]


def _wide(arguments: Sequence[Any]) -> list[Any]:
    """Return arguments with their tensors in float64."""
    return [value.double() if isinstance(value, Tensor) else value for value in arguments]


def _kernels(family: str) -> Any:
    return import_module(f'.{family}', __package__)


def local(dtype: torch.dtype, layout: str, device: torch.device) -> Iterator[Comparison]:
    """Compare the three primitives, which are each other's gradients."""
    from .. import _torch

    make, kernels = Maker(dtype, layout, device), _kernels('local')
    value, query, weight = make.maps(CHANNELS), make.maps(CHANNELS), make.maps(WINDOW.taps)
    calls: dict[str, tuple[Any, ...]] = dict(
        aggregate=(value, weight), correlate=(query, value), scatter=(query, weight, SIZE)
    )
    for window in (WINDOW, SHIFTED):
        for name, arguments in calls.items():
            result = getattr(kernels, name)(*arguments, list(window))
            expected = getattr(_torch, name)(*_wide(arguments), window)
            yield _named(name, window), result, expected


def involution(dtype: torch.dtype, layout: str, device: torch.device) -> Iterator[Comparison]:
    """Compare involution. Its gradients are made of the primitives."""
    from .. import involution as operator

    make, rows = Maker(dtype, layout, device), GROUPS * WINDOW.taps
    hidden = make.maps(CHANNELS, groups=1)[:, 0]
    arguments = (
        *(make.maps(CHANNELS), hidden, make.table(rows, CHANNELS), make.table(rows)),
        list(WINDOW),
    )
    result = _kernels('involution').involution(*arguments)
    yield 'involution', result, operator.definition(*_wide(arguments))


def _named(name: str, window: Window) -> str:
    return name if window.border == 'zero' else f'{name} of shifted windows'


def attention(dtype: torch.dtype, layout: str, device: torch.device) -> Iterator[Comparison]:
    """Compare local attention and its gradients, and attention by absolute differences."""
    from .. import difference_attention

    make, kernels = Maker(dtype, layout, device), _kernels('attention')
    query, key, value, grad = (make.maps(CHANNELS) for _ in range(4))
    inputs = (query / CHANNELS**0.5, key, value)
    rows, columns = (make.table(GROUPS, CHANNELS // 2, length) for length in WINDOW.kernel)
    bias = make.table(GROUPS, WINDOW.taps)
    yield from _attention(grad, (*inputs, rows, columns, bias), WINDOW)
    by_place = make.table(GROUPS, SHIFTED.taps**2)
    yield from _attention(grad, (*inputs, None, None, by_place), SHIFTED)
    arguments = (*inputs, bias, list(WINDOW))
    result = kernels.difference_attention(*arguments)
    yield 'difference_attention', result, difference_attention.definition(*_wide(arguments))


def _attention(
    grad: Tensor, inputs: Sequence[Tensor | None], window: Window
) -> Iterator[Comparison]:
    from .. import attention as operator

    kernels, arguments = _kernels('attention'), (*inputs, list(window))
    result, sums = kernels.attention(*arguments)
    grads = kernels.attention_backward(grad, sums, *arguments)
    name = _named('attention', window)
    yield name, result, operator.definition(*_wide(arguments))[0]
    expected = operator.gradients(grad.double(), *_wide(arguments))
    for tensor, actual, reference in zip(_ATTENTION, grads, expected, strict=True):
        yield f'gradient of {name} for {tensor}', actual, reference


_ATTENTION = ('query', 'key', 'value', 'rows', 'columns', 'bias')


def _lines(make: Maker) -> tuple[Tensor, ...]:
    """Return lines, tables, scale and shift of axial attention."""
    keys, values = 8, CHANNELS
    lines = make.maps(2 * keys + values)
    relative = make.table(2 * keys + values, 2 * SIZE[1] - 1)
    scale, shift = make.table(2, 3, GROUPS, dtype=torch.float32)
    return lines, relative, scale / keys, shift


# channels of keys, terms, no span, positions of values, elements of a chunk
_AXIAL = (8, [0, 1, 2], 0, True, 1 << 20)


def axial(dtype: torch.dtype, layout: str, device: torch.device) -> Iterator[Comparison]:
    """Compare axial attention."""
    from .. import axial as operator

    arguments = (*_lines(Maker(dtype, layout, device)), None, *_AXIAL)
    result = _kernels('axial').attention(*arguments)
    yield 'attention', result, operator.dense_definition(*_wide(arguments))


def axial_backward(dtype: torch.dtype, layout: str, device: torch.device) -> Iterator[Comparison]:
    """Compare the gradients of axial attention."""
    from .. import axial as operator

    make = Maker(dtype, layout, device)
    lines, relative, scale, _ = _lines(make)
    arguments = (make.maps(2 * CHANNELS), lines, relative, scale, *_AXIAL)
    grads = _kernels('axial_backward').attention_backward(*arguments)
    expected = operator.dense_gradients(*_wide(arguments))
    for name, actual, reference in zip(('lines', 'table', 'scale'), grads, expected, strict=True):
        yield f'gradient of axial attention for {name}', actual, reference


def vector_attention(dtype: torch.dtype, layout: str, device: torch.device) -> Iterator[Comparison]:
    """Compare pairwise and patchwise vector attention, and their gradients."""
    from .. import vector_attention as operator

    make, kernels = Maker(dtype, layout, device), _kernels('vector_attention')
    for relation, patchwise in (('subtraction', False), ('concatenation', True)):
        arguments = _vector_arguments(make, relation, patchwise)
        grad = make.maps(GROUPS * CHANNELS, groups=1)[:, 0]
        result = kernels.attention(*arguments)
        grads = kernels.attention_backward(grad, *arguments)
        doubles = _wide(arguments)
        yield relation, result, operator.definition(*doubles)
        expected = operator.gradients(grad.double(), *doubles)
        # the last one, of the bias before a softmax, is nothing but rounding
        count = 10 if patchwise else 9
        for name, actual, reference in zip(_VECTOR[:count], grads, expected, strict=False):
            yield f'gradient of {relation} for {name}', actual, reference


_VECTOR = (
    *('query', 'key', 'value', 'scale1', 'shift1', 'weight1'),
    *('scale2', 'shift2', 'weight2', 'bias2'),
)


def vector_moments(dtype: torch.dtype, layout: str, device: torch.device) -> Iterator[Comparison]:
    """Compare the statistics of features and of hidden features, and their gradients."""
    make = Maker(dtype, layout, device)
    for relation, patchwise in (('subtraction', False), ('concatenation', True)):
        query, key, _, *gamma = _vector_arguments(make, relation, patchwise)
        options = gamma[-4:]
        yield from _moments(make, f'features by {relation}', query, key, [None] * 3, options)
        yield from _moments(make, f'hidden features by {relation}', query, key, gamma[:3], options)


def _moments(
    make: Maker,
    name: str,
    query: Tensor,
    key: Tensor,
    layer: Sequence[Tensor | None],
    options: Sequence[Any],
) -> Iterator[Comparison]:
    from .. import vector_moments as operator

    kernels, arguments = _kernels('vector_moments'), (query, key, *layer, *options)
    mean, variance = kernels.moments(*arguments)
    grads = [make.table(len(mean), dtype=torch.float32) for _ in range(2)]
    results = kernels.moments_backward(*grads, mean, *arguments)
    doubles = _wide(arguments)
    expected_mean, expected_variance = operator.definition(*doubles)
    yield f'mean of {name}', mean, expected_mean
    yield f'variance of {name}', variance, expected_variance
    expected = operator.gradients(*_wide([*grads, mean]), *doubles)
    for tensor, actual, reference in zip(_MOMENTS, results, expected, strict=True):
        yield f'gradient of moments of {name} for {tensor}', actual, reference


_MOMENTS = ('query', 'key', 'scale', 'shift', 'weight')


def _vector_arguments(make: Maker, relation: str, patchwise: bool) -> tuple[Any, ...]:
    """Return the arguments of vector attention with 4 channels of keys and 8 hidden features."""
    channels, coordinates, hidden = 4, 0 if patchwise else 2, 8
    features = channels * (WINDOW.taps + 1) if patchwise else channels + coordinates
    outputs = GROUPS * WINDOW.taps if patchwise else GROUPS
    scale1, shift1, scale2, shift2 = (
        make.table(count, dtype=torch.float32) for count in (features, features, hidden, hidden)
    )
    maps = [make.maps(count, groups=1)[:, 0] for count in (channels + coordinates,) * 2]
    return (
        *(*maps, make.maps(GROUPS * CHANNELS, groups=1)[:, 0], scale1, shift1),
        *(make.table(hidden, features), scale2, shift2, make.table(outputs, hidden)),
        *(make.table(outputs), relation, patchwise, coordinates, list(WINDOW)),
    )


PROBLEMS: dict[str, Callable[[torch.dtype, str, torch.device], Iterator[Comparison]]] = dict(
    local=local,
    involution=involution,
    attention=attention,
    axial=axial,
    axial_backward=axial_backward,
    vector_attention=vector_attention,
    vector_moments=vector_moments,
)
