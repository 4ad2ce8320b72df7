"""The Triton kernels of vector attention's statistics against the definition in float64: on a GPU,
or in Triton's interpreter where there is none.
"""

import pytest
import torch
from test_triton import DEVICE, promised
from test_triton_vector import HADAMARD, PATCHWISE, SUBTRACTION, SUMMATION, inputs_of

from mmrednet.ops import Window, _triton, dispatch, vector_mapping
from mmrednet.ops import vector_moments as operator

pytest.importorskip('triton')
from mmrednet.ops._triton import vector_moments as fused  # noqa: E402
from mmrednet.ops._triton import vector_pair_moments, vector_patch_moments  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore:.*encountered:RuntimeWarning')
# of products of half precision on a GPU
LIMITS = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def _poison():
    """Fill memory that a kernel is given to write with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _few_groups(monkeypatch):
    """Let programs sum over several tiles, also those of small maps."""
    for module in (vector_pair_moments, vector_patch_moments):
        monkeypatch.setattr(module, 'TILE_GROUPS', 2)


def arguments_of(window, size, relation, layout, dtype, has_layer, **sizes):
    tensors, options = inputs_of(window, size, relation, layout, dtype, **sizes)
    layer = tensors[3:6] if has_layer else [None] * 3
    return [*tensors[:2], *layer], options


def double(tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def error_of(result, reference):
    return float((result.double() - reference).norm() / reference.norm().clamp_min(1e-9))


CASES = {
    'subtraction': (Window((1, 3)), (3, 5), SUBTRACTION, 'planar', torch.float32, {}),
    'summation': (Window((3, 1), 2, 2), (5, 3), SUMMATION, 'last', torch.float32, {}),
    'hadamard': (Window((1, 2), padding=0), (1, 4), HADAMARD, 'interleaved', torch.bfloat16, {}),
    'chunks of hidden features': (
        Window((1, 3)),
        (1, 2),
        SUBTRACTION,
        'strided',
        torch.float32,
        dict(channels=17, hidden=37),
    ),
    'larger than the map': (Window((1, 7)), (1, 2), HADAMARD, 'last', torch.float16, {}),
    'several tiles': (Window((1, 3), (1, 4)), (1, 140), SUBTRACTION, 'last', torch.float32, {}),
    'patchwise': (Window((1, 3)), (3, 5), PATCHWISE, 'planar', torch.float32, {}),
    'patchwise, stride': (Window((3, 1), 2, 2), (5, 3), PATCHWISE, 'last', torch.bfloat16, {}),
    'patchwise, several tiles': (
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
        dict(channels=17, hidden=18),
    ),
}


@pytest.mark.parametrize('has_layer', [False, True], ids=['features', 'hidden'])
@pytest.mark.parametrize('case', CASES)
def test_moments(case, has_layer):
    window, size, relation, layout, dtype, sizes = CASES[case]
    tensors, options = arguments_of(window, size, relation, layout, dtype, has_layer, **sizes)
    assert fused.reasons_against_moments(*tensors, *options) == []
    mean, variance = fused.moments(*tensors, *options)
    wide = double(tensors)
    for result, reference in zip(
        (mean, variance), operator.definition(*wide, *options), strict=True
    ):
        assert result.dtype == torch.float32
        assert result.is_contiguous()
        assert error_of(result, reference) < LIMITS[dtype]

    grads = torch.randn(2, len(mean), device=DEVICE)
    expected = operator.gradients(*grads.double(), mean.double(), *wide, *options)
    results = fused.moments_backward(*grads, mean, *tensors, *options)
    strides = promised(operator.moments_backward, *grads, mean, *tensors, *options)
    assert [result.stride() for result in results] == strides
    for result, reference, tensor in zip(results, expected, tensors, strict=True):
        if tensor is None:
            assert result.numel() == 0
            continue
        assert result.dtype == tensor.dtype
        assert error_of(result, reference) < LIMITS[dtype]


@pytest.mark.parametrize('has_layer', [False, True], ids=['features', 'hidden'])
@pytest.mark.parametrize('relation', [SUMMATION, PATCHWISE])
def test_a_variance_far_from_zero(relation, has_layer):
    tensors, options = arguments_of(
        Window((1, 3)), (2, 40), relation, 'last', torch.float32, has_layer
    )
    tensors[:2] = (tensor + 3000 for tensor in tensors[:2])
    if has_layer:
        # norm and ReLU leave the features as they are
        tensors[2], tensors[3] = torch.ones_like(tensors[2]), torch.zeros_like(tensors[3])
        tensors[4] = tensors[4].abs()
    _, variance = fused.moments(*tensors, *options)
    _, expected = operator.definition(*double(tensors), *options)
    # E[x^2] - E[x]^2 in float32 would have an error of a few units; hidden features are sums of
    # several such features
    assert error_of(variance, expected) < (1e-3 if has_layer else 1e-4)


@pytest.mark.parametrize('has_layer', [False, True], ids=['features', 'hidden'])
@pytest.mark.parametrize('relation', [SUBTRACTION, PATCHWISE])
def test_no_images(relation, has_layer):
    tensors, options = arguments_of(Window(3), (3, 4), relation, 'planar', torch.float32, has_layer)
    tensors[:2] = (tensor[:0] for tensor in tensors[:2])
    mean, variance = fused.moments(*tensors, *options)
    assert bool(mean.isnan().all() and variance.isnan().all())
    grads = torch.ones(2, len(mean), device=DEVICE)
    results = fused.moments_backward(*grads, mean, *tensors, *options)
    for result, tensor in zip(results, tensors, strict=True):
        assert result.shape == (0,) if tensor is None else result.shape == tensor.shape
        assert float(result.abs().sum()) == 0


REASONS = {
    'float64': ({}, SUBTRACTION, torch.float64, 'float64 (query, key, scale, shift, weight'),
    'hidden': (dict(hidden=65), PATCHWISE, torch.float32, 'more than 64 hidden features, 65'),
    'channels': (dict(channels=129), SUBTRACTION, torch.float32, 'more than 128 channels of a rel'),
}


@pytest.mark.parametrize('case', REASONS)
def test_what_does_not_fit_is_composed_and_said(case, monkeypatch, caplog):
    sizes, relation, dtype, reason = REASONS[case]
    monkeypatch.setattr(dispatch, '_logged', set())
    # several chunks, which are computed again in the backward pass
    monkeypatch.setattr(vector_mapping, 'CHUNK_BUDGET', 1)
    tensors, options = arguments_of(
        Window((1, 3)), (2, 3), relation, 'planar', dtype, True, **sizes
    )
    if dtype == torch.float64:
        tensors = double(tensors)
    forward = _triton._imported_late('vector_moments', 'moments', operator.definition)
    backward = _triton._imported_late('vector_moments', 'moments_backward', operator.gradients)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    expected = operator.definition(*leaves, *options)
    grads = [torch.randn_like(part) for part in expected]
    # as in the body of a custom op
    with torch._C._AutoDispatchBelowAutograd(), caplog.at_level('WARNING', 'mmrednet'):
        results = forward(*tensors, *options)
        layer_grads = backward(*grads, expected[0], *tensors, *options)
    assert all(torch.equal(part, other) for part, other in zip(results, expected, strict=True))
    assert reason in caplog.messages[0]
    references = torch.autograd.grad(expected, leaves, grads)
    for result, reference in zip(layer_grads, references, strict=True):
        torch.testing.assert_close(result, reference)


def test_the_dispatcher_knows_them():
    for name in ('vector_moments', 'vector_moments_backward'):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f'mmrednet::{name}', 'CUDA')
