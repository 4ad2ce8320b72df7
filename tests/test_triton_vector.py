"""The Triton kernels of vector attention against the definition in float64: on a GPU, or in
Triton's interpreter where there is none.
"""

import pytest
import torch
from test_triton import DEVICE, close, promised, random
from torch._subclasses.fake_tensor import FakeTensorMode

from mmrednet.ops import Window, _torch, _triton, dispatch, vector_mapping
from mmrednet.ops import vector_attention as operator
from mmrednet.ops.vector_relations import find_relation

pytest.importorskip('triton')
from mmrednet.ops._triton import vector_attention as fused  # noqa: E402
from mmrednet.ops._triton import vector_pairwise_backward, vector_patchwise_backward  # noqa: E402
from mmrednet.ops._triton.vector_folds import fold  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore:.*encountered:RuntimeWarning')


@pytest.fixture(autouse=True)
def _poison():
    """Fill memory that a kernel is given to write with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _few_groups(monkeypatch):
    """Let programs sum over several tiles, also those of small maps."""
    for module in (vector_pairwise_backward, vector_patchwise_backward):
        monkeypatch.setattr(module, 'TILE_GROUPS', 2)


def map_of(layout, channels, size, dtype):
    """Return a map (2, C, H, W)."""
    return random(layout, 2, 1, channels, *size, dtype=dtype)[:, 0]


def inputs_of(window, size, relation, layout, dtype, channels=3, hidden=5, groups=2, depth=3):
    """Return the arguments of the op, with parameters of norms in float32 as layers have them."""
    name, patchwise = relation
    places = 0 if patchwise else 2
    count = find_relation(name, patchwise).feature_count(channels, window.taps) + places
    outputs = groups * window.taps if patchwise else groups
    shapes = (
        (count,),
        (count,),
        (hidden, count),
        (hidden,),
        (hidden,),
        (outputs, hidden),
        (outputs,),
    )
    gamma = [torch.randn(shape, device=DEVICE) for shape in shapes]
    tensors = [
        map_of(layout, channels + places, window.output_size(*size), dtype),
        map_of(layout, channels + places, size, dtype),
        map_of(layout, groups * depth, size, dtype),
        *(x.to(dtype) if index in (2, 5, 6) else x for index, x in enumerate(gamma)),
    ]
    return tensors, (name, patchwise, places, list(window))


SUBTRACTION, SUMMATION = ('subtraction', False), ('summation', False)
HADAMARD, PATCHWISE = ('hadamard', False), ('concatenation', True)
CASES = {
    'subtraction': (Window((1, 3)), (2, 3), SUBTRACTION, 'planar', torch.float32, {}),
    'summation': (Window((3, 1), 2, 2), (3, 2), SUMMATION, 'last', torch.float32, {}),
    'hadamard': (Window((1, 2), padding=0), (1, 4), HADAMARD, 'interleaved', torch.bfloat16, {}),
    'chunks of hidden features': (
        Window((1, 3)),
        (1, 2),
        SUBTRACTION,
        'strided',
        torch.float32,
        dict(channels=17, hidden=37, groups=17, depth=1),
    ),
    'larger than the map': (Window((1, 7)), (1, 2), SUBTRACTION, 'last', torch.float16, {}),
    'several tiles': (Window((1, 3), (1, 4)), (1, 70), SUBTRACTION, 'last', torch.float32, {}),
    'patchwise': (Window((1, 3)), (2, 3), PATCHWISE, 'planar', torch.float32, {}),
    'patchwise, stride': (Window((3, 1), 2, 2), (3, 2), PATCHWISE, 'last', torch.bfloat16, {}),
    'patchwise, no padding': (
        Window((1, 2), padding=0),
        (1, 70),
        PATCHWISE,
        'interleaved',
        torch.float16,
        {},
    ),
    'patchwise, larger than the map': (
        Window((1, 7)),
        (1, 2),
        PATCHWISE,
        'strided',
        torch.float32,
        dict(channels=17, hidden=18, groups=17, depth=1),
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_vector_attention(case):
    window, size, relation, layout, dtype, sizes = CASES[case]
    tensors, options = inputs_of(window, size, relation, layout, dtype, **sizes)
    assert fused.reasons_against_attention(*tensors, *options) == []
    value, wide = tensors[2], [tensor.double() for tensor in tensors]
    expected = operator.definition(*wide, *options)
    got = fused.attention(*tensors, *options)
    close(got, expected, dtype, _torch.empty_in_layout_of(value, expected.shape, dtype))

    grad = torch.randn(expected.shape, device=DEVICE).to(dtype)
    expected = operator.gradients(grad.double(), *wide, *options)
    results = fused.attention_backward(grad, *tensors, *options)
    strides = promised(operator.attention_backward, grad, *tensors, *options)
    assert [result.stride() for result in results] == strides
    # a softmax does not change with a shift of all logits
    count = 10 if relation[1] else 9
    for result, reference, tensor in zip(results[:count], expected, tensors, strict=False):
        # gradients of weights are sums of what was rounded to half precision, and cancels
        error = (result.double() - reference).norm() / reference.norm().clamp_min(1e-9)
        limit = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        assert result.dtype == tensor.dtype
        assert error < limit
    if not relation[1]:
        assert results[9].abs().max() < 0.1 * grad.float().norm()


@pytest.mark.parametrize('relation', [SUBTRACTION, PATCHWISE])
def test_no_images(relation):
    tensors, options = inputs_of(Window(3), (3, 4), relation, 'planar', torch.float32)
    empty = [tensor[:0] if tensor.dim() == 4 else tensor for tensor in tensors]
    result = fused.attention(*empty, *options)
    assert result.shape == (0, 6, 3, 4)
    grads = fused.attention_backward(result, *empty, *options)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in empty]
    assert all(float(grad.abs().sum()) == 0 for grad in grads)


@pytest.mark.parametrize('padding', [0, 1, 3, 11])
@pytest.mark.parametrize('length', [1, 2, 4])
def test_fold_is_the_adjoint_of_reflection(length, padding):
    size = length + 2 * padding
    x = torch.randn(2, size, 3, dtype=torch.float64)
    positions = []
    for position in range(-padding, length + padding):
        while not 0 <= position < length:
            position = abs(position) if position < 0 else 2 * (length - 1) - position
            position = 0 if length == 1 else position
        positions.append(position)
    expected = x.new_zeros(2, length, 3).index_add_(1, torch.tensor(positions), x)
    torch.testing.assert_close(fold(x, 1, length, padding), expected)


def test_fold_of_an_axis_that_ends_before_the_map():
    x = torch.randn(2, 3, 1)
    expected = torch.cat([x[:, 1:2], x[:, :1] + x[:, 2:], torch.zeros(2, 4, 1)], 1)
    assert torch.equal(fold(x, 1, 6, 1), expected)


REASONS = {
    'float64': (dict(), SUBTRACTION, torch.float64, 'float64 (query, key, value, weight1, weight2'),
    'channels': (dict(channels=129), SUBTRACTION, torch.float32, 'more than 128 channels of a rel'),
    'hidden': (dict(hidden=513), SUBTRACTION, torch.float32, 'more than 512 hidden features, 513'),
    'groups': (dict(groups=65), PATCHWISE, torch.float32, 'more than 64 groups, 65'),
    'values': (dict(groups=16, depth=65), SUBTRACTION, torch.float32, 'more than 1024 channels of'),
    'dot_product': (dict(), ('dot_product', False), torch.float32, 'the pairwise relation dot_pro'),
}


@pytest.mark.parametrize('case', REASONS)
def test_what_does_not_fit_is_composed_and_said(case, monkeypatch, caplog):
    sizes, relation, dtype, reason = REASONS[case]
    monkeypatch.setattr(dispatch, '_logged', set())
    # several chunks, which are computed again in the backward pass
    monkeypatch.setattr(vector_mapping, 'CHUNK_BUDGET', 1)
    tensors, options = inputs_of(Window((1, 3)), (2, 3), relation, 'planar', dtype, **sizes)
    forward, backward = (
        _triton._imported_late('vector_attention', name, fallback)
        for name, fallback in (
            ('attention', operator.dense_definition),
            ('attention_backward', operator.gradients),
        )
    )
    leaves = [tensor.requires_grad_() for tensor in tensors]
    expected = operator.definition(*leaves, *options)
    grad = torch.randn_like(expected)
    # as in the body of a custom op
    with torch._C._AutoDispatchBelowAutograd(), caplog.at_level('WARNING', 'mmrednet'):
        assert torch.equal(forward(*tensors, *options), expected)
        grads = backward(grad, *tensors, *options)
    assert reason in caplog.messages[0]
    references = torch.autograd.grad(expected, leaves, grad)
    for result, reference in zip(grads, references, strict=True):
        torch.testing.assert_close(result, reference)


@pytest.mark.parametrize('patchwise', [False, True])
def test_every_relation_says_whether_it_has_a_kernel(patchwise, monkeypatch, caplog):
    """Without a GPU: the choice looks at nothing but the device and the options."""
    monkeypatch.setattr(dispatch, '_logged', set())
    monkeypatch.setitem(dispatch.unavailable, 'triton', None)
    with FakeTensorMode():
        query = torch.empty(1, 4, 3, 3, device='cuda')
    names = ('concatenation', 'hadamard', 'star_product', 'subtraction', 'summation')
    expected = ['concatenation'] if patchwise else ['hadamard', 'subtraction', 'summation']
    for family in ('vector_attention', 'vector_moments'):
        kernels = []
        for name in names:
            options = vector_mapping.Options(name, patchwise, 0, list(Window(3)))
            if vector_mapping.has_kernel(family, query, options):
                kernels.append(name)
        assert kernels == expected
    assert len(caplog.messages) == 2 * (len(names) - len(expected))


def test_the_dispatcher_knows_them():
    for name in ('vector_attention', 'vector_attention_backward'):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f'mmrednet::{name}', 'CUDA')
