"""Local attention by absolute difference against literal loops: values, gradients, layouts."""

import oracles
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.ops import Window, difference_attention, local_difference_attention

BATCH, HEADS = 2, 3
WINDOWS = {
    'k1': (Window(1), (4, 3)),
    'k3': (Window(3), (5, 18)),
    'k3_stride2_dilation2': (Window(3, 2, 2), (7, 5)),
    'k5x3': (Window((5, 3)), (4, 5)),
    'k7_larger_than_map': (Window(7), (2, 3)),
    'k2_no_padding': (Window(2, padding=0), (4, 5)),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def random_tensor(layout, channels, size):
    if layout == 'planar':
        return torch.randn(BATCH, HEADS, channels, *size, dtype=torch.float64)
    last = torch.randn(BATCH, *size, HEADS, channels, dtype=torch.float64)
    return last.permute(0, 3, 4, 1, 2)


def make_inputs(window, size, layout='planar', channels=1, value_channels=4):
    """Return query, key, value and bias."""
    query = random_tensor(layout, channels, window.output_size(*size))
    key = random_tensor(layout, channels, size)
    value = random_tensor(layout, value_channels, size)
    return [query, key, value, torch.randn(HEADS, window.taps, dtype=torch.float64)]


def attention_of(window):
    return lambda query, key, value, bias: local_difference_attention(
        query, key, value, window, bias=bias
    )


def literal(query, key, value, bias, window):
    result = value.new_zeros((*value.shape[:3], *query.shape[-2:]))
    for y in range(query.shape[-2]):
        for x in range(query.shape[-1]):
            positions = list(oracles.neighbours(window, key.shape[-2:], (y, x)))
            logits = []
            for tap, row, column in positions:
                logit = -(query[..., y, x] - key[..., row, column]).abs().sum(2)
                logits.append(logit if bias is None else logit + bias[:, tap])
            weights = torch.stack(logits).softmax(0)
            for weight, (_, row, column) in zip(weights, positions, strict=True):
                result[..., y, x] += weight.unsqueeze(2) * value[..., row, column]
    return result


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('layout', ['planar', 'channels-last'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('window', WINDOWS)
def test_values(window, channels, layout, dtype):
    window, size = WINDOWS[window]
    inputs = [tensor.to(dtype) for tensor in make_inputs(window, size, layout, channels)]
    expected = literal(*(tensor.double() for tensor in inputs), window)
    result = attention_of(window)(*inputs)
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_values_without_bias():
    window, size = WINDOWS['k3']
    query, key, value, _ = make_inputs(window, size)
    expected = literal(query, key, value, None, window)
    result = local_difference_attention(query, key, value, window)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize('layout', ['planar', 'channels-last'])
@pytest.mark.parametrize('window', ['k3', 'k3_stride2_dilation2', 'k2_no_padding'])
def test_gradients_of_both_orders(window, layout, channels):
    window, _ = WINDOWS[window]
    inputs = [x.requires_grad_() for x in make_inputs(window, (4, 3), layout, channels, 2)]
    assert gradcheck(attention_of(window), inputs, fast_mode=True)
    assert gradgradcheck(attention_of(window), inputs, fast_mode=True)


@pytest.mark.parametrize('layout', ['planar', 'channels-last'])
def test_first_gradients_are_those_of_the_definition(layout):
    """The native backward pass computes the logits again, in float32 and float64."""
    window, size = WINDOWS['k3']
    inputs = make_inputs(window, size, layout)
    expected_inputs = [x.detach().clone().requires_grad_() for x in inputs]
    expected = literal(*expected_inputs, window)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, expected_inputs, grad)
    for dtype in (torch.float64, torch.float32):
        cast = [x.detach().to(dtype).requires_grad_() for x in inputs]
        grads = torch.autograd.grad(attention_of(window)(*cast), cast, grad.to(dtype))
        for got, wanted in zip(grads, expected_grads, strict=True):
            error = (got.double() - wanted).abs().max()
            assert error <= TOLERANCE[dtype] * wanted.abs().max()


@pytest.mark.parametrize('layout', ['planar', 'channels-last'])
def test_registration(layout):
    window, size = WINDOWS['k3']
    inputs = (*make_inputs(window, size, layout), list(window))
    opcheck(difference_attention.difference_attention.op, inputs)
    grad = random_tensor(layout, 4, size)
    opcheck(
        difference_attention.difference_attention_backward.op,
        (grad, *inputs),
        test_utils=('test_schema', 'test_faketensor'),
    )


def test_an_output_without_neighbours_is_zero():
    window = Window(1, padding=1)
    inputs = make_inputs(window, (2, 2))
    result = attention_of(window)(*inputs)
    torch.testing.assert_close(result[..., 1:3, 1:3], inputs[2])
    assert result[..., 0, :].eq(0).all()


def test_flops():
    window, size = WINDOWS['k3']
    inputs = make_inputs(window, size)
    with FlopCounterMode(display=False) as count:
        attention_of(window)(*inputs)
    assert count.get_total_flops() == 2 * BATCH * HEADS * 4 * window.taps * 5 * 18


@pytest.mark.parametrize(
    ('index', 'shape', 'message'),
    [
        (0, (2, 3, 2, 5, 18), 'query and key must agree in batch, groups, channels'),
        (1, (2, 3, 1, 5, 17), 'key and value must agree in size'),
        (2, (2, 4, 4, 5, 18), 'key and value must agree in batch, groups'),
        (3, (3, 8), 'bias must'),
    ],
)
def test_bad_input(index, shape, message):
    window, size = WINDOWS['k3']
    inputs = make_inputs(window, size)
    inputs[index] = torch.randn(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        attention_of(window)(*inputs)
