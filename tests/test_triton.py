"""The Triton kernels against the definitions in float64: on a GPU, or in Triton's interpreter where
there is none.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_fused import widened
from test_native import laid_out
from torch._subclasses.fake_tensor import FakeTensorMode

from mmrednet.ops import (
    Window,
    _torch,
    _triton,
    active_kernels,
    attention,
    axial,
    difference_attention,
    dispatch,
    involution,
    local_attention,
    require_kernels,
)

triton = pytest.importorskip('triton')
from mmrednet.ops._triton import attention as fused_attention  # noqa: E402
from mmrednet.ops._triton import axial as fused_axial  # noqa: E402
from mmrednet.ops._triton import axial_backward as fused_axial_backward  # noqa: E402
from mmrednet.ops._triton import involution as fused_involution  # noqa: E402
from mmrednet.ops._triton import local as fused_local  # noqa: E402

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
LOW = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.filterwarnings('ignore:.*encountered:RuntimeWarning')


@pytest.fixture(autouse=True)
def _poison():
    """Fill memory that a kernel is given to write with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def random(layout, *shape, dtype):
    source = laid_out(layout, *shape, dtype)
    # moving a tensor that is not dense would make it so
    result = torch.empty_strided(shape, source.stride(), dtype=dtype, device=DEVICE)
    assert result.copy_(source).stride() == source.stride()
    return result


def close(got, expected, dtype, laid_out_like=None):
    assert got.shape == expected.shape
    assert got.dtype == dtype
    assert laid_out_like is None or got.stride() == laid_out_like.stride()
    error = (got.double() - expected).norm() / expected.norm().clamp_min(1e-9)
    assert error < TOLERANCE[dtype]


PRIMITIVES = {
    'k3': (Window(3), (2, 17), 'planar planar planar planar', torch.float32),
    'k3 double': (Window(3), (3, 4), 'last last last last', torch.float64),
    'stride and dilation': (Window(3, 2, 2), (3, 5), 'last last last last', torch.bfloat16),
    'odd strides': (
        Window((1, 4), (3, 1), (1, 2), (0, 3)),
        (4, 6),
        'interleaved planar strided last',
        torch.float16,
    ),
    'larger than the map': (Window(5), (2, 3), 'planar last interleaved planar', torch.float32),
    'k11': (Window((11, 2), 1, 1, (5, 0)), (2, 6), 'interleaved last', torch.float16),
    'one column': (Window(3), (3, 1), 'last planar last planar', torch.bfloat16),
    'shifted': (Window(3, border='shift'), (4, 5), 'planar last last planar', torch.float32),
    'shifted, map of the window': (
        Window((1, 5), border='shift'),
        (1, 5),
        'last last planar strided',
        torch.float64,
    ),
}


@pytest.mark.parametrize('case', PRIMITIVES)
def test_primitives(case):
    window, size, layouts, dtype = PRIMITIVES[case]
    outputs, channels = window.output_size(*size), 36 if case == 'k3' else 5
    layouts = (layouts.split() * 2)[:4]
    value, key = (random(layout, 1, 2, channels, *size, dtype=dtype) for layout in layouts[:2])
    weight = random(layouts[2], 1, 2, window.taps, *outputs, dtype=dtype)
    query = random(layouts[3], 1, 2, channels, *outputs, dtype=dtype)
    for name, *inputs in (
        ('aggregate', value, weight),
        ('correlate', query, key),
        ('scatter', query, weight, size),
    ):
        expected = getattr(_torch, name)(
            *(x.double() if isinstance(x, torch.Tensor) else x for x in inputs), window
        )
        got = getattr(fused_local, name)(*inputs, list(window))
        close(got, expected, dtype, getattr(_torch, name)(*inputs, window))


def test_mixed_dtypes():
    window = Window(3)
    value = random('last', 1, 1, 4, 4, 5, dtype=torch.bfloat16)
    weight = random('last', 1, 1, 9, 4, 5, dtype=torch.float32)
    expected = _torch.aggregate(value.double(), weight.double(), window)
    close(fused_local.aggregate(value, weight, list(window)), expected, torch.bfloat16)
    close(
        fused_local.correlate(value.float(), value, list(window)),
        _torch.correlate(value.double(), value.double(), window),
        torch.float32,
    )


@pytest.mark.parametrize('strides', [(2**31 + 64, 12, 12, 4, 1), (24, 12, 12, 2**31 + 64, 1)])
def test_addresses_beyond_32_bits(strides):
    # images, or rows, 2^31 elements apart, in memory of which the pages that are touched alone
    # exist
    torch.use_deterministic_algorithms(False)
    memory = torch.empty(2**31 + 128, dtype=torch.bfloat16, device=DEVICE)
    value = memory.as_strided((2, 1, 1, 2, 4), strides)
    value.copy_(torch.randn(value.shape))
    dense, weight = (
        value.clone(memory_format=torch.contiguous_format),
        random('planar', 2, 1, 9, 2, 4, dtype=torch.bfloat16),
    )
    got = fused_local.aggregate(value, weight, list(Window(3)))
    assert torch.equal(got, fused_local.aggregate(dense, weight, list(Window(3))))


FUSED = {
    'k3': (Window(3), (2, 17), 'planar', torch.float32),
    'k3 last': (Window(3), (3, 5), 'last', torch.bfloat16),
    'stride and dilation': (Window(3, 2, 2), (3, 5), 'interleaved', torch.float32),
    'k5x1': (Window((5, 1)), (2, 3), 'last', torch.float16),
    'no padding': (Window(2, padding=0), (3, 4), 'interleaved last', torch.bfloat16),
    'k1x11': (Window((1, 11)), (2, 6), 'planar', torch.float16),
}


@pytest.mark.parametrize('case', FUSED)
def test_involution(case):
    window, size, layout, dtype = FUSED[case]
    outputs = window.output_size(*size)
    value = random(layout, 1, 3, 5, *size, dtype=dtype)
    hidden = random('last' if 'last' in layout else 'planar', 1, 1, 6, *outputs, dtype=dtype)[:, 0]
    weight, bias = (
        torch.randn(shape, device=DEVICE).to(dtype)
        for shape in ((3 * window.taps, 6), (3 * window.taps,))
    )
    inputs = [value, hidden, weight, None if case == 'k5x1' else bias]
    close(
        fused_involution.involution(*inputs, list(window)),
        involution.definition(*widened(inputs), list(window)),
        dtype,
        _torch.empty_in_layout_of(value, (1, 3, 5, *outputs), dtype),
    )


def promised(op, *arguments):
    """Return the strides of the results of a custom op's fake."""
    with FakeTensorMode() as mode:
        results = op(
            *(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments)
        )
    return [result.stride() for result in results]


@pytest.mark.parametrize('layouts', ['planar last', 'last planar', 'interleaved strided'])
def test_gradients_have_the_strides_that_their_fakes_promise(layouts):
    """Tables and weights come transposed, as LR-Net makes its bias, and other inputs in layouts of
    their own.
    """
    window, (layout, other) = Window(3), layouts.split()
    size, dtype = (2, 3), torch.float32
    value, grad, key = (
        random(tensor_layout, 1, 2, 4, *size, dtype=dtype)
        for tensor_layout in (layout, other, other)
    )
    hidden = random(other, 1, 1, 3, *size, dtype=dtype)[:, 0]
    weight, bias = torch.randn(3, 18, device=DEVICE).t(), torch.randn(18, device=DEVICE)
    inputs = (grad, value, hidden, weight, bias, list(window))
    got = involution.dense_gradients(*inputs)
    assert [tensor.stride() for tensor in got] == promised(involution.involution_backward, *inputs)
    tables = [
        torch.randn(shape, device=DEVICE).movedim(0, -1) for shape in ((3, 2, 2), (3, 2, 2), (9, 2))
    ]
    inputs = (value, key, value, *tables, list(window))
    _, sums = fused_attention.attention(*inputs)
    got = fused_attention.attention_backward(grad, sums, *inputs)
    assert [tensor.stride() for tensor in got] == promised(
        attention.attention_backward, grad, sums, *inputs
    )


def attention_inputs(window, size, layout, dtype, names=('rows', 'columns', 'bias')):
    query, key, value = (
        random(layout, 1, 2, channels, *map_size, dtype=dtype)
        for channels, map_size in ((4, window.output_size(*size)), (4, size), (3, size))
    )
    shapes = dict(
        rows=(2, 2, window.kernel[0]),
        columns=(2, 2, window.kernel[1]),
        # shifted windows have a bias of their own at each place of an output in its window
        bias=(2, window.taps * (window.taps if window.border == 'shift' else 1)),
    )
    return [
        query,
        key,
        value,
        *(
            torch.randn(shape, device=DEVICE).to(dtype) if name in names else None
            for name, shape in shapes.items()
        ),
    ]


SHIFTED = {
    # tails of tiles in both directions, and rows and columns at, near and far from the border
    'shifted': (Window(3, border='shift'), (5, 18), 'last', torch.float32),
    'shifted, map of the window': (
        Window((3, 5), border='shift'),
        (3, 5),
        'planar',
        torch.bfloat16,
    ),
    # a position that all outputs see, and more outputs than taps
    'shifted, narrow': (Window((5, 1), border='shift'), (9, 2), 'interleaved', torch.float16),
}


@pytest.mark.parametrize(
    ('case', 'tables'),
    [
        *((case, 'bias') for case in SHIFTED),
        ('shifted, narrow', ''),
        ('k3', ''),
        ('k3 last', 'rows columns'),
        ('stride and dilation', 'rows columns bias'),
        ('k5x1', 'bias'),
        ('no padding', 'rows columns bias'),
    ],
)
def test_attention(case, tables):
    window, size, layout, dtype = {**FUSED, **SHIFTED}[case]
    inputs = attention_inputs(window, size, layout, dtype, tables.split())
    expected, sums = attention.definition(*widened(inputs), list(window))
    got, sums_result = fused_attention.attention(*inputs, list(window))
    close(got, expected, dtype, _torch.empty_in_layout_of(inputs[2], expected.shape, dtype))
    close(sums_result, sums, torch.float32)
    grad = torch.randn(got.shape, device=DEVICE).to(dtype)
    expected = attention.gradients(*widened([grad, *inputs]), list(window))
    got = fused_attention.attention_backward(grad, sums_result, *inputs, list(window))
    for result, reference in zip(got, expected, strict=True):
        close(result, reference, dtype)


def test_attention_of_dilated_shifted_windows(monkeypatch):
    """They are windows without a dilation on smaller maps, which the kernel takes."""
    window = Window(3, 1, (2, 3), border='shift')
    inputs = [random('last', 1, 2, 4, 7, 10, dtype=torch.float32) for _ in range(3)]
    bias = torch.randn(2, window.offsets, device=DEVICE)
    expected = local_attention(*widened(inputs), window, bias=bias.double())
    monkeypatch.setattr(attention, 'attention', fused_attention.attention)
    close(local_attention(*inputs, window, bias=bias), expected, torch.float32)


@pytest.mark.parametrize('case', ['k3 last', 'stride and dilation', 'k5x1', 'no padding'])
@pytest.mark.parametrize('channels', [1, 3])
def test_difference_attention(case, channels):
    window, size, layout, dtype = FUSED[case]
    query, key, value, _, _, bias = attention_inputs(window, size, layout, dtype)
    inputs = [query[:, :, :channels], key[:, :, :channels], value, None if case == 'k5x1' else bias]
    expected = difference_attention.definition(*widened(inputs), list(window))
    got = fused_attention.difference_attention(*inputs, list(window))
    close(got, expected, dtype, _torch.empty_in_layout_of(value, expected.shape, dtype))


def test_attention_of_nothing():
    """Zero without neighbours, NaN where all of them are switched off; large logits do not
    overflow.
    """
    window = Window(3, padding=3)
    inputs = attention_inputs(window, (2, 3), 'planar', torch.float32, ('rows', 'columns', 'bias'))
    inputs[-1][0, 1:3] = -torch.inf
    inputs[1][:, 1] *= 200
    expected, sums = attention.definition(*inputs, list(window))
    got, sums_result = fused_attention.attention(*inputs, list(window))
    torch.testing.assert_close(sums_result, sums)
    # the second head has no tap switched off
    nothing, alone = sums[0].isinf(), sums[0, 1].isinf()
    result, off = got[0].movedim(1, 0), nothing[0] & ~alone
    assert (int(alone.sum()), int(off.sum())) == (22, 2)
    assert (result[:, :, alone] == 0).all()
    assert result[:, 0, off].isnan().all()
    torch.testing.assert_close(result[:, ~nothing], expected[0].movedim(1, 0)[:, ~nothing])
    grad = torch.randn_like(got)
    got = fused_attention.attention_backward(grad, sums_result, *inputs, list(window))
    expected = attention.gradients(grad, *inputs, list(window))
    assert (got[0][0][:, :, alone] == 0).all()
    assert all(table[1].isfinite().all() for table in got[3:])
    for result, reference in zip(got[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(result, reference, equal_nan=True, atol=1e-3, rtol=1e-4)


# length, table, terms, span, positions of values, and number of images with two lines each
AXIAL = {
    'one tile': (5, 4, [0, 1, 2], 0, True, 2, torch.float32),
    'beyond the table': (20, 12, [0, 1, 2], 0, True, 1, torch.bfloat16),
    'span': (34, 40, [1, 2], 31, True, 1, torch.float32),
    'content': (17, 64, [0], 0, False, 1, torch.float16),
    'queries and positions': (9, 9, [0, 1], 3, True, 2, torch.float16),
}


def axial_inputs(length, table, terms, dtype, count=2):
    lines = torch.randn(count, 2, 2 * 3 + 5, 2, length, device=DEVICE).to(dtype)
    relative, scale, shift = (
        torch.randn(shape, device=DEVICE)
        for shape in ((11, 2 * table - 1), (len(terms), 2), (len(terms), 2))
    )
    return [lines, relative.to(dtype), scale, shift]


@pytest.mark.parametrize('case', AXIAL)
def test_axial_attention(case):
    length, table, terms, *options, count, dtype = AXIAL[case]
    inputs = axial_inputs(length, table, terms, dtype, count)
    arguments = (None, 3, terms, *options, 1 << 20)
    expected = axial.dense_definition(*widened(inputs), *arguments)
    close(fused_axial.attention(*inputs, *arguments), expected, dtype, expected)


@pytest.mark.parametrize('case', AXIAL)
def test_gradients_of_axial_attention(case):
    length, table, terms, span, value_position, count, dtype = AXIAL[case]
    lines, relative, scale, _ = axial_inputs(length, table, terms, dtype, count)
    channels = 10 if value_position else 5
    grad = torch.randn(count, 2, channels, 2, length, device=DEVICE).to(dtype)
    inputs, arguments = (grad, lines, relative, scale), (3, terms, span, value_position, 1 << 20)
    expected = axial.dense_gradients(*widened(inputs), *arguments)
    results = fused_axial_backward.attention_backward(*inputs, *arguments)
    for result, exact, like in zip(results, expected, inputs[1:], strict=True):
        close(result, exact, like.dtype if like is scale else dtype, like)


@pytest.mark.parametrize('axis', ['height', 'width'])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_axial_attention_of_both_axes(layout, axis):
    """With positions that are scaled and added to the values."""
    # two lines of two tiles
    size = (17, 2) if axis == 'height' else (2, 17)
    maps = torch.randn(1, 2 * 11, *size, device=DEVICE).contiguous(memory_format=layout)
    lines = maps.unflatten(1, (2, 11))
    lines = lines.transpose(3, 4) if axis == 'height' else lines
    inputs = [lines, *axial_inputs(5, 6, [0, 1, 2], torch.float32)[1:]]
    arguments = (torch.randn(2, 5, device=DEVICE), 3, [0, 1, 2], 3, True, 1 << 20)
    expected = axial.dense_definition(*widened(inputs), arguments[0].double(), *arguments[1:])
    close(fused_axial.attention(*inputs, *arguments), expected, torch.float32, expected)


def no_images():
    value, weight = torch.randn(0, 2, 3, 4, 4), torch.randn(0, 2, 9, 4, 4)
    return value.to(DEVICE), weight.to(DEVICE)


def test_no_images():
    assert fused_local.aggregate(*no_images(), list(Window(3))).shape == (0, 2, 3, 4, 4)


def involution_of(channels=4, features=2, columns=3, dtype=torch.float32):
    shapes = (1, 1, channels, 3, columns), (1, features, 3, columns), (3 * columns, features)
    inputs = [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]
    return (*inputs, None, list(Window((3, columns))))


def attention_of(channels=4, dtype=torch.float32):
    query, key, value = torch.randn(3, 1, 2, channels, 3, 4, device=DEVICE).to(dtype)
    return query, key, value, None, None, None, list(Window(3))


def axial_of(channels=4, dtype=torch.float32):
    lines = torch.randn(1, 2, 3 * channels, 3, 5, device=DEVICE).to(dtype)
    scale, shift = torch.rand(2, 3, 2, device=DEVICE)
    relative = torch.randn(3 * channels, 9, device=DEVICE).to(dtype)
    return lines, relative, scale, shift, None, channels, [0, 1, 2], 0, True, 1 << 20


REASONS = {
    'involution takes it': ('involution', involution_of(128, 256, 31), []),
    'involution, float64': (
        'involution',
        involution_of(dtype=torch.float64),
        ['float64 (value, hidden, weight)'],
    ),
    'involution, wide': (
        'involution',
        involution_of(129, 257, 33),
        [
            'more than 128 channels of a group, 129',
            'more than 256 hidden features, 257',
            'a window of more than 16 columns, 33',
        ],
    ),
    'attention takes it': ('attention', attention_of(128), []),
    'attention of shifted windows': (
        'attention',
        (*attention_of(8)[:6], list(Window(3, border='shift'))),
        [],
    ),
    'attention, wide': (
        'attention',
        attention_of(130, torch.float64),
        ['float64 (query, key, value)', 'more than 128 channels of a head, 130'],
    ),
    'axial takes it': ('axial', axial_of(128), []),
    'axial, wide': (
        'axial',
        axial_of(129, torch.float64),
        ['float64 (lines, relative)', 'more than 128 channels of a head, 129'],
    ),
}
MODULES = dict(involution=fused_involution, attention=fused_attention, axial=fused_axial)
FUNCTIONS = dict(involution='involution', attention='attention', axial='attention')
DEFINITIONS = dict(involution=involution, attention=attention, axial=axial)


@pytest.mark.parametrize('case', REASONS)
def test_reasons_against_a_kernel(case):
    family, inputs, expected = REASONS[case]
    reasons_against = getattr(MODULES[family], f'reasons_against_{FUNCTIONS[family]}')
    assert reasons_against(*inputs) == expected


def test_reasons_against_a_dilation():
    """Callers take it apart, and this is for who calls a kernel without them."""
    window = Window((3, 1), 1, (1, 2), border='shift')
    inputs = (*attention_of(8)[:6], list(window))
    assert fused_attention.reasons_against_attention(*inputs) == [
        "a dilated window with border='shift'"
    ]


@pytest.mark.parametrize('case', [case for case, (*_, reasons) in REASONS.items() if reasons])
def test_what_does_not_fit_is_composed_and_said_once(case, monkeypatch, caplog):
    family, inputs, reasons = REASONS[case]
    monkeypatch.setattr(dispatch, '_logged', set())
    definition = DEFINITIONS[family].definition
    kernel = _triton._imported_late(family, FUNCTIONS[family], definition)
    with caplog.at_level('WARNING', 'mmrednet'):
        for _ in range(2):
            for got, expected in zip(kernel(*inputs), definition(*inputs), strict=True):
                assert torch.equal(got, expected)
    name = f'{family}.{FUNCTIONS[family]}'
    assert caplog.messages == [
        f'{name} falls back from its triton kernel to plain torch: {reason}' for reason in reasons
    ]
    with require_kernels('triton'), pytest.raises(RuntimeError) as failure:
        kernel(*inputs)
    assert str(failure.value) == (
        f'The triton kernels were required, and cannot compute {name}: {"; ".join(reasons)}.'
    )


def test_operators_without_a_kernel_say_so_on_cuda(monkeypatch, caplog):
    class OnCuda:
        is_cuda = True

    monkeypatch.setattr(dispatch, '_logged', set())
    with caplog.at_level('WARNING', 'mmrednet'):
        dispatch.report_missing_kernel('axial_attention_backward', torch.zeros(1))
        dispatch.report_missing_kernel('axial_attention_backward', OnCuda())
    message = 'falls back from its triton kernel to plain torch: it has no kernel'
    assert caplog.messages == [f'axial_attention_backward {message}']
    with require_kernels('triton'), pytest.raises(RuntimeError, match='it has no kernel'):
        dispatch.report_missing_kernel('axial_attention_backward', OnCuda())


@pytest.mark.parametrize(
    'name',
    [
        'aggregate',
        'correlate',
        'scatter',
        'involution',
        'attention',
        'attention_backward',
        'difference_attention',
        'axial_attention',
    ],
)
def test_the_dispatcher_knows_them(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'mmrednet::{name}', 'CUDA')
    assert active_kernels()['cuda'].startswith(f'triton {triton.__version__}')


@pytest.mark.parametrize(
    ('installed', 'usable'),
    [('3.3.1', False), ('3.4.0', False), ('3.5.0', True), ('3.10.0+gitabc', True), ('4.0', True)],
)
def test_an_old_triton_is_left_alone_with_the_reason(installed, usable, monkeypatch):
    monkeypatch.setattr(_triton, 'version', lambda _: installed)
    monkeypatch.delenv('MMREDNET_TRITON', raising=False)
    missing, version = _triton._find()
    assert (missing, version) == (
        (None, installed) if usable else (f'{installed} is too old: at least 3.5 is needed', '')
    )
    registered = []

    class Op:
        def register_kernel(self, device):
            return lambda kernel: registered.append(device)

    monkeypatch.setattr(_triton, 'MISSING', missing)
    _triton.register('local', aggregate=(Op(), None))
    assert registered == (['cuda'] if usable else [])
    assert usable or _triton.state() == f'plain torch, one tap at a time (triton: {missing})'


# dtype, groups, their channels, and hidden features
COMPILED = {'half precision': ('bfloat16', 8, 16, 32), 'single channels': ('float32', 128, 1, 256)}

# bytes of those that sum a whole table, or both layers of a mapping
SPILLED = {
    'axial_table_kernel': 96,
    'pairwise_query_kernel': 160,
    'pairwise_weight_kernel': 832,
    'pairwise_key_kernel': 192,
    'pair_moments_weight_kernel': 128,
}
# those that have a variant for shifted windows, or for features without a layer
VARIANTS = {
    'scatter_kernel': 2,
    'attention_kernel': 2,
    'query_kernel': 2,
    'key_kernel': 2,
    'pair_moments_query_kernel': 2,
    'pair_moments_key_kernel': 2,
    'patch_moments_key_kernel': 2,
}
# those that do not read 16 bytes at a time: lines of any length, and queries and keys whose number
# of channels is no multiple of eight
NARROW = ('axial_', 'pair_')


@pytest.mark.parametrize('case', COMPILED)
def test_every_kernel_compiles_once_for_all_sizes(case):
    """For a Hopper chip that need not be there: what runs in the interpreter need not compile."""
    dtype, groups, group_channels, hidden = COMPILED[case]
    tests = Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    options = dict(dtype=dtype, groups=groups, group_channels=group_channels, hidden=hidden)
    options = [f'--{name.replace("_", "-")}={value}' for name, value in options.items()]
    result = subprocess.run(
        [sys.executable, tests / 'triton_offline.py', '--json', *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout.splitlines()[-1])
    assert len(kernels) == 28
    for name, binaries in kernels.items():
        assert len(binaries) == VARIANTS.get(name, 1), name
        # what a block of threads can have on every chip since Ampere
        assert max(binary['shared'] for binary in binaries) <= 99 << 10, name
        if case == 'half precision':
            # a warning against sums that no longer stay in registers
            assert max(binary['stack'] for binary in binaries) <= SPILLED.get(name, 64), name
            has_wide_loads = all(binary['wide_loads'] for binary in binaries)
            assert has_wide_loads or name.startswith(NARROW), name
