"""The compiled kernels of axial attention against their definitions: axes, layouts, tails, spans,
threads, instruction sets.
"""

import os

import pytest
import torch
from running import run_code
from test_native import ROOT, agree, built

from mmrednet.ops import _torch, axial, axial_moments

native = torch.ops.mmrednet
DTYPES = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# images, heads, channels of keys and of values, lines, their length, size of the table
SIZES = {
    'small': (2, 2, 2, 3, 5, 7, 8),
    'beyond the table': (1, 3, 4, 8, 17, 9, 4),
    'one position': (3, 1, 1, 2, 3, 1, 1),
    'tiles across images': (3, 2, 3, 5, 9, 13, 20),
    'several chunks of keys': (1, 2, 8, 16, 17, 41, 44),
}
# terms, span, whether values have positions
OPTIONS = {
    'all': ([0, 1, 2], 0, True),
    'span': ([0, 1, 2], 5, True),
    'span of one': ([0, 1, 2], 1, True),
    'span of two tiles': ([0, 1, 2], 37, True),
    'query and key': ([0], 0, False),
    'positions': ([1, 2], 3, True),
}
AXES, LAYOUTS = ('height', 'width'), (torch.contiguous_format, torch.channels_last)


def lines_of(size, axis, layout, dtype):
    """Return lines (B, N, C, J, L), a view of maps in a layout."""
    images, heads, keys, values, lines, length, _ = size
    shape = (lines, length) if axis == 'width' else (length, lines)
    maps = torch.randn(images, heads * (2 * keys + values), *shape, dtype=torch.float64)
    view = maps.to(dtype).contiguous(memory_format=layout).unflatten(1, (heads, -1))
    return view if axis == 'width' else view.transpose(3, 4)


def problem(size, terms, axis, layout, dtype):
    """Return lines, table, scale and shift of the terms, and scale of positions."""
    _, heads, keys, values, _, _, table = size
    shapes = (2 * keys + values, 2 * table - 1), (len(terms), heads), (len(terms), heads)
    wide = _torch.sum_dtype(torch.empty(0, dtype=dtype))
    relative, scale, shift = (torch.randn(shape, dtype=wide) for shape in shapes)
    lines = lines_of(size, axis, layout, dtype)
    return lines, relative.to(dtype), scale, shift, torch.randn(heads, values, dtype=wide)


def widened(*tensors):
    return [tensor.double() for tensor in tensors]


def in_layout(result, lines):
    """Assert the strides that the fake tensors promise."""
    assert result.stride() == _torch.empty_in_layout_of(lines, result.shape, lines.dtype).stride()


def compare(size, options, axis, layout, dtype):
    terms, span, value_position = options
    lines, relative, scale, shift, positions = problem(size, terms, axis, layout, dtype)
    keys, tolerance, budget = size[2], DTYPES[dtype], 1 << 20
    for factor in (None, positions) if value_position else (None,):
        arguments = (keys, terms, span, value_position, budget)
        result = native.axial_attention(lines, relative, scale, shift, factor, *arguments)
        wide = None if factor is None else factor.double()
        exact = axial.definition(*widened(lines, relative, scale, shift), wide, *arguments)
        agree(result, exact.to(dtype), tolerance, 'result', factor is None)
        in_layout(result, lines)
    # with a scale of positions, the last result has one part
    grad = torch.cat([result.sin(), result.cos()], 2) if value_position else result.sin()
    gradients = native.axial_attention_backward(grad, lines, relative, scale, *arguments)
    exact = axial.gradients(*widened(grad, lines, relative, scale), *arguments)
    for gradient, expected in zip(gradients, exact, strict=True):
        agree(gradient, expected.to(gradient.dtype), tolerance, 'gradient')
    in_layout(gradients[0], lines)


def compare_moments(size, options, axis, layout, dtype):
    terms, span, _ = options
    lines, relative, offset, slope, _ = problem(size, terms, axis, layout, dtype)
    arguments, tolerance = (size[2], terms, span, 1 << 20), DTYPES[dtype]
    results = native.axial_moments(lines, relative, *arguments)
    exact = axial_moments.definition(*widened(lines, relative), *arguments)
    for result, expected in zip(results, exact, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    gradients = native.axial_moments_backward(offset, slope, lines, relative, *arguments)
    exact = axial_moments.gradients(*widened(offset, slope, lines, relative), *arguments)
    for gradient, expected in zip(gradients, exact, strict=True):
        agree(gradient, expected.to(gradient.dtype), tolerance, 'gradient of moments')
    in_layout(gradients[0], lines)


@built
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('size', SIZES)
def test_values_and_gradients(size, options, dtype):
    for axis in AXES:
        for layout in LAYOUTS:
            compare(SIZES[size], OPTIONS[options], axis, layout, dtype)
            compare_moments(SIZES[size], OPTIONS[options], axis, layout, dtype)


@built
def test_lines_and_gradients_with_any_strides():
    size = SIZES['tiles across images']
    lines, relative, scale, shift, _ = problem(
        size, [0, 1, 2], *AXES[:1], LAYOUTS[0], torch.float32
    )
    sparse = torch.randn(*lines.shape[:4], 2 * lines.shape[4])[..., ::2]
    arguments = (size[2], [0, 1, 2], 0, True, 1 << 20)
    result = native.axial_attention(sparse, relative, scale, shift, None, *arguments)
    agree(result, axial.definition(sparse, relative, scale, shift, None, *arguments), 5e-6)
    grad = torch.ones(1).expand(result.shape)
    gradients = native.axial_attention_backward(grad, sparse, relative, scale, *arguments)
    expected = axial.gradients(grad, sparse, relative, scale, *arguments)
    agree(gradients[0], expected[0], 5e-5)


@built
def test_large_logits():
    """A softmax of logits that differ by thousands, and moments far from zero."""
    size = SIZES['several chunks of keys']
    lines, relative, scale, shift, _ = problem(
        size, [0, 1, 2], *AXES[:1], LAYOUTS[0], torch.float32
    )
    arguments = (size[2], [0, 1, 2], 0, True, 1 << 20)
    steep = 300 * scale
    result = native.axial_attention(lines, relative, steep, shift, None, *arguments)
    assert result.isfinite().all()
    exact = axial.definition(*widened(lines, relative, steep, shift), None, *arguments)
    assert (result - exact).abs().mean() < 1e-3
    far = lines + 30
    mean, variance = native.axial_moments(far, relative, *arguments[:3], 1)
    exact_mean, exact_variance = axial_moments.definition(
        *widened(far, relative), *arguments[:3], 1 << 20
    )
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-6, atol=1e-4)
    # squares of the mean of the first term are 10^4 times its variance
    assert (exact_mean[0] ** 2 / exact_variance[0]).min() > 1000
    torch.testing.assert_close(variance.double(), exact_variance, rtol=2e-6, atol=0)


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@built
@pytest.mark.usefixtures('threads_as_before')
@pytest.mark.parametrize('axis', AXES)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_results_do_not_depend_on_threads(axis, layout):
    size = (3, 8, 4, 8, 37, 41, 41)
    lines, relative, scale, shift, positions = problem(size, [0, 1, 2], axis, layout, torch.float32)
    arguments = (4, [0, 1, 2], 0, True, 1)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        result = native.axial_attention(lines, relative, scale, shift, None, *arguments)
        results.append(
            [
                result,
                native.axial_attention(lines, relative, scale, shift, positions, *arguments),
                *native.axial_attention_backward(result, lines, relative, scale, *arguments),
                *native.axial_moments(lines, relative, 4, [0, 1, 2], 0, 1),
                *native.axial_moments_backward(scale, shift, lines, relative, 4, [0, 1, 2], 0, 1),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@built
def test_no_images():
    size = (0, *SIZES['small'][1:])
    lines, relative, scale, shift, _ = problem(
        size, [0, 1, 2], *AXES[:1], LAYOUTS[0], torch.float32
    )
    arguments = (2, [0, 1, 2], 0, True, 1)
    result = native.axial_attention(lines, relative, scale, shift, None, *arguments)
    assert result.shape == (0, 2, 6, 5, 7)
    gradients = native.axial_attention_backward(result, lines, relative, scale, *arguments)
    assert [tuple(tensor.shape) for tensor in gradients] == [(0, 2, 7, 5, 7), (7, 15), (3, 2)]
    assert not gradients[1].any()


@built
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(lines=lambda x: x[0]), 'lines must have 5 dimensions'),
        (dict(relative=lambda x: x[1:]), 'relative must have sizes'),
        (dict(relative=lambda x: x[:, 1:]), 'relative must have an odd number of distances'),
        (dict(scale=lambda x: x[1:]), 'scale must have sizes'),
        (dict(keys=4), 'key_channels must be positive and leave channels for values, got 4 of 7'),
        (dict(terms=[3]), 'terms must lie between 0 and 2'),
        (dict(span=-1), 'span must not be negative'),
    ],
)
def test_bad_input(changes, message):
    lines, relative, scale, shift, _ = problem(
        SIZES['small'], [0, 1, 2], *AXES[:1], LAYOUTS[0], torch.float32
    )
    arguments = dict(lines=lines, relative=relative, scale=scale, keys=2, terms=[0, 1, 2], span=0)
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    lines, relative, scale, keys, terms, span = arguments.values()
    with pytest.raises(ValueError, match=message):
        native.axial_attention(lines, relative, scale, shift, None, keys, terms, span, True, 1)


@built
@pytest.mark.parametrize('capability', ['avx2', 'plain'])
def test_other_instruction_sets(capability):
    code = """
import test_native_axial as tests
from mmrednet.ops import _native
for name, kind in (('beyond the table', 'all'), ('several chunks of keys', 'span')):
    size, options = tests.SIZES[name], tests.OPTIONS[kind]
    for dtype in tests.DTYPES:
        for axis in tests.AXES:
            for layout in tests.LAYOUTS:
                tests.compare(size, options, axis, layout, dtype)
                tests.compare_moments(size, options, axis, layout, dtype)
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
    assert result.stdout.split()[-1] in (capability, 'plain')


@built
def test_the_dispatcher_uses_them():
    for name in ('attention', 'attention_backward', 'moments', 'moments_backward'):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f'mmrednet::axial_{name}', 'CPU')
