"""Involution and local attention as one function each, against literal loops: values, gradients,
layouts, dtypes.
"""

import oracles
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.ops import Window, attention, involution, local_attention, local_involution

BATCH, GROUPS, CHANNELS, HIDDEN = 2, 3, 4, 5
WINDOWS = {
    'k1': (Window(1), (4, 3)),
    'k3': (Window(3), (5, 18)),
    'k3_stride2_dilation2': (Window(3, 2, 2), (7, 5)),
    'k5x3': (Window((5, 3)), (4, 5)),
    'k7_larger_than_map': (Window(7), (2, 3)),
    'k2_no_padding': (Window(2, padding=0), (4, 5)),
}
LAYOUTS = ('planar', 'last', 'interleaved')
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FAKE = ('test_schema', 'test_faketensor')
TABLES = {
    'plain': (),
    'relative': ('rows', 'columns'),
    'bias': ('bias',),
    'all': ('rows', 'columns', 'bias'),
}


def grouped(layout, channels, size):
    """Return random numbers (B, G, D, H, W) in one of the layouts that modules make."""
    if layout == 'planar':
        return torch.randn(BATCH, GROUPS, channels, *size, dtype=torch.float64)
    if layout == 'last':
        return torch.randn(BATCH, *size, GROUPS, channels, dtype=torch.float64).permute(
            0, 3, 4, 1, 2
        )
    return torch.randn(BATCH, channels, GROUPS, *size, dtype=torch.float64).transpose(1, 2)


def involution_inputs(window, size, layout='planar'):
    hidden = torch.randn(BATCH, HIDDEN, *window.output_size(*size), dtype=torch.float64)
    if layout == 'last':
        hidden = hidden.contiguous(memory_format=torch.channels_last)
    rows = GROUPS * window.taps
    return [
        grouped(layout, CHANNELS, size),
        hidden,
        torch.randn(rows, HIDDEN, dtype=torch.float64),
        torch.randn(rows, dtype=torch.float64),
    ]


def attention_inputs(window, size, layout='planar', tables=TABLES['all']):
    query, key, value = (
        grouped(layout, channels, shape)
        for channels, shape in (
            (CHANNELS, window.output_size(*size)),
            (CHANNELS, size),
            (CHANNELS + 2, size),
        )
    )
    shapes = dict(
        rows=(GROUPS, CHANNELS // 2, window.kernel[0]),
        columns=(GROUPS, CHANNELS // 2, window.kernel[1]),
        bias=(GROUPS, window.taps),
    )
    return [
        query,
        key,
        value,
        *(
            torch.randn(shape, dtype=torch.float64) if name in tables else None
            for name, shape in shapes.items()
        ),
    ]


def attend(window):
    return lambda query, key, value, rows, columns, bias: local_attention(
        query, key, value, window, rows=rows, columns=columns, bias=bias
    )


def literal_involution(value, hidden, weight, bias, window):
    kernels = torch.einsum('kr,brhw->bkhw', weight, hidden) + (
        0 if bias is None else bias[:, None, None]
    )
    return oracles.aggregate(value, kernels.unflatten(1, (GROUPS, -1)), window)


def literal_attention(query, key, value, rows, columns, bias, window):
    result = value.new_zeros((*value.shape[:3], *query.shape[-2:]))
    for y in range(query.shape[-2]):
        for x in range(query.shape[-1]):
            places = list(oracles.neighbours(window, key.shape[-2:], (y, x)))
            logits = []
            for tap, row, column in places:
                logit = (query[..., y, x] * key[..., row, column]).sum(2)
                if rows is not None:
                    u, v = divmod(tap, window.kernel[1])
                    where = torch.cat([rows[:, :, u], columns[:, :, v]], 1)
                    logit = logit + (query[..., y, x] * where).sum(2)
                logits.append(logit if bias is None else logit + bias[:, tap])
            weights = torch.stack(logits).softmax(0)
            for weight, (_, row, column) in zip(weights, places, strict=True):
                result[..., y, x] += weight.unsqueeze(2) * value[..., row, column]
    return result


def close(got, expected, dtype):
    assert got.dtype == dtype
    assert got.shape == expected.shape
    assert (got.double() - expected).abs().max() <= TOLERANCE[dtype] * max(
        1, float(expected.abs().max())
    )


def cast(inputs, dtype):
    return [tensor if tensor is None else tensor.to(dtype) for tensor in inputs]


def widened(inputs):
    return [tensor if tensor is None else tensor.double() for tensor in inputs]


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('window', WINDOWS)
def test_involution(window, layout, dtype):
    window, size = WINDOWS[window]
    inputs = cast(involution_inputs(window, size, layout), dtype)
    close(local_involution(*inputs, window), literal_involution(*widened(inputs), window), dtype)
    inputs[-1] = None
    close(local_involution(*inputs, window), literal_involution(*widened(inputs), window), dtype)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('window', WINDOWS)
def test_involution_scaled_and_shifted(window, layout, dtype, relu):
    window, size = WINDOWS[window]
    inputs = cast(involution_inputs(window, size, layout), dtype)
    scale, shift = torch.randn(2, GROUPS * CHANNELS, dtype=torch.float64).to(dtype)
    expected = literal_involution(*widened(inputs), window)
    for tensor, combine in ((scale, torch.mul), (shift, torch.add)):
        expected = combine(expected, tensor.double().view(GROUPS, CHANNELS, 1, 1))
    got = local_involution(*inputs, window, scale=scale, shift=shift, relu=relu)
    close(got, expected.relu() if relu else expected, dtype)
    assert got.stride() == local_involution(*inputs, window).stride()
    # what has gradients is computed part by part
    inputs[0].requires_grad_()
    close(
        local_involution(*inputs, window, scale=scale, shift=shift, relu=relu).detach(),
        expected.relu() if relu else expected,
        dtype,
    )


def test_gradients_of_scale_and_shift():
    window, size = WINDOWS['k3_stride2_dilation2']
    inputs = [
        *involution_inputs(window, size),
        *torch.randn(2, GROUPS * CHANNELS, dtype=torch.float64),
    ]
    assert gradcheck(
        lambda *tensors: local_involution(*tensors[:4], window, scale=tensors[4], shift=tensors[5]),
        [tensor.requires_grad_() for tensor in inputs],
        fast_mode=True,
    )


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('tables', TABLES)
@pytest.mark.parametrize('window', WINDOWS)
def test_attention(window, tables, layout, dtype):
    window, size = WINDOWS[window]
    inputs = cast(attention_inputs(window, size, layout, TABLES[tables]), dtype)
    close(attend(window)(*inputs), literal_attention(*widened(inputs), window), dtype)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('window', WINDOWS)
def test_gradients_of_both_orders(window, layout):
    window, size = WINDOWS[window]
    inputs = [tensor.requires_grad_() for tensor in involution_inputs(window, size, layout)]
    function = lambda *tensors: local_involution(*tensors, window)  # noqa: E731
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)
    inputs = [tensor.requires_grad_() for tensor in attention_inputs(window, size, layout)]
    assert gradcheck(attend(window), inputs, fast_mode=True)
    assert gradgradcheck(attend(window), inputs, fast_mode=True)


@pytest.mark.parametrize('tables', TABLES)
def test_gradients_without_tables(tables):
    window, size = WINDOWS['k3_stride2_dilation2']
    inputs = attention_inputs(window, size, tables=TABLES[tables])
    given = [tensor.requires_grad_() for tensor in inputs if tensor is not None]
    got = torch.autograd.grad(attend(window)(*inputs).sin().sum(), given)
    expected = torch.autograd.grad(literal_attention(*inputs, window).sin().sum(), given)
    for have, want in zip(got, expected, strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision(low):
    window, size = Window(5), (7, 9)
    for inputs, function in (
        (involution_inputs(window, size), lambda *tensors: local_involution(*tensors, window)),
        (attention_inputs(window, size), attend(window)),
    ):
        halves = [tensor.to(low).requires_grad_() for tensor in inputs]
        wide = [tensor.detach().double().requires_grad_() for tensor in halves]
        grad = torch.randn_like(function(*wide))
        got, expected = (
            torch.autograd.grad(function(*tensors), tensors, grad.to(tensors[0].dtype))
            for tensors in (halves, wide)
        )
        for have, want in zip(got, expected, strict=True):
            assert have.dtype == low
            assert (have.double() - want).norm() < 3 * TOLERANCE[low] * want.norm()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_registration(layout):
    window, size = WINDOWS['k3_stride2_dilation2']
    inputs = [tensor.requires_grad_() for tensor in involution_inputs(window, size, layout)]
    opcheck(involution.involution.op, (*inputs, list(window)))
    tensors = [
        tensor.detach()
        for tensor in (*inputs, *torch.randn(2, GROUPS * CHANNELS, dtype=torch.float64))
    ]
    opcheck(involution.involution_affine.op, (*tensors, True, list(window)))
    inputs = [tensor.requires_grad_() for tensor in attention_inputs(window, size, layout)]
    opcheck(
        attention.attention.op,
        (*inputs, list(window)),
        test_utils=('test_schema', 'test_faketensor'),
    )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_gradients_have_the_strides_that_their_fakes_promise(layout, transposed, dtype):
    """Compiled training reads what the op returns by the strides of the fake."""
    turn = (lambda table: table.mT.contiguous().mT) if transposed else (lambda table: table)
    window, size = WINDOWS['k3_stride2_dilation2']
    # the gradient and the inputs may come in layouts of their own
    other = LAYOUTS[LAYOUTS.index(layout) - 1]
    for grad_layout in (layout, other):
        value, hidden, weight, bias = cast(involution_inputs(window, size, layout), dtype)
        grad = grouped(grad_layout, CHANNELS, window.output_size(*size)).to(dtype)
        opcheck(
            involution.involution_backward.op,
            (grad, value, hidden, turn(weight), bias, list(window)),
            test_utils=FAKE,
        )
        query, key, value, *tables = cast(attention_inputs(window, size, layout), dtype)
        key = torch.empty_like(grouped(other, CHANNELS, size).to(dtype)).copy_(key)
        inputs = [query, key, value, *(turn(table) for table in tables), list(window)]
        result, logsumexp = attention.attention(*inputs)
        grad = grouped(grad_layout, *result.shape[2:3], result.shape[-2:]).to(dtype)
        opcheck(attention.attention_backward.op, (grad, logsumexp, *inputs), test_utils=FAKE)


def both(value, hidden, weight, query, key):
    window = Window(3)
    involved = local_involution(value, hidden, weight, None, window)
    return local_attention(query, key, involved, window)


@pytest.mark.parametrize('dynamic', [False, True])
def test_compile_in_one_graph(dynamic):
    compiled = torch.compile(both, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    for size in ((5, 6), (7, 4)):
        inputs = [*involution_inputs(Window(3), size)[:3], *attention_inputs(Window(3), size)[:2]]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        expected, got = both(*inputs), compiled(*inputs)
        torch.testing.assert_close(got, expected)
        for want, have in zip(
            torch.autograd.grad(expected.sin().sum(), inputs),
            torch.autograd.grad(got.sin().sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(have, want)


def test_large_logits_do_not_overflow():
    window = Window(3)
    query, key, value = (100 * grouped('planar', CHANNELS, (4, 5)).float() for _ in range(3))
    result = local_attention(query, key, value, window)
    close(
        result,
        literal_attention(*widened((query, key, value)), None, None, None, window),
        torch.float32,
    )


def test_where_no_neighbour_lies_on_the_map():
    window = Window(3, padding=4)
    inputs = [tensor.requires_grad_() for tensor in attention_inputs(window, (4, 5))]
    result, logsumexp = attention.attention(*inputs, list(window))
    blind = logsumexp == -torch.inf
    # two rows and columns at each end
    assert blind[0, 0].sum() == 10 * 11 - 6 * 7
    assert not result.transpose(2, 4)[blind.transpose(2, 3)].any()
    for grad in torch.autograd.grad(result.sum(), inputs):
        assert grad.isfinite().all()
    assert gradcheck(attend(window), inputs, fast_mode=True)


def test_autocast_casts_float32_and_leaves_float64():
    window = Window(3)
    inputs = [tensor.float().requires_grad_() for tensor in involution_inputs(window, (5, 4))]
    with torch.autocast('cpu', torch.bfloat16):
        result = local_involution(*inputs, window)
        wide = local_involution(*widened(inputs), window)
    assert (result.dtype, wide.dtype) == (torch.bfloat16, torch.float64)
    result.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in inputs)


@pytest.mark.parametrize(
    ('low', 'generator'),
    [
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
)
def test_values_and_generators_of_different_dtypes(low, generator):
    window, size = WINDOWS['k3_stride2_dilation2']
    value, *others = involution_inputs(window, size)
    inputs = [tensor.requires_grad_() for tensor in (value.to(low), *cast(others, generator))]
    result = local_involution(*inputs, window)
    close(result.detach(), literal_involution(*widened(inputs), window).detach(), low)
    grads = torch.autograd.grad(result.float().sum(), inputs)
    assert [grad.dtype for grad in grads] == [low, *[generator] * 3]


def test_autocast_casts_generators_of_another_dtype():
    inputs = cast(involution_inputs(Window(3), (5, 4)), torch.float32)
    inputs[1] = inputs[1].bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        assert local_involution(*inputs, Window(3)).dtype == torch.bfloat16
    with pytest.raises(
        TypeError, match='weight must have the dtype of hidden, torch.bfloat16, got torch.float32'
    ):
        local_involution(*inputs, Window(3))


@pytest.mark.parametrize('name', ['involution', 'attention'])
def test_results_may_be_changed_in_place(name):
    make, call = dict(
        involution=(involution_inputs, local_involution), attention=(attention_inputs, attend)
    )[name]
    first, *others = make(Window(3), (5, 4))
    run = (
        (lambda value: call(value, *others, window=Window(3)))
        if name == 'involution'
        else (lambda query: call(Window(3))(query, *others))
    )
    x = first.flatten(1, 2).requires_grad_()
    expected, found = (
        torch.autograd.grad(after(run(x.unflatten(1, (GROUPS, CHANNELS))).flatten(1, 2)).sum(), x)[
            0
        ]
        for after in (torch.relu, torch.relu_)
    )
    assert expected.any()
    assert torch.equal(found, expected)


@pytest.mark.parametrize('name', ['involution', 'attention'])
def test_empty_batch(name):
    window = Window(3)
    inputs = (
        involution_inputs(window, (4, 5))
        if name == 'involution'
        else attention_inputs(window, (4, 5))
    )
    inputs = [tensor[:0] if tensor.dim() > 3 else tensor for tensor in inputs]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    result = local_involution(*inputs, window) if name == 'involution' else attend(window)(*inputs)
    assert result.shape[0] == 0
    result.sum().backward()
    assert inputs[0].grad.shape == inputs[0].shape


def test_flops():
    """The counts of the fused functions are those of the parts that they are made of."""
    window, size = Window((5, 3)), (6, 7)
    inputs = involution_inputs(window, size)
    with FlopCounterMode(display=False) as count:
        local_involution(*inputs, window)
        local_involution(*inputs, window, scale=torch.ones(12), shift=torch.ones(12))
    positions = BATCH * 6 * 7
    assert count.get_total_flops() == 2 * 2 * positions * GROUPS * 15 * (HIDDEN + CHANNELS)
    inputs = attention_inputs(window, size)
    with FlopCounterMode(display=False) as count:
        attend(window)(*inputs)
    per_position = 15 * (CHANNELS + CHANNELS + 2) + CHANNELS // 2 * (5 + 3)
    assert count.get_total_flops() == 2 * positions * GROUPS * per_position


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('hidden', lambda x: x[..., 1:], r'hidden must end in the output size \(4, 5\)'),
        ('hidden', lambda x: x[:1], 'value and hidden must agree in batch'),
        (
            'weight',
            lambda x: x[1:],
            r'weight must be \(groups \* taps, hidden channels\), \(27, 5\), got',
        ),
        ('bias', lambda x: x[1:], r'bias must be \(groups \* taps,\), \(27,\), got'),
        ('value', lambda x: x[0], 'value must have 5 dimensions'),
        ('value', lambda x: x.int(), 'value must be a floating-point tensor'),
        ('value', lambda _: None, 'value must be a floating-point tensor, got NoneType'),
        ('hidden', lambda _: None, 'hidden must be a floating-point tensor, got NoneType'),
        ('weight', lambda _: None, 'weight must be a floating-point tensor, got NoneType'),
        (
            'weight',
            lambda x: x.float(),
            'weight must have the dtype of hidden, torch.float64, got torch.float32',
        ),
        (
            'bias',
            lambda x: x.bfloat16(),
            'bias must have the dtype of hidden, torch.float64, got torch.bfloat16',
        ),
    ],
)
def test_bad_input_of_involution(name, change, message):
    inputs = dict(
        zip(
            ('value', 'hidden', 'weight', 'bias'), involution_inputs(Window(3), (4, 5)), strict=True
        )
    )
    inputs[name] = change(inputs[name])
    with pytest.raises((ValueError, TypeError), match=message):
        local_involution(**inputs, window=Window(3))


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(scale=torch.ones(12)), 'scale and shift must be given together, and with relu, got'),
        (dict(relu=True), 'scale and shift must be given together, and with relu, got'),
        (
            dict(scale=torch.ones(4), shift=torch.ones(12)),
            r'scale must be \(groups \* channels,\), \(12,\), got',
        ),
        (dict(scale=torch.ones(12), shift=torch.ones(3, 4)), 'shift must have 1 dimensions'),
    ],
)
def test_bad_scale_and_shift(given, message):
    with pytest.raises(ValueError, match=message):
        local_involution(*involution_inputs(Window(3), (4, 5)), Window(3), **given)


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        (
            'key',
            lambda x: x[:, :, :3],
            'query and key must agree in batch, groups, channels per group',
        ),
        ('value', lambda x: x[:, :2], 'key and value must agree in batch, groups'),
        ('value', lambda x: x[..., 1:], 'key and value must agree in size'),
        ('rows', lambda _: None, 'rows and columns must be given together, got only columns'),
        (
            'rows',
            lambda x: x[..., 1:],
            r'rows must be \(heads, channels / 2, rows of the window\), \(3, 2, 3\), got',
        ),
        (
            'columns',
            lambda x: x[1:],
            r'columns must be \(heads, channels / 2, columns of the window\)',
        ),
        ('bias', lambda x: x[:, 1:], r'bias must be \(heads, taps\), \(3, 9\), got'),
        ('key', lambda _: None, 'key must be a floating-point tensor, got NoneType'),
    ],
)
def test_bad_input_of_attention(name, change, message):
    names = ('query', 'key', 'value', 'rows', 'columns', 'bias')
    inputs = dict(zip(names, attention_inputs(Window(3), (4, 5)), strict=True))
    inputs[name] = change(inputs[name])
    with pytest.raises((ValueError, TypeError), match=message):
        local_attention(**inputs, window=Window(3))
