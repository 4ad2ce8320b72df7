"""Every kernel against its definition in float64 on the CPU: fresh random inputs, outputs filled
with NaN before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mmrednet.ops import Window, _torch, attention, axial, involution
from mmrednet.ops._triton import attention as fused_attention
from mmrednet.ops._triton import axial as fused_axial
from mmrednet.ops._triton import involution as fused_involution
from mmrednet.ops._triton import local as fused_local

from .problems import channels_last

# of the norm of the error over the norm of the result
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LAYOUTS = ('channels-last', 'contiguous', 'strided')
# windows, the size of the map, groups and their channels; the smallest for the interpreter
CASES = {
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
Row = tuple[str, torch.dtype, float, bool]


@contextmanager
def poisoned() -> Iterator[None]:
    """Let torch fill what it does not initialise with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _double(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.detach().cpu().double() for tensor in tensors]


def worst(errors: Iterable[float]) -> float:
    """Return the largest error; a NaN is larger than every number."""
    return max(errors, key=lambda error: (error != error, error))


def _worst(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return worst(
        float((have.detach().cpu().double() - want).norm() / want.norm().clamp_min(1e-9))
        for have, want in zip(got, expected, strict=True)
    )


def laid_out(
    layout: str,
    batch: int,
    groups: int,
    channels: int,
    size: Sequence[int],
    dtype: torch.dtype,
    device: str,
) -> Tensor:
    """Return random numbers (B, G, D, H, W) in one of the layouts; strided ones leave out rows and
    columns.
    """
    if layout == 'channels-last':
        return channels_last(batch, groups, channels, size, dtype, device)
    # made on the device: moving what is not dense would make it so
    step = 1 if layout == 'contiguous' else 2
    return torch.randn(
        batch, groups, channels, *(step * length for length in size), device=device
    ).to(dtype)[..., ::step, ::step]


def primitives(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the worst error of aggregate, correlate and scatter, of maps in this layout and
    outputs in the next.
    """
    outputs, flat, errors = window.output_size(*size), list(window), []
    other = LAYOUTS[LAYOUTS.index(layout) - 1]
    value = laid_out(layout, 2, groups, channels, size, dtype, device)
    query = laid_out(other, 2, groups, channels, outputs, dtype, device)
    weight = laid_out(layout, 2, groups, window.taps, outputs, dtype, device)
    for name, *inputs in (
        ('aggregate', value, weight),
        ('correlate', query, value),
        ('scatter', query, weight),
    ):
        last = [size] if name == 'scatter' else []
        expected = getattr(_torch, name)(*_double(inputs), *last, window)
        errors.append(_worst([getattr(fused_local, name)(*inputs, *last, flat)], [expected]))
    return worst(errors)


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
        laid_out(layout, 2, groups, channels, size, dtype, device),
        laid_out(layout, 2, 1, hidden, outputs, dtype, device)[:, 0],
        torch.randn(groups * window.taps, hidden, device=device).to(dtype),
        torch.randn(groups * window.taps, device=device).to(dtype),
    ]
    grad = laid_out(layout, 2, groups, channels, outputs, dtype, device)
    expected = [
        involution.definition(*_double(inputs), flat),
        *involution.gradients(*_double([grad, *inputs]), flat),
    ]
    return _worst(
        [
            fused_involution.involution(*inputs, flat),
            *involution.involution_backward(grad, *inputs, flat),
        ],
        expected,
    )


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
    outputs, flat, channels = window.output_size(*size), list(window), max(2, channels)
    inputs = [
        laid_out(layout, 2, groups, channels, place, dtype, device)
        for place in (outputs, size, size)
    ]
    inputs[0].div_(channels**0.5)
    inputs += [
        torch.randn(groups, *shape, device=device).to(dtype)
        for shape in (
            (channels // 2, window.kernel[0]),
            (channels // 2, window.kernel[1]),
            (window.taps,),
        )
    ]
    grad = laid_out(layout, 2, groups, channels, outputs, dtype, device)
    result, sums = fused_attention.attention(*inputs, flat)
    expected = [
        attention.definition(*_double(inputs), flat)[0],
        *attention.gradients(*_double([grad, *inputs]), flat),
    ]
    got = [result, *fused_attention.attention_backward(grad, sums, *inputs, flat)]
    # a softmax is the same whatever all logits have more: a single row or column of taps has no
    # gradient but rounding
    there = [True] * 4 + [length > 1 for length in window.kernel] + [True]
    return _worst(*(list(itertools.compress(tensors, there)) for tensors in (got, expected)))


def lines(
    window: Window,
    size: tuple[int, int],
    groups: int,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> float:
    """Return the error of axial attention along lines as long as the map is wide; they have one
    layout.
    """
    length, keys = size[1], max(1, channels // 2)
    qkv = torch.randn(3, groups, 2 * keys + channels, length, device=device).to(dtype)
    relative = torch.randn(2 * keys + channels, 2 * (length // 2) + 1, device=device).to(dtype)
    scale, shift = (torch.rand(3, groups, device=device) for _ in range(2))
    inputs, options = (
        [*qkv.split([keys, keys, channels], 2), relative, scale, shift],
        ([0, 1, 2], 0, True, 1 << 28),
    )
    return _worst(
        [fused_axial.attention(*inputs, *options)], [axial.definition(*_double(inputs), *options)]
    )


FAMILIES: dict[str, Callable] = {
    'primitives': primitives,
    'involution': involutions,
    'local attention': attentions,
    'axial attention': lines,
}


def guarded(name: str, dtype: torch.dtype, check: Callable[[], tuple[float, bool]]) -> Row:
    """Return the row of a check that gives its worst error and whether that is small enough, or
    raises.
    """
    try:
        return (name, dtype, *check())
    except Exception as failure:  # noqa: BLE001
        reason = (str(failure).strip().splitlines() or [''])[0].replace('|', '/')
        return f'{name}: {type(failure).__name__} {reason[:80]!r}', dtype, math.nan, False


def check_kernels(dtypes: Sequence[torch.dtype], device: str, tiny: bool) -> list[Row]:
    """Return a row for every family, dtype and layout: the worst error of all cases."""
    rows = []
    with poisoned():
        for (name, family), dtype, layout in itertools.product(FAMILIES.items(), dtypes, LAYOUTS):
            # lines have one layout; others than the first are compiled for one dtype: compiling
            # takes the time
            if layout != LAYOUTS[0] and (family is lines or dtype != dtypes[-1]):
                continue

            def check(family=family, layout=layout, dtype=dtype) -> tuple[float, bool]:
                error = worst(family(*case, layout, dtype, device) for case in CASES[tiny])
                return error, error < TOLERANCE[dtype]

            rows.append(guarded(name if family is lines else f'{name}, {layout}', dtype, check))
    return rows
