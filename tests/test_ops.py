"""The local primitives against literal loops: values, gradients of both orders, layouts, dtypes,
bad input.
"""

import itertools

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from mmrednet.ops import (
    Window,
    _native,
    _torch,
    local,
    local_aggregate,
    local_correlate,
    local_scatter,
)
from mmrednet.ops.residues import has_residues

# every kernel module that can run here
KERNELS = [_torch] if _native.MISSING else [_torch, torch.ops.mmrednet]

BATCH, GROUPS, CHANNELS = 2, 2, 3
WINDOWS = {
    'k1': (Window(1), (4, 3)),
    'k3': (Window(3), (5, 4)),
    'k3_stride2_odd': (Window(3, 2), (5, 7)),
    'k3_stride2_even': (Window(3, 2), (6, 4)),
    'k3_dilation2': (Window(3, 1, 2), (5, 6)),
    'k3_stride2_dilation3': (Window(3, 2, 3), (7, 5)),
    'k3_stride3_pair2': (Window(3, (3, 2)), (7, 6)),
    'k5x3': (Window((5, 3)), (4, 5)),
    'k7_larger_than_map': (Window(7), (2, 3)),
    'k11': (Window(11), (3, 2)),
    'k2_no_padding': (Window(2, padding=0), (4, 5)),
    'k4_stride4': (Window(4, 4, padding=0), (8, 9)),
    'k2x3_padding': (Window((2, 3), 1, 1, (1, 2)), (3, 4)),
    'k3_wide_padding': (Window(3, 2, 1, 3), (4, 4)),
    'k3_shift': (Window(3, border='shift'), (5, 4)),
    'k3_shift_of_map': (Window(3, border='shift'), (3, 3)),
    'k5x3_shift': (Window((5, 3), border='shift'), (6, 19)),
    'k3_shift_dilation2': (Window(3, 1, 2, border='shift'), (7, 6)),
    'k3x5_shift_dilation3x1': (Window((3, 5), 1, (3, 1), border='shift'), (10, 18)),
}
LAYOUTS = {
    'contiguous': lambda x: x.unflatten(1, (GROUPS, CHANNELS)),
    'interleaved': lambda x: x.unflatten(1, (CHANNELS, GROUPS)).transpose(1, 2),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last).unflatten(
        1, (GROUPS, CHANNELS)
    ),
    'sliced': lambda x: torch.stack([x, x], -1)[..., 1].unflatten(1, (GROUPS, CHANNELS)),
}
# relative to the float64 result; float32 sums round once, bfloat16 keeps 8 bits
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def tensors(window, size, layout='contiguous', dtype=torch.float64):
    """Return (map, query, weight) of random numbers, the first two in this layout."""
    out = window.output_size(*size)
    grouped = [
        LAYOUTS[layout](
            torch.randn(BATCH, GROUPS * CHANNELS, *shape, dtype=torch.float64).to(dtype)
        )
        for shape in (size, out)
    ]
    return (*grouped, torch.randn(BATCH, GROUPS, window.taps, *out, dtype=torch.float64).to(dtype))


def close(got, expected, dtype, *what):
    assert got.dtype == dtype, what
    assert got.shape == expected.shape, what
    error = (got.double() - expected).abs().max() if expected.numel() else 0
    assert error <= TOLERANCE[dtype] * max(
        1, float(expected.abs().max()) if expected.numel() else 0
    ), what


def in_layout(layout, x):
    """Return a map (B, G, D, H, W) with the strides of a layout."""
    # a channel of interleaved groups is followed by that of the next group
    x = x.transpose(1, 2) if layout == 'interleaved' else x
    return LAYOUTS[layout](x.flatten(1, 2))


@pytest.mark.parametrize('window', WINDOWS)
def test_agree_with_literal_loops(window):
    window, size = WINDOWS[window]
    # the same numbers in every layout and dtype, since the loops are slow
    wide_value, wide_query, weight = tensors(window, size)
    expected = [
        oracles.aggregate(wide_value, weight, window),
        oracles.correlate(wide_query, wide_value, window),
        oracles.scatter(wide_query, weight, size, window),
    ]
    # kernels take shifted windows without dilation, see mmrednet/ops/residues.py
    modules = KERNELS[:1] if has_residues(window) else KERNELS
    primitives = [(module.aggregate, module.correlate, module.scatter) for module in modules]
    primitives.append((local_aggregate, local_correlate, local_scatter))
    for layout, dtype in itertools.product(LAYOUTS, TOLERANCE):
        value, query = (in_layout(layout, x.to(dtype)) for x in (wide_value, wide_query))
        low_weight = weight.to(dtype)
        for aggregate, correlate, scatter in primitives:
            what = (aggregate, layout)
            close(aggregate(value, low_weight, window), expected[0], dtype, *what)
            close(correlate(query, value, window), expected[1], dtype, *what)
            close(scatter(query, low_weight, size, window), expected[2], dtype, *what)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('window', WINDOWS)
def test_first_gradients(window, layout):
    window, size = WINDOWS[window]
    value, query, weight = (tensor.requires_grad_() for tensor in tensors(window, size, layout))
    assert gradcheck(lambda v, w: local_aggregate(v, w, window), (value, weight), fast_mode=True)
    assert gradcheck(lambda q, k: local_correlate(q, k, window), (query, value), fast_mode=True)
    assert gradcheck(
        lambda g, w: local_scatter(g, w, size, window), (query, weight), fast_mode=True
    )


SECOND_ORDER = [
    'k3',
    'k3_stride2_odd',
    'k3_stride2_dilation3',
    'k2x3_padding',
    'k3_shift_dilation2',
]


@pytest.mark.parametrize('layout', ['contiguous', 'interleaved'])
@pytest.mark.parametrize('window', SECOND_ORDER)
def test_second_gradients(window, layout):
    window, size = WINDOWS[window]
    value, query, weight = (tensor.requires_grad_() for tensor in tensors(window, size, layout))
    assert gradgradcheck(
        lambda v, w: local_aggregate(v, w, window), (value, weight), fast_mode=True
    )
    assert gradgradcheck(lambda q, k: local_correlate(q, k, window), (query, value), fast_mode=True)
    assert gradgradcheck(
        lambda g, w: local_scatter(g, w, size, window), (query, weight), fast_mode=True
    )


@pytest.mark.parametrize('layout', LAYOUTS)
def test_registration(layout):
    window, size = WINDOWS['k3_stride2_odd']
    value, query, weight = (
        tensor.detach().requires_grad_() for tensor in tensors(window, size, layout)
    )
    opcheck(local.aggregate.op, (value, weight, list(window)))
    opcheck(local.correlate.op, (query, value, list(window)))
    opcheck(local.scatter.op, (query, weight, list(size), list(window)))


def attention(q, k, v):
    """A user's local attention, made of the primitives."""
    window = Window(3, dilation=2)
    logits = local_correlate(q.unflatten(1, (2, 3)), k.unflatten(1, (2, 3)), window)
    return local_aggregate(v.unflatten(1, (2, 3)), logits.softmax(2), window).flatten(1, 2)


@pytest.mark.parametrize('dynamic', [False, True])
def test_compiles_in_one_graph(dynamic):
    compiled = torch.compile(attention, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    for size in ((5, 6), (7, 4)):
        inputs = [
            torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True) for _ in range(3)
        ]
        expected, got = attention(*inputs), compiled(*inputs)
        torch.testing.assert_close(got, expected)
        for want, have in zip(
            torch.autograd.grad(expected.sin().sum(), inputs),
            torch.autograd.grad(got.sin().sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(have, want)


def test_results_keep_the_layout_of_the_first_argument():
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(2, 2, 9, 5, 4)
    assert (
        local_aggregate(x.unflatten(1, (2, 3)), weight, Window(3))
        .flatten(1, 2)
        .is_contiguous(memory_format=torch.channels_last)
    )
    interleaved = torch.randn(2, 6, 5, 4).unflatten(1, (3, 2)).transpose(1, 2)
    assert local_aggregate(interleaved, weight, Window(3)).transpose(1, 2).is_contiguous()


def test_no_unfolded_copy():
    """Memory: at most a few tensors of the size of the inputs, never one of K times the map."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.untyped_storage().nbytes())
            return result

    window, size = Window(7), (16, 16)
    value, weight = torch.randn(1, 1, 32, *size), torch.randn(1, 1, 49, *size)
    with Watch():
        _torch.aggregate(value, weight, window)
        _torch.correlate(value, value, window)
        _torch.scatter(value, weight, size, window)
    assert largest
    assert max(largest) <= weight.untyped_storage().nbytes()


@pytest.mark.parametrize('batch', [0, 1])
def test_empty_batch(batch):
    window = Window(3, 2)
    value = torch.randn(batch, 2, 3, 5, 5, requires_grad=True)
    weight = torch.randn(batch, 2, 9, 3, 3, requires_grad=True)
    result = local_aggregate(value, weight, window)
    assert result.shape == (batch, 2, 3, 3, 3)
    result.sum().backward()
    assert value.grad.shape == value.shape
    assert weight.grad.shape == weight.shape


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16])
def test_mixed_dtypes(low):
    """Values of half precision meet softmax weights of float32: sums are wide, gradients keep their
    own dtypes.
    """
    window, size = Window(3), (5, 4)
    value, query, weight = tensors(window, size, dtype=torch.float32)
    value, query = value.to(low).requires_grad_(), query.to(low).requires_grad_()
    weight.requires_grad_()
    result = local_aggregate(value, weight, window)
    close(result, oracles.aggregate(value.double(), weight.double(), window).detach(), low)
    result.backward(query.detach())
    assert (value.grad.dtype, weight.grad.dtype) == (low, torch.float32)
    expected = oracles.correlate(query.detach().double(), value.detach().double(), window)
    torch.testing.assert_close(weight.grad.double(), expected, rtol=1e-5, atol=1e-5)
    logits = local_correlate(weight[:, :, :3], value, window)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert value.grad.dtype == low


def test_autocast_casts_float32_and_leaves_float64():
    window, size = Window(3), (5, 4)
    value, _, weight = tensors(window, size, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        result = local_aggregate(value.requires_grad_(), weight, window)
        wide = local_aggregate(value.double(), weight.double(), window)
    close(
        result, oracles.aggregate(value.double(), weight.double(), window).detach(), torch.bfloat16
    )
    assert wide.dtype == torch.float64
    result.float().sum().backward()
    assert value.grad.dtype == torch.float32


shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))
windows = st.builds(
    lambda kernel, stride, dilation: Window(kernel, stride, dilation),
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
    st.integers(1, 3),
    st.integers(1, 3),
)


@st.composite
def shifted(draw):
    """Return a shifted window and a map that is large enough."""
    kernel, dilation = (
        draw(st.sampled_from([(3, 1), (1, 5), (7, 3), (5, 5)])),
        draw(st.integers(1, 3)),
    )
    room = draw(shapes)
    size = tuple(length * dilation + more - 1 for length, more in zip(kernel, room, strict=True))
    return Window(kernel, 1, dilation, border='shift'), size


cases = st.one_of(st.tuples(windows, shapes), shifted())


@settings(max_examples=60, deadline=None)
@given(case=cases, seed=st.integers(0, 2**16))
def test_three_faces_of_one_form(case, seed):
    """<aggregate(v, w), g> = <v, scatter(g, w)> = <w, correlate(g, v)>"""
    window, size = case
    torch.manual_seed(seed)
    value, grad, weight = tensors(window, size)
    form = (local_aggregate(value, weight, window) * grad).sum()
    torch.testing.assert_close((value * local_scatter(grad, weight, size, window)).sum(), form)
    torch.testing.assert_close((weight * local_correlate(grad, value, window)).sum(), form)


@settings(max_examples=30, deadline=None)
@given(case=cases, factor=st.floats(-3, 3), seed=st.integers(0, 2**16))
def test_linear_in_each_argument(case, factor, seed):
    window, size = case
    torch.manual_seed(seed)
    value, query, weight = tensors(window, size)
    other_value, other_query, other_weight = tensors(window, size)
    for function, first, second, other_first, other_second in (
        (lambda v, w: local_aggregate(v, w, window), value, weight, other_value, other_weight),
        (lambda q, k: local_correlate(q, k, window), query, value, other_query, other_value),
        (lambda g, w: local_scatter(g, w, size, window), query, weight, other_query, other_weight),
    ):
        result = function(first, second)
        torch.testing.assert_close(
            function(first + factor * other_first, second),
            result + factor * function(other_first, second),
        )
        torch.testing.assert_close(
            function(first, second + factor * other_second),
            result + factor * function(first, other_second),
        )


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('size', [(1, 1), (5, 8), (7, 4)])
def test_centred_window_covers_the_map(stride, size):
    assert Window(5, stride, 2).output_size(*size) == tuple(-(-length // stride) for length in size)


def test_window_is_a_value():
    window = Window((3, 5), 2)
    assert window == Window((3, 5), (2, 2), 1, (1, 2)) == Window.from_flat(list(window))
    assert hash(window) == hash(Window((3, 5), 2))
    assert window.taps == window.offsets == 15
    shifted_window = Window((3, 5), 1, 2, border='shift')
    assert shifted_window == Window.from_flat(list(shifted_window)) != Window((3, 5), 1, 2)
    assert shifted_window.offsets == 5 * 9
    with pytest.raises(AttributeError):
        window.stride = (1, 1)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (
            (4,),
            ValueError,
            r'even kernel has no centre: padding must be given, got kernel=\(4, 4\)',
        ),
        (((3, 2),), ValueError, 'even kernel'),
        ((0,), ValueError, r'kernel must be at least 1, got kernel=0'),
        ((3, 0), ValueError, 'stride must be at least 1, got stride=0'),
        ((3, 1, 0), ValueError, 'dilation must be at least 1'),
        ((3, 1, 1, -1), ValueError, 'padding must be at least 0'),
        ((3, 1, 1, None, 'wrap'), ValueError, "border must be one of .* got 'wrap'"),
        ((3, 2, 1, None, 'shift'), ValueError, "border='shift' needs stride 1 .* got stride=2"),
        ((3, 1, 1, 1, 'shift'), ValueError, "border='shift' needs .* padding=1"),
        ((4, 1, 1, None, 'shift'), ValueError, 'even kernel has no centre'),
        (
            (3.0,),
            TypeError,
            r'kernel must be an int or a pair of ints \(vertical, horizontal\), got kernel=3.0',
        ),
        (((3, 3, 3),), TypeError, 'kernel must be an int or a pair'),
        (('33',), TypeError, 'kernel must be an int or a pair'),
    ],
)
def test_bad_windows(arguments, error, message):
    with pytest.raises(error, match=message):
        Window(*arguments)


def test_bad_inputs():
    window, size = Window(3), (5, 4)
    value, query, weight = tensors(window, size)
    with pytest.raises(
        ValueError, match=r'one entry per tap, 9 .* got weight.shape=\(2, 2, 8, 5, 4\)'
    ):
        local_aggregate(value, weight[:, :, 1:], window)
    with pytest.raises(
        ValueError, match=r'value and weight must agree in batch, groups, got .*\(2, 1, 9, 5, 4\)'
    ):
        local_aggregate(value, weight[:, :1], window)
    with pytest.raises(
        ValueError, match=r'output size \(5, 4\) of Window.* got weight.shape=\(2, 2, 9, 5, 3\)'
    ):
        local_aggregate(value, weight[..., 1:], window)
    with pytest.raises(
        ValueError, match=r'value must have 5 dimensions .* got value.shape=\(2, 6, 5, 4\)'
    ):
        local_aggregate(value.flatten(1, 2), weight, window)
    with pytest.raises(TypeError, match='value must be a floating-point tensor, got torch.int64'):
        local_aggregate(value.long(), weight, window)
    with pytest.raises(TypeError, match='weight must be a floating-point tensor, got list'):
        local_aggregate(value, [1], window)
    with pytest.raises(
        ValueError, match='query and key must agree in batch, groups, channels per group'
    ):
        local_correlate(query[:, :, :2], value, window)
    with pytest.raises(ValueError, match=r'query must end in the output size \(5, 4\)'):
        local_correlate(query[..., :2, :], value, window)
    with pytest.raises(ValueError, match=r'size must be \(H, W\)'):
        local_scatter(query, weight, (5,), window)
    with pytest.raises(ValueError, match=r'on a map \(size\) of \(9, 9\)'):
        local_scatter(query, weight, (9, 9), window)
    with pytest.raises(ValueError, match='the window must fit into the padded map'):
        local_correlate(query, value, Window(7, padding=0))
    with pytest.raises(ValueError, match=r'at least kernel \* dilation, 6 x 6, got 5 x 4'):
        local_correlate(query, value, Window(3, 1, 2, border='shift'))
    with pytest.raises(ValueError, match='must be on one device, got cpu and meta'):
        local_aggregate(value, weight.to('meta'), window)


def test_torchs_counter_knows_the_operators():
    from torch.utils.flop_counter import FlopCounterMode

    window = Window(3, 2, 1)
    value = torch.randn(2, 3, 4, 7, 6, requires_grad=True)
    weight = torch.randn(2, 3, 9, 4, 3, requires_grad=True)
    one = 2 * (2 * 3 * 9 * 4 * 3) * 4
    with FlopCounterMode(display=False) as counter:
        local_aggregate(value, weight, window).sum().backward()
    # aggregate, and scatter and correlate for its two gradients
    assert counter.get_total_flops() == 3 * one


def test_results_may_be_changed_in_place():
    x = torch.randn(2, 8, 5, 4, requires_grad=True)
    value = x.unflatten(1, (2, 4))
    result = local_aggregate(value, torch.rand(2, 2, 9, 5, 4), Window(3)).flatten(1, 2)
    expected = torch.autograd.grad(result.relu().sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(result.relu_().sum(), x)[0], expected)
