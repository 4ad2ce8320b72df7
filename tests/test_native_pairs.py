"""The CPU kernels of bfloat16, which multiply in pairs, and the backward passes of attention
against their definitions in float64.
"""

import pytest
import torch
from test_native import LAYOUTS, agree, laid_out

from mmrednet.ops import (
    Window,
    _native,
    _torch,
    attention,
    difference_attention,
    involution,
    local_attention,
    local_difference_attention,
    local_involution,
)

native = torch.ops.mmrednet
built = pytest.mark.skipif(bool(_native.MISSING), reason=str(_native.MISSING))
# the norm of the error over the norm of the result; a rounding to bfloat16 alone gives 0.0017
BFLOAT16 = 6e-3
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}
# odd and even rows of the window; strides and dilations on both axes; no padding; at least two rows
# and columns, as the gradient of a table of one is zero
WINDOWS = [
    Window(7),
    Window(3, 2),
    Window((3, 4), padding=(1, 2)),
    Window(5, 1, 2),
    Window((2, 5), (1, 3), (1, 2), (1, 4)),
    Window((3, 2), (2, 1), padding=(1, 0)),
    Window(3, (1, 9), padding=0),
    Window(2, 1, (1, 40), (0, 20)),
    Window(5, 2, 3),
]


def agree_with_definition(result, expected, tolerance, *what):
    """Compare with float64, not rounded to the dtype of the result."""
    agree(result.double(), expected, tolerance, *what)


def compare_primitives(window, layout, channels):
    size = (9, 45)
    outputs = window.output_size(*size)
    value = laid_out(layout, 2, 3, channels, *size, torch.bfloat16)
    query = laid_out(layout, 2, 3, channels, *outputs, torch.bfloat16)
    weight = laid_out(layout, 2, 3, window.taps, *outputs, torch.bfloat16)
    for name, arguments in (
        ('aggregate', (value, weight, window)),
        ('correlate', (query, value, window)),
        ('scatter', (query, weight, size, window)),
    ):
        in_float64 = [x.double() if isinstance(x, torch.Tensor) else x for x in arguments]
        expected = getattr(_torch, name)(*in_float64)
        result = getattr(native, name)(*arguments)
        agree_with_definition(result, expected, BFLOAT16, name, layout)


@built
@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('channels', [1, 3, 8, 17, 37])
def test_primitives_in_bfloat16(window, channels):
    for layout in LAYOUTS:
        compare_primitives(window, layout, channels)


def compare_involution(window, layout, channels, hidden):
    size = (9, 45)
    outputs = window.output_size(*size)
    value = laid_out(layout, 2, 3, channels, *size, torch.bfloat16)
    features = laid_out(layout, 2, 1, hidden, *outputs, torch.bfloat16)[:, 0]
    rows = 3 * window.taps
    weight, bias = torch.randn(rows, hidden).bfloat16(), torch.randn(rows).bfloat16()
    inputs = (value, features, weight, bias)
    in_float64 = [tensor.double() for tensor in inputs]
    expected = involution.definition(*in_float64, list(window))
    agree_with_definition(local_involution(*inputs, window), expected, BFLOAT16, layout)
    grad = laid_out(layout, 2, 3, channels, *outputs, torch.bfloat16)
    expected = involution.gradients(grad.double(), *in_float64, list(window))
    results = native.involution_backward(grad, *inputs, list(window))
    for result, wanted in zip(results, expected, strict=True):
        agree_with_definition(result, wanted, BFLOAT16, layout)


@built
@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize(('channels', 'hidden'), [(16, 8), (7, 3), (1, 1), (36, 5)])
def test_involution_in_bfloat16(window, channels, hidden):
    for layout in LAYOUTS:
        compare_involution(window, layout, channels, hidden)


def attention_inputs(window, layout, size, channels, value_channels, dtype):
    """Return query, key, value, rows, columns and bias; tables for an even number of channels."""
    outputs, heads = window.output_size(*size), 3
    query = laid_out(layout, 2, heads, channels, *outputs, dtype)
    key = laid_out(layout, 2, heads, channels, *size, dtype)
    value = laid_out(layout, 2, heads, value_channels, *size, dtype)
    rows = columns = None
    if channels % 2 == 0:
        rows = torch.randn(heads, channels // 2, window.kernel[0]).to(dtype)
        columns = torch.randn(heads, channels // 2, window.kernel[1]).to(dtype)
    return query, key, value, rows, columns, torch.randn(heads, window.taps).to(dtype)


def to_float64(tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def compare_attention(window, layout, dtype, channels):
    size = (9, 45)
    inputs = attention_inputs(window, layout, size, *channels, dtype)
    # logits of a size at which a softmax has several large weights
    inputs = (inputs[0] / channels[0], *inputs[1:])
    in_float64 = to_float64(inputs)
    result, logsumexp = native.attention(*inputs, list(window))
    expected = attention.definition(*in_float64, list(window))[0]
    agree_with_definition(result, expected, TOLERANCES[dtype], 'result', layout)
    grad = laid_out(layout, 2, 3, channels[1], *window.output_size(*size), dtype)
    results = native.attention_backward(grad, logsumexp, *inputs, list(window))
    expected = attention.gradients(grad.double(), *in_float64, list(window))
    for index, (one, other) in enumerate(zip(results, expected, strict=True)):
        agree_with_definition(one, other, TOLERANCES[dtype], index, layout)


@built
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('channels', [(1, 8), (6, 5), (5, 3), (16, 16)], ids=str)
def test_attention_and_its_gradients(window, dtype, channels):
    for layout in LAYOUTS:
        compare_attention(window, layout, dtype, channels)


def compare_difference_attention(window, layout, dtype, channels):
    size = (9, 45)
    query, key, value, _, _, bias = attention_inputs(window, layout, size, *channels, dtype)
    inputs = (query, key, value, bias)
    in_float64 = to_float64(inputs)
    result = native.difference_attention(*inputs, list(window))
    expected = difference_attention.definition(*in_float64, list(window))
    agree_with_definition(result, expected, TOLERANCES[dtype], 'result', layout)
    grad = laid_out(layout, 2, 3, channels[1], *window.output_size(*size), dtype)
    results = native.difference_attention_backward(grad, *inputs, list(window))
    expected = difference_attention.gradients(grad.double(), *in_float64, list(window))
    for index, (one, other) in enumerate(zip(results, expected, strict=True)):
        agree_with_definition(one, other, TOLERANCES[dtype], index, layout)


@built
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('channels', [(1, 8), (3, 5)], ids=str)
def test_difference_attention_and_its_gradients(window, dtype, channels):
    for layout in LAYOUTS:
        compare_difference_attention(window, layout, dtype, channels)


@built
@pytest.mark.parametrize('layout', ['planar', 'last'])
def test_numbers_beside_the_window_do_not_matter(layout):
    """The last of an odd number of taps makes a pair with what lies beside the window."""
    value = torch.full((1, 1, 16, 1, 40), torch.inf, dtype=torch.bfloat16)
    value[..., 10:17] = 1
    if layout == 'last':
        value = value.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    weight = torch.ones(1, 1, 7, 1, 40, dtype=torch.bfloat16)
    result = native.aggregate(value, weight, list(Window((1, 7))))
    assert result[..., 13].eq(7).all()


def every_operator(layout, dtype):
    """Return a function that computes the fused operators and their gradients."""
    window, size = Window(7), (33, 37)
    tensors = attention_inputs(window, layout, size, 8, 16, dtype)
    hidden = laid_out(layout, 2, 1, 9, *size, dtype)[:, 0]
    generator, bias = torch.randn(3 * 49, 9).to(dtype), torch.randn(3 * 49).to(dtype)
    query, key, value, rows, columns, table = tensors

    def run():
        results = []
        for function, arguments in (
            (lambda *x: local_involution(*x, window), (value, hidden, generator, bias)),
            (
                lambda q, k, v, rows, columns, bias: local_attention(
                    q, k, v, window, rows=rows, columns=columns, bias=bias
                ),
                (query, key, value, rows, columns, table),
            ),
            (
                lambda q, k, v, bias: local_difference_attention(q, k, v, window, bias=bias),
                (query[:, :, :1], key[:, :, :1], value, table),
            ),
        ):
            leaves = [tensor.detach().requires_grad_() for tensor in arguments]
            result = function(*leaves)
            results += [result, *torch.autograd.grad(result, leaves, result.detach().cos())]
        return results

    return run


@built
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', ['planar', 'last'])
def test_results_do_not_depend_on_the_number_of_threads(layout, dtype):
    run, before = every_operator(layout, dtype), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            for result, wanted in zip(run(), expected, strict=True):
                assert torch.equal(result, wanted)
    finally:
        torch.set_num_threads(before)
