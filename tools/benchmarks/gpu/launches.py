"""Operators with their gradients, called in every way that a program may call them: each gives the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mmrednet.ops import (
    Window,
    axial_attention,
    local_aggregate,
    local_attention,
    local_correlate,
    local_involution,
)

from .checks import TOLERANCE, Row, guarded, worst
from .problems import channels_last

SIZE = {False: (37, 53), True: (3, 5)}
# a gradient that torch's matrix products make may differ with the stream and the device that they
# run on
COMPOSED = ('involution', 'axial attention')


def operators(
    size: tuple[int, int], dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Callable, list[Tensor]]]:
    """Yield the name of every family, one of its operators, and inputs."""
    window = Window(7)
    query, key, value = (channels_last(2, 4, 16, size, dtype, device) for _ in range(3))
    random = lambda *shape: torch.randn(shape, device=device).to(dtype)  # noqa: E731
    weight = channels_last(2, 4, window.taps, size, dtype, device)
    yield 'aggregate', lambda *tensors: local_aggregate(*tensors, window), [value, weight]
    yield 'correlate', lambda *tensors: local_correlate(*tensors, window), [query, key]
    hidden = channels_last(2, 1, 16, size, dtype, device)[:, 0]
    yield (
        'involution',
        lambda *tensors: local_involution(*tensors, window),
        [value, hidden, random(4 * window.taps, 16), random(4 * window.taps)],
    )
    yield (
        'local attention',
        lambda q, k, v, rows, columns, bias: local_attention(
            q, k, v, window, rows=rows, columns=columns, bias=bias
        ),
        [query / 4, key, value, random(4, 8, 7), random(4, 8, 7), random(4, window.taps)],
    )
    yield (
        'axial attention',
        lambda *tensors: axial_attention(*tensors, torch.zeros_like(tensors[-1])),
        [
            *random(6, 4, 32, size[1]).split([8, 8, 16], 2),
            random(32, 2 * size[1] - 1),
            torch.rand(3, 4, device=device),
        ],
    )


def both_passes(
    function: Callable, inputs: Sequence[Tensor], leaves: list[Tensor] | None = None
) -> list[Tensor]:
    """Return the result and the gradients of all inputs, for a gradient that depends on the
    result."""
    leaves = leaves or [tensor.detach().requires_grad_() for tensor in inputs]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, result.detach().cos())]


def on_another_stream(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run beside what runs now."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = both_passes(function, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return found


def in_a_graph(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Capture both passes of other numbers, and replay them with the inputs."""
    leaves = [torch.randn_like(tensor).requires_grad_() for tensor in inputs]
    on_another_stream(function, leaves)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both_passes(function, inputs, leaves)
    with torch.no_grad():
        for leaf, tensor in zip(leaves, inputs, strict=True):
            leaf.copy_(tensor)
    graph.replay()
    return found


def on_another_device(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run on the second device while the first is the current one."""
    return [
        tensor.to(inputs[0].device)
        for tensor in both_passes(function, [tensor.to('cuda:1') for tensor in inputs])
    ]


def compiled(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run what torch.compile makes of it: without a GPU traced alone."""
    torch._dynamo.reset()
    backend = 'inductor' if inputs[0].is_cuda else 'aot_eager'
    return both_passes(torch.compile(function, fullgraph=True, backend=backend), inputs)


def ways(device: str) -> dict[str, Callable]:
    """Return the ways to call an operator that this machine has."""
    found: dict[str, Callable] = {'repeated': both_passes, 'torch.compile': compiled}
    if device == 'cuda':
        found |= {'another stream': on_another_stream, 'a CUDA graph': in_a_graph}
        if torch.cuda.device_count() > 1:
            found['a second device'] = on_another_device
    return found


def check_launches(device: str, tiny: bool) -> list[Row]:
    """Return a row for every operator and way to call it: by how much results and gradients differ
    from the first.
    """
    dtype, rows = torch.bfloat16, []
    for name, function, inputs in operators(SIZE[tiny], dtype, device):
        allowed = TOLERANCE[dtype] if name in COMPOSED else 0.0
        for way, call in ways(device).items():

            def check(
                function=function, inputs=inputs, call=call, allowed=allowed
            ) -> tuple[float, bool]:
                expected, found = both_passes(function, inputs), call(function, inputs)
                if device == 'cuda':
                    torch.cuda.synchronize()
                error = worst(
                    float((have.double() - want.double()).norm() / want.double().norm())
                    for have, want in zip(found, expected, strict=True)
                )
                return error, error <= allowed

            rows.append(guarded(f'{name}, {way}', dtype, check))
    return rows
