"""Checks that operators and gradients have the same values in every way of calling them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
    vector_statistics,
)

from ..cases import features
from .checks import TOLERANCE, Row, guarded
from .errors import relative_error, worst

# size of the map; the smaller one for the interpreter
SIZE = {False: (37, 53), True: (3, 5)}
# gradients by torch's matrix products and by its sums over equal indices may differ between streams
# and devices
COMPOSED = ('involution', 'neighbourhood attention', 'axial attention')


def operators(
    size: tuple[int, int], dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Callable, list[Tensor]]]:
    """Yield the name of every family, one of its operators, and inputs."""
    window = Window(7)

    def random_map(groups: int, channels: int) -> Tensor:
        return features('channels-last', 2, groups, channels, size, dtype, device)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    query, key, value = random_map(4, 16), random_map(4, 16), random_map(4, 16)
    weight = random_map(4, window.taps)
    yield 'aggregate', lambda *tensors: local_aggregate(*tensors, window), [value, weight]
    yield 'correlate', lambda *tensors: local_correlate(*tensors, window), [query, key]
    hidden = random_map(1, 16)[:, 0]
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
    shifted = Window(3, border='shift')
    yield (
        'neighbourhood attention',
        lambda q, k, v, bias: local_attention(q, k, v, shifted, bias=bias),
        [query / 4, key, value, random(4, shifted.offsets)],
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
    maps = [random_map(1, channels)[:, 0] for channels in (10, 10, 32)]
    norms = [torch.rand(count, device=device) for count in (10, 10, 8, 8)]
    gamma = (*norms[:2], random(8, 10), *norms[2:], random(4, 8), random(4))
    yield (
        'vector attention',
        # small, since the interpreter walks over the taps five times
        lambda query, key, value, *gamma: local_vector_attention(
            *(query, key, value, Gamma(*gamma), Window((1, 3))),
            relation='subtraction',
            position_channels=2,
        ),
        [*maps, *gamma],
    )
    yield (
        'vector statistics',
        lambda query, key, *layer: torch.cat(
            vector_statistics(
                *(query, key, Window((1, 3))),
                relation='subtraction',
                position_channels=2,
                first_layer=layer,
            )
        ),
        [*maps[:2], *gamma[:3]],
    )


def both_passes(
    function: Callable, inputs: Sequence[Tensor], leaves: list[Tensor] | None = None
) -> list[Tensor]:
    """Return the result and the gradients of all inputs."""
    # the gradient of the result depends on the result, so that errors of the first pass show
    leaves = leaves or [tensor.detach().requires_grad_() for tensor in inputs]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, result.detach().cos())]


def on_another_stream(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run on another stream than the current one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = both_passes(function, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return results


def in_a_graph(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Capture both passes with other inputs, and replay them with these."""
    leaves = [torch.randn_like(tensor).requires_grad_() for tensor in inputs]
    # compiles the kernels, which a capture may not do
    on_another_stream(function, leaves)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = both_passes(function, inputs, leaves)
    with torch.no_grad():
        for leaf, tensor in zip(leaves, inputs, strict=True):
            leaf.copy_(tensor)
    graph.replay()
    return results


def on_another_device(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run on the second device while the first is the current one."""
    results = both_passes(function, [tensor.to('cuda:1') for tensor in inputs])
    return [result.to(inputs[0].device) for result in results]


def compiled(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a function by torch.compile."""
    torch._dynamo.reset()
    # the CPU traces both passes but compiles nothing
    backend = 'inductor' if inputs[0].is_cuda else 'aot_eager'
    return both_passes(torch.compile(function, fullgraph=True, backend=backend), inputs)


def ways(device: str) -> dict[str, Callable]:
    """Return the ways to call an operator that this machine has."""
    calls: dict[str, Callable] = {'repeated': both_passes, 'torch.compile': compiled}
    if device == 'cuda':
        calls |= {'another stream': on_another_stream, 'a CUDA graph': in_a_graph}
        if torch.cuda.device_count() > 1:
            calls['a second device'] = on_another_device
    return calls


def check_launches(device: str, tiny: bool) -> list[Row]:
    """Return a row for every operator and way to call it.

    Results and gradients are compared with those of a plain call.
    """
    dtype, rows = torch.bfloat16, []
    for name, function, inputs in operators(SIZE[tiny], dtype, device):
        allowed = TOLERANCE[dtype] if name in COMPOSED else 0.0
        for way, call in ways(device).items():

            def check(
                function=function, inputs=inputs, call=call, allowed=allowed
            ) -> tuple[float, bool]:
                expected, results = both_passes(function, inputs), call(function, inputs)
                if device == 'cuda':
                    torch.cuda.synchronize()
                pairs = zip(results, expected, strict=True)
                error = worst(relative_error(result, reference) for result, reference in pairs)
                return error, error <= allowed

            rows.append(guarded(f'{name}, {way}', dtype, check))
    return rows
