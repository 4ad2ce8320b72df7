"""The compiled CPU kernels against those in plain torch: layouts, tails, threads, instruction
sets."""

import os
import random
import time
from pathlib import Path

import pytest
import torch
from running import run_code

from mmrednet.ops import (
    Window,
    _native,
    _torch,
    active_kernels,
    attention,
    involution,
    local_aggregate,
    local_attention,
    local_correlate,
    local_involution,
    local_scatter,
)

ROOT = Path(__file__).parents[1]
native = torch.ops.mmrednet
built = pytest.mark.skipif(bool(_native.MISSING), reason=str(_native.MISSING))
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# seconds of test_random_problems; set it to 60 for a long search
FUZZ_SECONDS = float(os.environ.get('MMREDNET_FUZZ_SECONDS', 3))


def laid_out(layout, batch, groups, channels, height, width, dtype):
    """Return random numbers (B, G, C, H, W) as one of the layouts that modules make."""
    shape = {
        'planar': (batch, groups, channels, height, width),
        'last': (batch, height, width, groups, channels),
        'interleaved': (batch, channels, groups, height, width),
        'interleaved last': (batch, height, width, channels, groups),
        'strided': (batch, groups, channels, 2 * height, 3 * width),
    }[layout]
    x = torch.randn(shape).to(dtype)
    return {
        'planar': lambda: x,
        'last': lambda: x.permute(0, 3, 4, 1, 2),
        'interleaved': lambda: x.transpose(1, 2),
        'interleaved last': lambda: x.permute(0, 4, 3, 1, 2),
        'strided': lambda: x[..., ::2, ::3],
    }[layout]()


LAYOUTS = ('planar', 'last', 'interleaved', 'interleaved last', 'strided')


def agree(got, expected, tolerance, *what):
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), what
    got, expected = got.double(), expected.double()
    # the logarithm of a sum of nothing
    lowest = expected == -torch.inf
    assert torch.equal(got == -torch.inf, lowest), what
    got, expected = got.masked_fill(lowest, 0), expected.masked_fill(lowest, 0)
    assert (got - expected).norm() < tolerance * expected.norm().clamp_min(1e-3), what


def compare(window, batch, groups, channels, size, dtypes, layouts):
    outputs = window.output_size(*size)
    value, key = (
        laid_out(layout, batch, groups, channels, *size, dtype)
        for layout, dtype in zip(layouts, dtypes, strict=False)
    )
    weight = laid_out(layouts[2], batch, groups, window.taps, *outputs, dtypes[1])
    query = laid_out(layouts[3], batch, groups, channels, *outputs, dtypes[0])
    for name, arguments in (
        ('aggregate', (value, weight, window)),
        ('correlate', (query, key, window)),
        ('scatter', (query, weight, size, window)),
    ):
        got, expected = (getattr(module, name)(*arguments) for module in (native, _torch))
        assert (got.shape, got.dtype, got.stride()) == (
            expected.shape,
            expected.dtype,
            expected.stride(),
        ), name
        agree(got, expected, DTYPES[dtypes[0]], name, window, size, dtypes, layouts)


def compare_fused(window, groups, channels, size, dtype, layouts, tables=True):
    outputs, heads = window.output_size(*size), groups
    value, key = (
        laid_out(layout, 2, groups, depth, *size, dtype)
        for layout, depth in zip(layouts, (channels, 2 * channels), strict=False)
    )
    hidden = laid_out(layouts[2], 2, 1, 5, *outputs, dtype)[:, 0]
    rows = groups * window.taps
    weight, bias = torch.randn(rows, 5).to(dtype), torch.randn(rows).to(dtype) if tables else None
    query = laid_out(layouts[3], 2, heads, 2 * channels, *outputs, dtype)
    shapes = [
        (heads, channels, window.kernel[0]),
        (heads, channels, window.kernel[1]),
        (heads, window.taps),
    ]
    added = [torch.randn(shape).to(dtype) if tables else None for shape in shapes]
    what = (window, groups, channels, size, dtype, layouts, tables)
    for name, module, inputs in (
        ('involution', involution, (value, hidden, weight, bias)),
        ('attention', attention, (query, key, value, *added)),
    ):
        wide = [tensor if tensor is None else tensor.double() for tensor in inputs]
        got, expected = (
            getattr(native, name)(*inputs, window),
            module.definition(*wide, list(window)),
        )
        if name == 'involution':
            got, expected = (got,), (expected,)
        assert got[0].stride() == _torch.empty_in_layout_of(value, got[0].shape, dtype).stride(), (
            what
        )
        for one, other in zip(got, expected, strict=True):
            agree(one, other.to(one.dtype), DTYPES[dtype], name, *what)
    scale, shift = torch.randn(2, groups * channels).to(dtype)
    got = native.involution_affine(value, hidden, weight, bias, scale, shift, tables, window)
    wide = [
        tensor if tensor is None else tensor.double()
        for tensor in (value, hidden, weight, bias, scale, shift)
    ]
    expected = involution.finish(involution.definition(*wide[:4], list(window)), *wide[4:], tables)
    agree(got, expected.to(dtype), DTYPES[dtype], 'involution_affine', *what)


@built
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('stride', [1, 2])
def test_every_width(layout, dtype, stride):
    for width in range(1, 41):
        # vectors of 16, 8 and 4 channels
        compare(Window(3, stride), 1, 2, 28, (3, width), (dtype, dtype), [layout] * 4)
        compare_fused(Window(3, stride), 2, 20, (3, width), dtype, [layout] * 4)


def compare_shifted(window, heads, channels, size, dtype, layouts, biased=True):
    """Compare local attention of shifted windows and all of its gradients."""
    query, key, value, grad = (
        laid_out(layout, 2, heads, channels, *size, dtype) for layout in layouts
    )
    bias = torch.randn(heads, window.taps**2).to(dtype) if biased else None
    inputs = (query, key, value, None, None, bias)
    wide = [tensor if tensor is None else tensor.double() for tensor in inputs]
    what = (window, heads, channels, size, dtype, layouts, biased)
    got = native.attention(*inputs, window)
    for one, other in zip(got, attention.definition(*wide, list(window)), strict=True):
        agree(one, other.to(one.dtype), DTYPES[dtype], 'attention', *what)
    got_grads = native.attention_backward(grad, got[1], *inputs, window)
    expected_grads = attention.gradients(grad.double(), *wide, list(window))
    # values of half precision are rounded before they are summed
    tolerance = 3 * DTYPES[dtype]
    for one, other in zip(got_grads, expected_grads, strict=True):
        agree(one, other.to(one.dtype), tolerance, 'attention_backward', *what)


@built
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kernel', [(3, 5), (1, 3), (5, 1), (7, 7)])
def test_shifted_windows_of_every_width(layout, dtype, kernel):
    window = Window(kernel, border='shift')
    for width in [*range(kernel[1], 20), 33, 40]:
        size = (kernel[0] + width % 3, width)
        compare(window, 1, 2, 20, size, (dtype, dtype), [layout] * 4)
        compare_shifted(window, 2, 20, size, dtype, [layout] * 4, biased=width % 2 == 0)


@built
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_windows_wider_than_a_vector(dtype):
    window = Window((3, 35), border='shift')
    for width in (35, 48, 50, 70):
        compare(window, 1, 1, 3, (4, width), (dtype, dtype), ['planar', 'last'] * 2)
        compare_shifted(window, 1, 4, (4, width), dtype, ['last'] * 4)


@built
def test_random_problems():
    chance = random.Random(0)
    end = time.monotonic() + FUZZ_SECONDS
    pairs = [(dtype, dtype) for dtype in DTYPES] + [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ]
    for _ in range(10**9):
        kernel = chance.choice([1, 2, 3, 5, 7, 11]), chance.choice([1, 3, 4, 7, 9])
        dilation = chance.randint(1, 3), chance.randint(1, 3)
        padding = tuple(chance.randint(0, dilation[axis] * kernel[axis]) for axis in range(2))
        window = Window(
            kernel, (chance.randint(1, 3), chance.choice([1, 1, 2, 9])), dilation, padding
        )
        size = chance.choice([chance.randint(1, 9), 30]), chance.randint(1, 40)
        if all(
            size[axis] + 2 * padding[axis] > dilation[axis] * (kernel[axis] - 1)
            for axis in range(2)
        ):
            channels = chance.choice([1, 2, 4, 5, 16, 17, 20, 36])
            groups, layouts = chance.randint(1, 3), [chance.choice(LAYOUTS) for _ in range(4)]
            compare(
                window, chance.randint(1, 2), groups, channels, size, chance.choice(pairs), layouts
            )
            compare_fused(
                window,
                groups,
                channels,
                size,
                chance.choice(list(DTYPES)),
                layouts,
                chance.random() < 0.7,
            )
        shifted = Window((2 * (kernel[0] // 2) + 1, 2 * (kernel[1] // 2) + 1), border='shift')
        size = tuple(length + chance.randint(0, 40) for length in shifted.kernel)
        layouts, dtypes = [chance.choice(LAYOUTS) for _ in range(4)], chance.choice(pairs)
        channels = chance.choice([1, 2, 4, 5, 16, 20])
        compare(
            shifted, chance.randint(1, 2), chance.randint(1, 3), channels, size, dtypes, layouts
        )
        compare_shifted(
            shifted, chance.randint(1, 3), channels, size, dtypes[0], layouts, chance.random() < 0.7
        )
        if time.monotonic() > end:
            break


def gradients_of_all(layout, window, batch, groups, channels, size):
    """Return a function that computes the gradients of every operator for the same inputs."""
    value, key = (laid_out(layout, batch, groups, channels, *size, torch.float32) for _ in range(2))
    weight = laid_out(layout, batch, groups, window.taps, *size, torch.float32)
    hidden = laid_out(layout, batch, 1, 9, *size, torch.float32)[:, 0]
    rows, columns = torch.randn(2, groups, channels // 2, window.kernel[0])
    generator, bias = torch.randn(groups * window.taps, 9), torch.randn(groups * window.taps)
    scale, shift = torch.randn(2, groups * channels)
    calls = [
        (local_aggregate, (value, weight)),
        (local_correlate, (value, key)),
        (lambda grad, weight, window: local_scatter(grad, weight, size, window), (value, weight)),
        (local_involution, (value, hidden, generator, bias)),
        (
            lambda *given: local_involution(
                *given[:4], given[6], scale=given[4], shift=given[5], relu=True
            ),
            (value, hidden, generator, bias, scale, shift),
        ),
        (
            lambda q, k, v, rows, columns, bias, window: local_attention(
                q, k, v, window, rows=rows, columns=columns, bias=bias
            ),
            (key, value, value, rows, columns, bias.view(groups, -1)),
        ),
    ]

    def run():
        grads = []
        for function, tensors in calls:
            tensors = [tensor.detach().requires_grad_() for tensor in tensors]
            result = function(*tensors, window)
            grads += torch.autograd.grad(result, tensors, result.detach().cos())
        return grads

    return run


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@built
@pytest.mark.usefixtures('threads_as_before')
@pytest.mark.parametrize('layout', ['planar', 'last'])
def test_results_do_not_depend_on_threads(layout):
    window = Window(5)
    value = laid_out(layout, 2, 3, 20, 33, 37, torch.float32)
    weight = laid_out(layout, 2, 3, 25, 33, 37, torch.float32)
    hidden, generator = laid_out(layout, 2, 1, 5, 33, 37, torch.float32)[:, 0], torch.randn(75, 5)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(
            [
                native.aggregate(value, weight, window),
                native.correlate(value, value, window),
                native.scatter(value, weight, (33, 37), window),
                native.involution(value, hidden, generator, None, window),
                native.involution_affine(
                    value, hidden, generator, None, *torch.ones(2, 60), True, window
                ),
                *native.attention(value, value, value, None, None, None, window),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@built
@pytest.mark.usefixtures('threads_as_before')
@pytest.mark.parametrize('layout', ['planar', 'last'])
@pytest.mark.parametrize(
    ('batch', 'groups', 'channels', 'size'),
    [(2, 3, 20, (33, 37)), (1, 9, 16, (14, 14)), (3, 1, 4, (5, 130))],
)
def test_gradients_do_not_depend_on_threads(layout, batch, groups, channels, size):
    run = gradients_of_all(layout, Window(7), batch, groups, channels, size)
    torch.set_num_threads(1)
    expected = run()
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert [torch.equal(a, b) for a, b in zip(run(), expected, strict=True)] == [True] * len(
            expected
        )


@built
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('window', 'groups', 'hidden', 'size'),
    [
        (Window(7), 2, 16, (14, 14)),
        (Window(3, 2), 9, 5, (33, 37)),
        (Window((5, 3)), 1, 3, (2, 130)),
        (Window(3, 1, 40), 2, 8, (9, 9)),
        (Window(4, padding=(3, 5)), 3, 1, (6, 7)),
    ],
)
def test_gradients_of_involution(layout, dtype, window, groups, hidden, size):
    outputs = window.output_size(*size)
    grad, value = (laid_out(layout, 3, groups, 7, *shape, dtype) for shape in (outputs, size))
    features = laid_out(layout, 3, 1, hidden, *outputs, dtype)[:, 0]
    rows = groups * window.taps
    inputs = (
        grad,
        value,
        features,
        torch.randn(rows, hidden).to(dtype),
        torch.randn(rows).to(dtype),
    )
    expected = involution.gradients(*(tensor.double() for tensor in inputs), list(window))
    got = native.involution_backward(*inputs, list(window))
    for have, want, like in zip(got, expected, inputs[1:], strict=True):
        agree(have, want.to(like.dtype), 2 * DTYPES[dtype], window, groups, hidden, size, layout)
    assert got[1].stride() == torch.empty_like(features).stride()


@built
@pytest.mark.skipif(
    not torch.backends.openmp.is_available(), reason='this torch has other threads than OpenMP'
)
@pytest.mark.parametrize('count', [1, 2, 3])
def test_torch_sets_the_number_of_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert _native.threads() == count
    finally:
        torch.set_num_threads(before)


@built
def test_addresses_beyond_32_bits():
    # 2^31 elements and more apart, in 9 GiB of address space of which the pages that are touched
    # alone exist
    far = 2**31 + 64
    memory = torch.empty(far + 64)
    value = memory.as_strided((2, 1, 2, 3, 4), (far, 24, 12, 4, 1))
    value.copy_(torch.randn(2, 1, 2, 3, 4))
    weight, hidden, generator = (
        torch.randn(2, 1, 9, 3, 4),
        torch.randn(2, 5, 3, 4),
        torch.randn(9, 5),
    )
    near = value.clone(memory_format=torch.contiguous_format)
    for got, expected in (
        (native.aggregate(value, weight, Window(3)), native.aggregate(near, weight, Window(3))),
        (native.correlate(value, value, Window(3)), native.correlate(near, near, Window(3))),
        (
            native.involution(value, hidden, generator, None, Window(3)),
            native.involution(near, hidden, generator, None, Window(3)),
        ),
        (
            native.attention(value, value, value, None, None, None, Window(3))[0],
            native.attention(near, near, near, None, None, None, Window(3))[0],
        ),
    ):
        assert torch.equal(got, expected)


@built
@pytest.mark.parametrize('capability', ['plain', 'avx2', 'avx512'])
def test_other_instruction_sets(capability):
    code = """
import torch, test_native
from mmrednet.ops import Window, _native
for layout in test_native.LAYOUTS:
    for dtype in test_native.DTYPES:
        test_native.compare(Window(5, 2), 2, 2, 21, (6, 23), (dtype, dtype), [layout] * 4)
        test_native.compare(Window(3), 2, 2, 21, (6, 23), (dtype, dtype), [layout] * 4)
        test_native.compare_fused(Window(3), 2, 20, (30, 23), dtype, [layout] * 4)
        test_native.compare_fused(Window(5, 2), 2, 7, (6, 23), dtype, [layout] * 4)
        shifted = Window(5, border='shift')
        test_native.compare(shifted, 2, 2, 21, (6, 37), (dtype, dtype), [layout] * 4)
        test_native.compare_shifted(shifted, 2, 20, (7, 23), dtype, [layout] * 4)
print(_native.capability())
"""
    environment = {
        **os.environ,
        'MMREDNET_CPU_CAPABILITY': capability,
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
    }
    result = run_code(code, env=environment)
    assert result.returncode == 0, result.stderr
    # a processor without the one asked for falls back to a narrower one
    assert result.stdout.split()[-1] in (capability, 'avx2', 'plain')


@built
def test_unknown_instruction_sets():
    code = 'from mmrednet.ops import active_kernels; active_kernels()'
    environment = {**os.environ, 'MMREDNET_CPU_CAPABILITY': 'AVX512', 'PYTHONPATH': str(ROOT)}
    result = run_code(code, env=environment)
    assert (
        "MMREDNET_CPU_CAPABILITY must be avx512bf16, avx512, avx2 or plain, got 'AVX512'"
        in result.stderr
    )


@built
def test_the_dispatcher_uses_them():
    for name in (
        'aggregate',
        'correlate',
        'scatter',
        'involution',
        'involution_affine',
        'involution_backward',
        'attention',
        'attention_backward',
    ):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f'mmrednet::{name}', 'CPU'), name
    assert active_kernels()['cpu'].startswith('native, ')


def test_without_the_library_everything_runs(tmp_path):
    code = """
import sys
from importlib import machinery
machinery.EXTENSION_SUFFIXES[:] = ['.none']
import torch
from mmrednet.ops import Window, active_kernels, local_aggregate
print(active_kernels()['cpu'])
for _ in range(3):
    total = local_aggregate(torch.ones(1, 1, 1, 3, 3), torch.ones(1, 1, 9, 3, 3), Window(3)).sum()
print(float(total))
"""
    environment = dict(os.environ, MMREDNET_BUILD='0', XDG_CACHE_HOME=str(tmp_path))
    result = run_code(code, env=environment)
    assert result.returncode == 0, result.stderr
    assert 'plain torch, one tap at a time (native: not built)' in result.stdout
    assert result.stdout.split()[-1] == '49.0'
    assert result.stderr.count('plain torch computes on the CPU') == 1


@built
def test_a_changed_header_is_compiled():
    code = """
import setuptools
setuptools.setup = lambda **arguments: print(*arguments['ext_modules'][0].depends)
import setup
"""
    result = run_code(code)
    assert result.returncode == 0, result.stderr
    headers = {str(path) for path in ROOT.glob('mmrednet/ops/csrc/*.h')}
    assert set(result.stdout.split()) == headers
