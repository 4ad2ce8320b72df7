"""Every kernel against its definition in float64 on the CPU: fresh random inputs, outputs filled with NaN before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mmrednet.ops import Window, _torch, attention, axial, involution, local_involution
from mmrednet.ops._triton import attention as fused_attention
from mmrednet.ops._triton import axial as fused_axial
from mmrednet.ops._triton import involution as fused_involution
from mmrednet.ops._triton import local as fused_local

from .problems import channels_last

# of the norm of the error over the norm of the result
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# windows, the size of the map, groups and their channels; the smallest for the interpreter
CASES = {False: [(Window(7), (37, 53), 4, 16), (Window(3, 2), (41, 23), 2, 8), (Window(5, 1, 2), (19, 64), 3, 20),
                 (Window((1, 11)), (8, 70), 2, 16), (Window(2, padding=0), (9, 9), 1, 1)],
         True: [(Window(3, 2), (3, 5), 2, 4)]}
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


def _worst(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    errors = [float((have.detach().cpu().double() - want).norm() / want.norm().clamp_min(1e-9))
              for have, want in zip(got, expected, strict=True)]
    # a NaN is larger than every number
    return max(errors, key=lambda error: (error != error, error))


def primitives(window: Window, size: tuple[int, int], groups: int, channels: int, dtype: torch.dtype,
               device: str) -> float:
    """Return the worst error of aggregate, correlate and scatter."""
    outputs, flat, errors = window.output_size(*size), list(window), []
    value = channels_last(2, groups, channels, size, dtype, device)
    query = channels_last(2, groups, channels, outputs, dtype, device).contiguous()
    weight = channels_last(2, groups, window.taps, outputs, dtype, device)
    for name, *inputs in (('aggregate', value, weight), ('correlate', query, value), ('scatter', query, weight)):
        last = [size] if name == 'scatter' else []
        expected = getattr(_torch, name)(*_double(inputs), *last, window)
        errors.append(_worst([getattr(fused_local, name)(*inputs, *last, flat)], [expected]))
    return max(errors, key=lambda error: (error != error, error))


def involutions(window: Window, size: tuple[int, int], groups: int, channels: int, dtype: torch.dtype,
                device: str) -> float:
    """Return the worst error of involution and its four gradients."""
    outputs, flat = window.output_size(*size), list(window)
    hidden = max(1, groups * channels // 4)
    inputs = [channels_last(2, groups, channels, size, dtype, device),
              channels_last(2, 1, hidden, outputs, dtype, device)[:, 0],
              torch.randn(groups * window.taps, hidden, device=device).to(dtype),
              torch.randn(groups * window.taps, device=device).to(dtype)]
    grad = channels_last(2, groups, channels, outputs, dtype, device)
    expected = [involution.definition(*_double(inputs), flat), *involution.gradients(*_double([grad, *inputs]), flat)]
    return _worst([fused_involution.involution(*inputs, flat),
                   *fused_involution.involution_backward(grad, *inputs, flat)], expected)


def attentions(window: Window, size: tuple[int, int], groups: int, channels: int, dtype: torch.dtype,
               device: str) -> float:
    """Return the worst error of local attention and its six gradients."""
    outputs, flat, channels = window.output_size(*size), list(window), max(2, channels)
    inputs = [channels_last(2, groups, channels, place, dtype, device) for place in (outputs, size, size)]
    inputs[0] = inputs[0] / channels**0.5
    inputs += [torch.randn(groups, *shape, device=device).to(dtype) for shape in (
        (channels // 2, window.kernel[0]), (channels // 2, window.kernel[1]), (window.taps,))]
    grad = channels_last(2, groups, channels, outputs, dtype, device)
    result, sums = fused_attention.attention(*inputs, flat)
    expected = [attention.definition(*_double(inputs), flat)[0], *attention.gradients(*_double([grad, *inputs]), flat)]
    return _worst([result, *fused_attention.attention_backward(grad, sums, *inputs, flat)], expected)


def lines(window: Window, size: tuple[int, int], groups: int, channels: int, dtype: torch.dtype,
          device: str) -> float:
    """Return the error of axial attention along lines as long as the map is wide."""
    length, keys = size[1], max(1, channels // 2)
    qkv = torch.randn(3, groups, 2 * keys + channels, length, device=device).to(dtype)
    relative = torch.randn(2 * keys + channels, 2 * (length // 2) + 1, device=device).to(dtype)
    scale, shift = (torch.rand(3, groups, device=device) for _ in range(2))
    inputs, options = [*qkv.split([keys, keys, channels], 2), relative, scale, shift], ([0, 1, 2], 0, True, 1 << 28)
    return _worst([fused_axial.attention(*inputs, *options)], [axial.definition(*_double(inputs), *options)])


FAMILIES: dict[str, Callable] = {'primitives': primitives, 'involution': involutions, 'local attention': attentions,
                                 'axial attention': lines}


def check_kernels(dtypes: Sequence[torch.dtype], device: str, tiny: bool) -> list[Row]:
    """Return (family, dtype, worst error, whether it is small enough) for every kernel and dtype."""
    rows = []
    with poisoned():
        for name, family in FAMILIES.items():
            for dtype in dtypes:
                errors = [family(*case, dtype, device) for case in CASES[tiny]]
                error = max(errors, key=lambda error: (error != error, error))
                rows.append((name, dtype, error, error < TOLERANCE[dtype]))
    return rows


def check_launches() -> list[Row]:
    """Check on a GPU that results repeat, on another stream, in a CUDA graph with new inputs, and when compiled."""
    window, dtype = Window(7), torch.bfloat16
    value = channels_last(2, 4, 16, (37, 53), dtype, 'cuda')
    hidden = channels_last(2, 1, 16, (37, 53), dtype, 'cuda')[:, 0]
    weight = torch.randn(4 * 49, 16, device='cuda').to(dtype)
    expected = local_involution(value, hidden, weight, None, window)
    found = {'repeats': local_involution(value, hidden, weight, None, window)}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found['another stream'] = local_involution(value, hidden, weight, None, window)
    torch.cuda.current_stream().wait_stream(stream)
    graph, source = torch.cuda.CUDAGraph(), torch.randn_like(value)
    with torch.cuda.graph(graph):
        captured = local_involution(source, hidden, weight, None, window)
    source.copy_(value)
    graph.replay()
    found['a CUDA graph'] = captured
    compiled = torch.compile(lambda *tensors: local_involution(*tensors, None, window), fullgraph=True)
    found['torch.compile'] = compiled(value, hidden, weight)
    torch.cuda.synchronize()
    return [(f'involution, {name}', dtype, float((result - expected).abs().max()), bool(torch.equal(result, expected)))
            for name, result in found.items()]
