"""The compiled CPU kernels at their limits: nothing to compute, windows beyond the map, calls that
nobody checked.
"""

import pytest
import torch
from test_native import agree, built, compare, compare_fused, laid_out, native

from mmrednet.ops import (
    Window,
    _torch,
    attention,
    involution,
)


@built
def test_expanded_inputs():
    value, weight = torch.randn(1, 1, 2, 3, 4), torch.randn(1, 1, 9, 3, 4)
    result = native.aggregate(
        value.expand(3, -1, -1, -1, -1), weight.expand(3, -1, -1, -1, -1), Window(3)
    )
    for image in result:
        torch.testing.assert_close(image[None], _torch.aggregate(value, weight, Window(3)))


@built
@pytest.mark.parametrize('shape', [(0, 2, 4, 5, 5), (2, 0, 4, 5, 5), (2, 2, 0, 5, 5)])
def test_empty(shape):
    value, weight = torch.randn(shape), torch.randn(*shape[:2], 9, 5, 5)
    assert native.aggregate(value, weight, Window(3)).shape == shape
    assert native.correlate(value, value, Window(3)).abs().sum() == 0
    assert native.scatter(value, weight, (5, 5), Window(3)).shape == shape
    hidden, generator = torch.randn(shape[0], 3, 5, 5), torch.randn(9 * shape[1], 3)
    assert native.involution(value, hidden, generator, None, Window(3)).shape == shape
    result, logsumexp = native.attention(value, value, value, None, None, None, Window(3))
    assert (result.shape, logsumexp.shape) == (shape, (*shape[:2], 5, 5))


@built
@pytest.mark.parametrize('layout', ['planar', 'last'])
@pytest.mark.parametrize(
    'window',
    [Window(3, far) for far in (100, 10**7, 2**60)]
    + [Window(3, 1, far) for far in (6, 100, 10**7, 2**60)]
    + [Window((3, 7), (1, 10**7), (10**7, 1)), Window((7, 3), (10**7, 3), (1, 2**60))],
    ids=str,
)
def test_windows_that_leave_most_of_the_map_out(window, layout):
    size = (8, 21)
    compare(window, 2, 2, 20, size, (torch.float32, torch.float32), [layout] * 4)
    compare_fused(window, 2, 4, size, torch.float32, [layout] * 4)
    outputs = window.output_size(*size)
    inputs = [
        laid_out(layout, 2, 2, 4, *outputs, torch.float32),
        laid_out(layout, 2, 2, 4, *size, torch.float32),
        torch.randn(2, 5, *outputs),
        torch.randn(2 * window.taps, 5),
        torch.randn(2 * window.taps),
    ]
    expected = involution.gradients(*(tensor.double() for tensor in inputs), list(window))
    for got, want in zip(native.involution_backward(*inputs, list(window)), expected, strict=True):
        agree(got, want.float(), 1e-5, window)


@built
@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        (
            'aggregate',
            ((1, 2, 4, 5, 5), (1, 2, 1, 5, 5)),
            r'weight must have sizes .* got \[1, 2, 1, 5, 5\]',
        ),
        (
            'aggregate',
            ((1, 9, 4, 5, 5), (1, 1, 9, 5, 5)),
            r'weight must have sizes \[1, 9, 9, 5, 5\], got',
        ),
        (
            'aggregate',
            ((1, 2, 4, 5, 5), (1, 2, 9, 5, 6)),
            r'weight must have sizes \[1, 2, 9, 5, 5\], got',
        ),
        (
            'correlate',
            ((1, 2, 3, 5, 5), (1, 2, 4, 5, 5)),
            r'query must have sizes \[1, 2, 4, 5, 5\], got',
        ),
        (
            'scatter',
            ((1, 2, 4, 5, 5), (1, 2, 8, 5, 5), [5, 5]),
            r'weight must have sizes \[1, 2, 9, 5, 5\], got',
        ),
        (
            'scatter',
            ((1, 2, 4, 5, 5), (1, 2, 9, 5, 5), [6, 5]),
            r'grad must have sizes \[1, 2, 4, 6, 5\], got',
        ),
        (
            'involution',
            ((1, 2, 4, 5, 5), (1, 3, 5, 4), (18, 3), None),
            r'hidden must have sizes \[1, 3, 5, 5\], got',
        ),
        (
            'involution',
            ((1, 2, 4, 5, 5), (1, 3, 5, 5), (17, 3), None),
            r'weight must have sizes \[18, 3\], got',
        ),
        (
            'involution',
            ((1, 2, 4, 5, 5), (1, 3, 5, 5), (18, 3), (9,)),
            r'bias must have sizes \[18\], got',
        ),
        (
            'involution_affine',
            ((1, 2, 4, 5, 5), (1, 3, 5, 5), (18, 3), None, (8,), (4,), True),
            'shift must have sizes',
        ),
        (
            'involution_affine',
            ((1, 2, 4, 5, 5), (1, 3, 5, 5), (18, 3), None, (4,), (8,), True),
            'scale must have sizes',
        ),
        (
            'involution_backward',
            ((1, 2, 4, 4, 5), (1, 2, 4, 5, 5), (1, 3, 5, 5), (18, 3), None),
            r'grad must have sizes',
        ),
        (
            'attention',
            ((1, 2, 4, 5, 5), (1, 2, 4, 5, 5), (1, 2, 4, 4, 5), None, None, None),
            r'value must have sizes',
        ),
        (
            'attention',
            ((1, 2, 4, 5, 5),) * 3 + ((2, 2, 2), (2, 2, 3), None),
            r'rows must have sizes \[2, 2, 3\], got',
        ),
        (
            'attention',
            ((1, 2, 4, 5, 5),) * 3 + ((2, 2, 3), None, None),
            'rows and columns must be given together',
        ),
        (
            'attention',
            ((1, 2, 4, 5, 5),) * 3 + (None, None, (2, 8)),
            r'bias must have sizes \[2, 9\], got',
        ),
        (
            'attention_backward',
            ((1, 2, 3, 5, 5), (1, 2, 5, 5)) + ((1, 2, 4, 5, 5),) * 3 + (None,) * 3,
            'grad must have sizes',
        ),
    ],
)
def test_calls_that_nobody_has_checked(name, arguments, message):
    # a tensor for each shape; lists are sizes
    given = [
        torch.ones(argument) if isinstance(argument, tuple) else argument for argument in arguments
    ]
    with pytest.raises(ValueError, match=message):
        getattr(native, name)(*given, list(Window(3)))


@built
@pytest.mark.parametrize(
    ('window', 'message'),
    [
        ([3], 'window must have 8 numbers, got 1'),
        (
            [3, 3, 1, 1, 1, 0, 1, 1],
            r'dilation \(columns\) of the window must lie between 1 and .* got 0',
        ),
        (
            [3, 3, 1, 1, 2**61, 1, 1, 1],
            r'dilation \(rows\) of the window must lie between 1 and .* got 23058430092136939',
        ),
        (
            [3, 3, 1, 1, 1, 1, 1, -1],
            r'padding \(columns\) of the window must lie between 0 and .* got -1',
        ),
        ([7, 7, 1, 1, 1, 1, 0, 0], 'the window must fit into the padded map'),
    ],
)
def test_windows_that_nobody_has_checked(window, message):
    x = torch.ones(1, 1, 2, 5, 5)
    with pytest.raises(ValueError, match=message):
        native.correlate(x, x, window)


@built
@pytest.mark.parametrize('size', [(9, 0), (0, 9), (0, 0)])
@pytest.mark.parametrize('layout', ['planar', 'last'])
def test_maps_without_positions(size, layout):
    # what was computed before leaves numbers in the memory that comes next
    full = torch.randn(1, 2, 8, 9, 40)
    window = Window((6, 3), padding=(3, 4))
    for _ in range(20):
        native.correlate(full, full, Window(7))
        native.attention(full, full, full, None, None, None, Window(7))
        value = laid_out(layout, 1, 2, 8, *size, torch.float32)
        outputs = window.output_size(*size)
        query, weight, hidden = (
            torch.ones(1, *channels, *outputs) for channels in ((2, 8), (2, 18), (5,))
        )
        assert not native.aggregate(value, weight, window).any()
        assert not native.correlate(query, value, window).any()
        assert native.scatter(query, weight, size, window).shape == value.shape
        assert not native.involution(value, hidden, torch.ones(36, 5), None, window).any()
        result, logsumexp = native.attention(query, value, value, None, None, None, window)
        assert not result.any()
        assert (logsumexp == -torch.inf).all()


@built
@pytest.mark.parametrize('channels', [(0, 4), (4, 0), (0, 0)])
def test_gradients_without_channels(channels):
    query, key, value = (
        torch.randn(2, 3, depth, 5, 6, requires_grad=True) for depth in (channels[0], *channels)
    )
    result = attention.attention(query, key, value, None, None, None, list(Window(3)))[0]
    grads = torch.autograd.grad(result.sum(), (query, key, value))
    for grad, tensor in zip(grads, (query, key, value), strict=True):
        assert grad.shape == tensor.shape
    # without a query every neighbour weighs the same, and the weights of a position sum to one
    assert not grads[0].any()
    if not channels[0]:
        torch.testing.assert_close(grads[2].sum((3, 4)), torch.full((2, 3, channels[1]), 30.0))
