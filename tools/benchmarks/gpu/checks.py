"""Checks of every kernel against its definition in float64 on the CPU.

Inputs are fresh random numbers, and outputs are filled with NaN before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmrednet.ops import (
    Window,
    _torch,
    attention,
    axial,
    involution,
    vector_attention,
    vector_moments,
)
from mmrednet.ops._triton import attention as fused_attention
from mmrednet.ops._triton import axial as fused_axial
from mmrednet.ops._triton import involution as fused_involution
from mmrednet.ops._triton import local as fused_local
from mmrednet.ops._triton import vector_attention as fused_vector
from mmrednet.ops._triton import vector_moments as fused_moments

from ..cases import LAYOUTS, features
from .errors import worst

# largest norm of the error over the norm of the result
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# of vector attention and its statistics: gradients of weights are sums of rounded products that
# cancel
VECTOR_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# window, size of the map, groups and their channels; the smallest for the interpreter
PROBLEMS = {
    False: [
        (Window(7), (37, 53), 4, 16),
        (Window(3, 2), (41, 23), 2, 8),
        (Window(5, 1, 2), (19, 64), 3, 20),
        (Window((1, 11)), (8, 70), 2, 16),
        (Window(11), (13, 40), 2, 16),
        (Window(2, padding=0), (9, 9), 1, 1),
    ],
    True: [(Window((1, 3), 2), (3, 5), 2, 4)],
}
# of the families that take windows that are moved inwards at the border
SHIFTED_PROBLEMS = {
    False: [
        (Window(7, border='shift'), (37, 53), 4, 16),
        (Window(5, border='shift'), (9, 19), 3, 20),
    ],
    True: [(Window(3, border='shift'), (3, 5), 2, 4)],
}
# relations of vector attention that have kernels
RELATIONS = ('subtraction', 'summation', 'hadamard', 'concatenation')
Row = tuple[str, torch.dtype, float, bool]


@contextmanager
def poisoned() -> Iterator[None]:
    """Let torch fill uninitialised memory with NaN."""
    # torch does so in deterministic mode
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _double(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return copies in float64 on the CPU."""
    return [None if tensor is None else tensor.detach().cpu().double() for tensor in tensors]


def _worst(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative error of results whose expected values are in float64."""
    errors = []
    for result, reference in zip(results, expected, strict=True):
        difference = result.detach().cpu().double() - reference
        # a reference of zeros allows no error
        errors.append(float(difference.norm() / reference.norm().clamp_min(1e-9)))
    return worst(errors)


def primitives(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the worst error of aggregate, correlate and scatter."""
    outputs, flat = window.output_size(*size), list(window)
    # queries in another layout than maps: a kernel takes the layout of each tensor on its own
    query_layout = LAYOUTS[LAYOUTS.index(layout) - 1]
    value = features(layout, 2, groups, channels, size, dtype, device)
    query = features(query_layout, 2, groups, channels, outputs, dtype, device)
    weight = features(layout, 2, groups, window.taps, outputs, dtype, device)
    results = [
        fused_local.aggregate(value, weight, flat),
        fused_local.correlate(query, value, flat),
        fused_local.scatter(query, weight, size, flat),
    ]
    value, query, weight = _double([value, query, weight])
    expected = [
        _torch.aggregate(value, weight, window),
        _torch.correlate(query, value, window),
        _torch.scatter(query, weight, size, window),
    ]
    return _worst(results, expected)


def involutions(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the worst error of involution and its four gradients."""
    outputs, flat = window.output_size(*size), list(window)
    hidden = max(1, groups * channels // 4)
    inputs = [
        features(layout, 2, groups, channels, size, dtype, device),
        features(layout, 2, 1, hidden, outputs, dtype, device)[:, 0],
        torch.randn(groups * window.taps, hidden, device=device).to(dtype),
        torch.randn(groups * window.taps, device=device).to(dtype),
    ]
    grad = features(layout, 2, groups, channels, outputs, dtype, device)
    expected = [
        involution.definition(*_double(inputs), flat),
        *involution.gradients(*_double([grad, *inputs]), flat),
    ]
    results = [
        fused_involution.involution(*inputs, flat),
        *involution.involution_backward(grad, *inputs, flat),
    ]
    return _worst(results, expected)


def _tables(
    window: Window, groups: int, channels: int, dtype: torch.dtype, device: str
) -> list[Tensor | None]:
    """Return rows, columns and bias of local attention."""
    if window.border == 'shift':
        # a bias for each place of an output in its window, and no rows and columns
        return [None, None, torch.randn(groups, window.taps**2, device=device).to(dtype)]
    shapes = [(groups, channels // 2, length) for length in window.kernel]
    shapes.append((groups, window.taps))
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes]


def attentions(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the worst error of local attention and its gradients."""
    outputs, flat = window.output_size(*size), list(window)
    # rows and columns need two halves
    channels = max(2, channels)
    query = features(layout, 2, groups, channels, outputs, dtype, device)
    query.div_(channels**0.5)
    inputs = [
        query,
        features(layout, 2, groups, channels, size, dtype, device),
        features(layout, 2, groups, channels, size, dtype, device),
        *_tables(window, groups, channels, dtype, device),
    ]
    grad = features(layout, 2, groups, channels, outputs, dtype, device)
    result, sums = fused_attention.attention(*inputs, flat)
    expected = [
        attention.definition(*_double(inputs), flat)[0],
        *attention.gradients(*_double([grad, *inputs]), flat),
    ]
    results = [result, *fused_attention.attention_backward(grad, sums, *inputs, flat)]
    # A softmax does not change with a shift of all logits. The gradient of the only row or the only
    # column of a window is therefore nothing but rounding: leave it out.
    compared = [True] * 4 + [length > 1 for length in window.kernel] + [True]
    return _worst(
        list(itertools.compress(results, compared)), list(itertools.compress(expected, compared))
    )


def lines(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the error of axial attention along lines as long as the map is wide."""
    length, keys = size[1], max(1, channels // 2)
    qkv = torch.randn(3, groups, 2 * keys + channels, 1, length, device=device).to(dtype)
    relative = torch.randn(2 * keys + channels, 2 * (length // 2) + 1, device=device).to(dtype)
    scale = torch.rand(3, groups, device=device)
    shift = torch.rand(3, groups, device=device)
    inputs = [qkv, relative, scale, shift]
    # no scale of positions, all terms, no span, positions of values, all lines in one chunk
    options = (None, keys, [0, 1, 2], 0, True, 1 << 28)
    result = fused_axial.attention(*inputs, *options)
    return _worst([result], [axial.definition(*_double(inputs), *options)])


def vectors(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the worst error of pairwise and patchwise vector attention and their gradients."""
    errors = []
    for inputs, options in _vector_problems(window, size, groups, channels, layout, dtype, device):
        outputs = window.output_size(*size)
        grad = features(layout, 2, 1, groups * channels, outputs, dtype, device)[:, 0]
        results = [
            fused_vector.attention(*inputs, *options),
            *fused_vector.attention_backward(grad, *inputs, *options),
        ]
        wide, grad = _double(inputs), grad.cpu().double()
        expected = [
            vector_attention.definition(*wide, *options),
            *vector_attention.gradients(grad, *wide, *options),
        ]
        # the gradient of the last bias before a softmax is nothing but rounding
        _, patchwise, *_ = options
        count = len(results) - (0 if patchwise else 1)
        errors.append(_worst(results[:count], expected[:count]))
    return worst(errors)


def statistics(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the worst error of the statistics of (hidden) features, and of their gradients."""
    errors = []
    for inputs, options in _vector_problems(window, size, groups, channels, layout, dtype, device):
        for layer in (inputs[3:6], [None] * 3):
            errors.append(_statistics_error([*inputs[:2], *layer], options))
    return worst(errors)


def _statistics_error(tensors: Sequence[Tensor | None], options: Sequence[Any]) -> float:
    mean, variance = fused_moments.moments(*tensors, *options)
    grads = torch.randn(2, len(mean), device=mean.device)
    results = fused_moments.moments_backward(*grads, mean, *tensors, *options)
    wide = _double(tensors)
    expected = vector_moments.gradients(*_double([*grads, mean]), *wide, *options)
    # without a layer it has no gradients
    count = sum(tensor is not None for tensor in tensors)
    return _worst(
        [mean, variance, *results[:count]],
        [*vector_moments.definition(*wide, *options), *expected[:count]],
    )


def _vector_problems(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> Iterator[tuple[list[Tensor], tuple]]:
    """Yield inputs and options of vector attention for each relation that has a kernel."""
    for relation in RELATIONS:
        patchwise = relation == 'concatenation'
        inputs = _vector_inputs(window, size, groups, channels, patchwise, layout, dtype, device)
        yield inputs, (relation, patchwise, 0 if patchwise else 2, list(window))


def _vector_inputs(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    patchwise: bool,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> list[Tensor]:
    """Return the tensors of vector attention with 6 channels of a relation."""
    places, hidden = 0 if patchwise else 2, 10
    count = 6 * (window.taps + 1) if patchwise else 6 + places
    outputs = groups * window.taps if patchwise else groups
    query, key, value = (
        features(layout, 2, 1, number, map_size, dtype, device)[:, 0]
        for number, map_size in (
            (6 + places, window.output_size(*size)),
            (6 + places, size),
            (groups * channels, size),
        )
    )
    # norms are in float32, as in layers
    scale1, shift1, scale2, shift2 = (
        torch.randn(number, device=device) for number in (count, count, hidden, hidden)
    )
    weight1, weight2, bias2 = (
        torch.randn(shape, device=device).to(dtype)
        for shape in ((hidden, count), (outputs, hidden), (outputs,))
    )
    # so that hidden features and logits are about one
    weight1, weight2 = weight1 / count**0.5, weight2 / hidden**0.5
    return [query, key, value, scale1, shift1, weight1, scale2, shift2, weight2, bias2]


FAMILIES: dict[str, Callable] = {
    'primitives': primitives,
    'involution': involutions,
    'local attention': attentions,
    'axial attention': lines,
    'vector attention': vectors,
    'vector statistics': statistics,
}


def guarded(name: str, dtype: torch.dtype, check: Callable[[], tuple[float, bool]]) -> Row:
    """Return the row of a check: its worst error, and True where that is small enough.

    A check that raises an exception has failed. The row then has the exception.
    """
    try:
        return (name, dtype, *check())
    except Exception as failure:  # noqa: BLE001
        reason = (str(failure).strip().splitlines() or [''])[0].replace('|', '/')
        return f'{name}: {type(failure).__name__} {reason[:80]!r}', dtype, math.nan, False


def check_kernels(dtypes: Sequence[torch.dtype], device: str, tiny: bool) -> list[Row]:
    """Return a row for every family, dtype and layout, with the worst error of all problems."""
    rows = []
    with poisoned():
        for (name, family), dtype, layout in itertools.product(FAMILIES.items(), dtypes, LAYOUTS):
            # Lines have one layout. Most of the time is compilation, so that layouts other than the
            # first are checked in one dtype.
            if layout != LAYOUTS[0] and (family is lines or dtype != dtypes[-1]):
                continue

            def check(family=family, layout=layout, dtype=dtype) -> tuple[float, bool]:
                problems = list(PROBLEMS[tiny])
                if family in (primitives, attentions):
                    problems += SHIFTED_PROBLEMS[tiny]
                errors = [family(*problem, layout, dtype, device) for problem in problems]
                error = worst(errors)
                limits = VECTOR_TOLERANCE if family in (vectors, statistics) else TOLERANCE
                return error, error < limits[dtype]

            rows.append(guarded(name if family is lines else f'{name}, {layout}', dtype, check))
    return rows
