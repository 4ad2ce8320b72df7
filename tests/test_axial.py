"""Axial attention as one operator against its plain composition: values, gradients of both orders,
chunks, layers.
"""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.layers.axial import AxialAttention1d
from mmrednet.ops import axial, axial_attention, axial_definition, axial_moments

LINES, HEADS, KEYS, VALUES = 3, 2, 2, 3
CASES = {
    'all': dict(length=5, table=8),
    'beyond the table': dict(length=7, table=3),
    'one distance': dict(length=4, table=1),
    'span': dict(length=6, table=4, span=3),
    'content': dict(length=5, table=4, terms=('query_key',), value_position=False),
    'positions': dict(length=5, table=5, terms=('query_position', 'key_position')),
}


def problem(length, table, terms=axial.TERMS, **options):
    """Return the six tensors and the other arguments."""
    qkv = torch.randn(LINES, HEADS, 2 * KEYS + VALUES, length, dtype=torch.float64)
    shapes = (2 * KEYS + VALUES, 2 * table - 1), (len(terms), HEADS), (len(terms), HEADS)
    tensors = [
        *qkv.split([KEYS, KEYS, VALUES], 2),
        *(torch.randn(shape, dtype=torch.float64) for shape in shapes),
    ]
    return tensors, dict(terms=terms, **options)


def plain(tensors, options):
    """Attend position by position."""
    query, key, value, relative, scale, shift = tensors
    length, end, span = query.shape[3], relative.shape[1] // 2, options.get('span')
    by_query, by_key, by_value = relative.split([KEYS, KEYS, VALUES])

    def entry(table, distance):
        return table[:, max(-end, min(end, distance)) + end]

    columns = []
    for i in range(length):
        positions = [m for m in range(length) if span is None or abs(i - m) <= span // 2]
        logits = []
        for m in positions:
            terms = {
                'query_key': (query[..., i] * key[..., m]).sum(2),
                'query_position': (query[..., i] * entry(by_query, i - m)).sum(2),
                'key_position': (key[..., m] * entry(by_key, m - i)).sum(2),
            }
            logits.append(
                sum(
                    terms[name] * scale[index] + shift[index]
                    for index, name in enumerate(options['terms'])
                )
            )
        weights = torch.stack(logits).softmax(0)
        parts = [
            sum(w[:, :, None] * value[..., m] for w, m in zip(weights, positions, strict=True))
        ]
        if options.get('value_position', True):
            parts.append(
                sum(
                    w[:, :, None] * entry(by_value, i - m)
                    for w, m in zip(weights, positions, strict=True)
                )
            )
        columns.append(torch.stack(parts, 3))
    return torch.stack(columns, 4)


@pytest.mark.parametrize('budget', [1, 1 << 20])
@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients(case, budget):
    tensors, options = problem(**CASES[case])
    tensors = [tensor.requires_grad_() for tensor in tensors]
    got, expected = (
        axial_attention(*tensors, **options, logits_budget=budget),
        plain(tensors, options),
    )
    torch.testing.assert_close(got, expected)
    for have, want in zip(
        torch.autograd.grad(got.sin().sum(), tensors),
        torch.autograd.grad(expected.sin().sum(), tensors, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(have, torch.zeros_like(have) if want is None else want)


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_both_passes_stay_within_their_budget():
    """No tensor of all logits, nor one of all terms of a chunk; tables and lines themselves are
    smaller here.
    """
    lines, heads, length, budget = 40, 3, 24, 20_000
    qkv = torch.randn(lines, heads, 2 * KEYS + VALUES, length).split([KEYS, KEYS, VALUES], 2)
    inputs = [*qkv, torch.randn(2 * KEYS + VALUES, 47), torch.rand(3, heads), torch.rand(3, heads)]
    size = axial_definition.chunk_size(qkv[0], budget)
    assert size == 20_000 // (axial_definition.LIVE * 3 * 24**2) == 2
    grad = torch.randn(lines, heads, VALUES, 2, length)
    for call in (
        lambda: axial_definition.definition(*inputs, [0, 1, 2], 0, True, budget),
        lambda: axial_definition.gradients(grad, *inputs[:5], [0, 1, 2], 0, True, budget),
    ):
        with Largest() as largest:
            call()
        assert largest.numel <= max(size * heads * length**2, grad.numel())


def test_the_budget_of_a_large_map():
    """Of hundreds of lines of 168 in eight heads, few at once."""
    lines = torch.empty(200, 8, 8, 168, device='meta')
    assert axial_definition.chunk_size(lines, axial_definition.default_budget(lines)) == 14


@pytest.mark.parametrize('case', ['all', 'beyond the table', 'positions'])
def test_gradients_of_both_orders(case):
    tensors, options = problem(**CASES[case])
    tensors = [tensor.requires_grad_() for tensor in tensors]
    function = lambda *inputs: axial_attention(*inputs, **options, logits_budget=60)  # noqa: E731
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


def test_registration():
    tensors, _ = problem(**CASES['span'])
    *qkv, relative, scale, shift = (tensor.requires_grad_() for tensor in tensors)
    lines = torch.cat(qkv, 2).unsqueeze(3)
    for position_scale in (None, torch.randn(HEADS, VALUES, dtype=torch.float64)):
        inputs = (lines, relative, scale, shift, position_scale)
        opcheck(axial.attention.op, (*inputs, KEYS, [0, 1, 2], 3, True, 60))
    opcheck(axial_moments.moments.op, (lines, relative, KEYS, [0, 1, 2], 3, 60))


def test_flops():
    tensors, options = problem(**CASES['all'])
    with FlopCounterMode(display=False) as count:
        axial_attention(*tensors, **options)
    assert count.get_total_flops() == 2 * LINES * HEADS * 25 * (3 * KEYS + 2 * VALUES)
    tensors, options = problem(**CASES['span'])
    with FlopCounterMode(display=False) as count:
        axial_attention(*tensors, **options)
    # six positions, of which two have one neighbour and four have two
    assert count.get_total_flops() == 2 * LINES * HEADS * 16 * (3 * KEYS + 2 * VALUES)


@pytest.mark.parametrize(
    'arguments', [dict(), dict(span=3), dict(terms=('query_key',), value_position=False)], ids=str
)
def test_a_layer_with_a_fixed_norm_equals_its_parts(arguments):
    """One operator, or the layer's own logits and their norm as a module: the same numbers and
    gradients.
    """
    layer = (
        AxialAttention1d(8, 16, num_heads=2, axis='width', table_size=4, **arguments)
        .double()
        .train()
    )
    x = torch.randn(2, 8, 3, 7, dtype=torch.float64, requires_grad=True)
    layer(x)
    layer.eval()
    result = layer(x)
    gradients = torch.autograd.grad(result.sin().sum(), [x, *layer.parameters()])
    layer.attend = layer.attend_by_modules
    expected = layer(x)
    torch.testing.assert_close(result, expected)
    expected_gradients = torch.autograd.grad(
        expected.sin().sum(), [x, *layer.parameters()], allow_unused=True
    )
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            gradient, torch.zeros_like(gradient) if expected_gradient is None else expected_gradient
        )


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('change', ['hook', 'SyncBatchNorm'])
@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(span=3),
        dict(terms=('query_key',), value_position=False),
        dict(logits_budget=1),
    ],
    ids=str,
)
def test_a_norm_of_the_logits_that_has_to_be_called(arguments, change, training):
    plain = AxialAttention1d(8, 16, num_heads=2, axis='width', table_size=4, **arguments).double()
    x = torch.randn(2, 8, 3, 7, dtype=torch.float64, requires_grad=True)
    plain(x)
    called, calls = copy.deepcopy(plain), []
    if change == 'hook':
        called.bn_similarity.register_forward_hook(lambda *_: calls.append(1))
    else:
        called = nn.SyncBatchNorm.convert_sync_batchnorm(called)
    results = []
    for layer in (plain.train(training), called.train(training)):
        result = layer(x)
        leaves = [x, *layer.parameters()]
        gradients = torch.autograd.grad(result.sin().sum(), leaves, materialize_grads=True)
        results.append([result, *gradients, *layer.buffers()])
    assert bool(calls) == (change == 'hook')
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)


def test_autocast_keeps_the_norm():
    tensors, options = problem(**CASES['all'])
    tensors = [tensor.float() for tensor in tensors]
    with torch.autocast('cpu', torch.bfloat16):
        result = axial_attention(*tensors, **options)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(
        result.float(), axial_attention(*tensors, **options), atol=0.1, rtol=0.05
    )


@pytest.mark.parametrize(
    ('position', 'change', 'message'),
    [
        (1, lambda x: x[..., 1:], 'key must be of the shape of query'),
        (2, lambda x: x[..., 1:], 'value must be'),
        (3, lambda x: x[:, 1:], r'relative must be \(2 \* key channels \+ value channels, odd\)'),
        (4, lambda x: x[1:], r'scale must be \(terms, heads\), \(3, 2\), got'),
        (0, lambda x: x[0], '4 dimensions'),
    ],
)
def test_bad_input(position, change, message):
    tensors, options = problem(**CASES['all'])
    tensors[position] = change(tensors[position])
    with pytest.raises(ValueError, match=message):
        axial_attention(*tensors, **options)


def test_bad_terms():
    tensors, _ = problem(**CASES['all'])
    with pytest.raises(ValueError, match='terms must be some of'):
        axial_attention(*tensors, terms=('key_position', 'query_key'))


@pytest.mark.parametrize(
    ('span', 'error', 'message'),
    [
        (0, ValueError, 'span must be at least 1, or None for whole lines, got span=0'),
        (-3, ValueError, 'span must be at least 1, or None for whole lines, got span=-3'),
        (2.5, TypeError, 'span must be an int or None, got span=2.5'),
        (True, TypeError, 'span must be an int or None, got span=True'),
    ],
)
def test_bad_spans(span, error, message):
    tensors, options = problem(**CASES['all'])
    with pytest.raises(error, match=message):
        axial_attention(*tensors, **{**options, 'span': span})


def test_empty_lines():
    tensors, options = problem(**CASES['all'])
    lines = [tensor[..., :0] for tensor in tensors[:3]]
    message = r'query must have at least one head, channel and position, got .*, 0\)'
    with pytest.raises(ValueError, match=message):
        axial_attention(*lines, *tensors[3:], **options)
    none = [tensor[:0] for tensor in tensors[:3]]
    assert axial_attention(*none, *tensors[3:], **options).shape[0] == 0


@pytest.mark.parametrize(('position', 'name'), [(1, 'key'), (2, 'value'), (3, 'relative')])
def test_mixed_dtypes(position, name):
    tensors, options = problem(**CASES['all'])
    tensors[position] = tensors[position].float()
    message = f'{name} must have the dtype of query, torch.float64, got torch.float32'
    with pytest.raises(TypeError, match=message):
        axial_attention(*tensors, **options)


@pytest.mark.parametrize(('position', 'name'), [(4, 'scale'), (5, 'shift')])
def test_bad_norms(position, name):
    tensors, options = problem(**CASES['all'])
    tensor = tensors[position]
    for value, got in ((None, 'NoneType'), (tensor.long(), 'torch.int64')):
        tensors[position] = value
        with pytest.raises(TypeError, match=f'{name} must be a floating-point tensor, got {got}'):
            axial_attention(*tensors, **options)
    tensors[position] = tensor.to('meta')
    with pytest.raises(ValueError, match=f'query and {name} must be on one device, got cpu and'):
        axial_attention(*tensors, **options)
