"""Vector attention as one function, and the statistics of its norms, against literal loops."""

import logging
import re
from pathlib import Path

import oracles
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from mmrednet import fuse, ops
from mmrednet.layers import SANPairwise, SANPatchwise
from mmrednet.ops import (
    Gamma,
    Window,
    _native,
    local_vector_attention,
    vector_mapping,
    vector_statistics,
)
from mmrednet.ops.vector_attention import attention, attention_backward, definition
from mmrednet.ops.vector_moments import definition as moments_definition
from mmrednet.ops.vector_moments import moments, moments_backward
from mmrednet.ops.vector_relations import PAIRWISE, PATCHWISE, find_relation

ROOT = Path(__file__).parents[1]
built = pytest.mark.skipif(bool(_native.MISSING), reason=str(_native.MISSING))
NATIVE = [(name, patchwise) for patchwise, names in vector_mapping.NATIVE.items() for name in names]
ALL = [*((name, False) for name in PAIRWISE), *((name, True) for name in PATCHWISE)]
WINDOWS = {
    'k1': (Window(1), (4, 3)),
    'k3': (Window(3), (3, 18)),
    'k3_stride2_dilation2': (Window(3, 2, 2), (7, 5)),
    'k5x3_stride3': (Window((5, 3), 3), (4, 11)),
    'k7_larger_than_map': (Window(7), (2, 3)),
    'k3_large_stride': (Window(3, 4), (9, 13)),
    'k3_large_dilation': (Window(3, 1, 30), (5, 4)),
    'one_position': (Window(3), (1, 1)),
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


def make_inputs(window, size, relation, patchwise, channels=3, groups=2, depth=3, batch=2):
    """Return query, key, value and the seven parameters of gamma, and the options of the ops."""
    positions = 0 if patchwise else 2
    count = find_relation(relation, patchwise).feature_count(channels, window.taps) + positions
    outputs = groups * window.taps if patchwise else groups
    shapes = [
        (batch, channels + positions, *window.output_size(*size)),
        (batch, channels + positions, *size),
        (batch, groups * depth, *size),
        *((count,), (count,), (5, count), (5,), (5,), (outputs, 5), (outputs,)),
    ]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return tensors, (relation, patchwise, positions, list(window))


def call(tensors, options):
    query, key, value, *gamma = tensors
    relation, patchwise, positions, window = options
    return local_vector_attention(
        query,
        key,
        value,
        Gamma(*gamma),
        Window.from_flat(window),
        relation=relation,
        patchwise=patchwise,
        position_channels=positions,
    )


def statistics(tensors, options, has_layer=True):
    relation, patchwise, positions, window = options
    return vector_statistics(
        tensors[0],
        tensors[1],
        Window.from_flat(window),
        relation=relation,
        patchwise=patchwise,
        position_channels=positions,
        first_layer=tuple(tensors[3:6]) if has_layer else None,
    )


def reflected(position, length):
    while not 0 <= position < length:
        position = -position if position < 0 else 2 * (length - 1) - position
        if length == 1:
            return 0
    return position


def literal_features(query, key, options, y, x):
    """Return the neighbours of an output, and the features (B, F) of each or of all of them."""
    relation, patchwise, positions, numbers = options
    window = Window.from_flat(numbers)
    places = []
    for u in range(window.kernel[0]):
        for v in range(window.kernel[1]):
            row = y * window.stride[0] + u * window.dilation[0] - window.padding[0]
            column = x * window.stride[1] + v * window.dilation[1] - window.padding[1]
            places.append((reflected(row, key.shape[2]), reflected(column, key.shape[3])))
    count = query.shape[1] - positions
    centre, keys = query[..., y, x], [key[..., row, column] for row, column in places]
    q, ks = centre[:, :count], [k[:, :count] for k in keys]
    if patchwise:
        features = {
            'concatenation': lambda: torch.cat([q, torch.stack(ks, 2).flatten(1)], 1),
            'star_product': lambda: torch.stack([(q * k).sum(1) for k in ks], 1),
            'clique_product': lambda: torch.stack([(a * b).sum(1) for a in ks for b in ks], 1),
        }[relation]
        return places, [features()]
    relate = {
        'subtraction': lambda k: q - k,
        'summation': lambda k: q + k,
        'concatenation': lambda k: torch.cat([q, k], 1),
        'hadamard': lambda k: q * k,
        'dot_product': lambda k: (q * k).sum(1, keepdim=True),
    }[relation]
    offsets = [centre[:, count:] - k[:, count:] for k in keys]
    return places, [
        torch.cat([relate(k), offset], 1) for k, offset in zip(ks, offsets, strict=True)
    ]


def literal(tensors, options):
    query, key, value, scale1, shift1, weight1, scale2, shift2, weight2, bias2 = tensors
    result = value.new_zeros(*value.shape[:2], *query.shape[2:])
    for y in range(query.shape[2]):
        for x in range(query.shape[3]):
            places, features = literal_features(query, key, options, y, x)
            outputs = []
            for feature in features:
                hidden = (feature * scale1 + shift1).relu() @ weight1.T
                outputs.append((hidden * scale2 + shift2).relu() @ weight2.T + bias2)
            if options[1]:
                weights = outputs[0].unflatten(1, (-1, len(places))).unbind(2)
            else:
                weights = torch.stack(outputs).softmax(0)
            for weight, (row, column) in zip(weights, places, strict=True):
                repeats = value.shape[1] // weight.shape[1]
                result[..., y, x] += weight.repeat(1, repeats) * value[..., row, column]
    return result


def in_layout(tensors, channels_last):
    if not channels_last:
        return tensors
    return [
        tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for tensor in tensors
    ]


@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize(('relation', 'patchwise'), ALL)
def test_values_and_gradients(relation, patchwise, window):
    tensors, options = make_inputs(*WINDOWS[window], relation, patchwise)
    first = 1 if relation == 'clique_product' else 0
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    expected = literal(leaves, options)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves[first:], grad)
    # without gradients, and in both layouts
    torch.testing.assert_close(call(tensors, options), expected)
    for channels_last in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in in_layout(tensors, channels_last)]
        result = call(leaves, options)
        torch.testing.assert_close(result, expected)
        grads = torch.autograd.grad(result, leaves[first:], grad)
        torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('relation', 'patchwise'), NATIVE)
def test_dtypes(relation, patchwise, channels_last, dtype):
    # whole vectors, rows within a vector, and channels of a power of two
    for size, channels, depth in (((5, 37), 16, 8), ((9, 7), 5, 3)):
        window = Window(5)
        tensors, options = make_inputs(
            window, size, relation, patchwise, channels=channels, groups=4, depth=depth
        )
        tensors = [tensor.to(dtype) for tensor in in_layout(tensors, channels_last)]
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        exact = [tensor.double().requires_grad_() for tensor in tensors]
        result, expected = call(leaves, options), definition(*exact, *options)
        assert result.dtype == dtype
        assert result.stride() == leaves[2].new_empty(result.shape).stride() or channels_last
        grad = torch.randn_like(expected).to(dtype)
        results = [result, *torch.autograd.grad(result, leaves, grad)]
        expectations = [expected, *torch.autograd.grad(expected, exact, grad.double())]
        for actual, reference in zip(results, expectations, strict=True):
            error = (actual.double() - reference).abs().max()
            # the gradient of the last bias of a softmax is zero
            assert error <= TOLERANCE[dtype] * reference.abs().max().clamp_min(1)


@pytest.mark.parametrize('has_layer', [False, True])
@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize(('relation', 'patchwise'), ALL)
def test_statistics(relation, patchwise, window, has_layer):
    tensors, options = make_inputs(*WINDOWS[window], relation, patchwise)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    query, key, _, scale, shift, weight, *_ = leaves
    vectors = []
    for y in range(query.shape[2]):
        for x in range(query.shape[3]):
            vectors += literal_features(query, key, options, y, x)[1]
    stored = torch.cat(vectors)
    if has_layer:
        stored = (stored * scale + shift).relu() @ weight.T
    expected = stored.mean(0), stored.var(0, correction=0)
    results = statistics(leaves, options, has_layer)
    torch.testing.assert_close(results, expected)
    used = leaves[1:2] if relation == 'clique_product' else leaves[:2]
    used = used + (leaves[3:6] if has_layer else [])
    grads = [torch.randn_like(mean) for mean in expected]
    torch.testing.assert_close(
        torch.autograd.grad(results, used, grads), torch.autograd.grad(expected, used, grads)
    )


def test_statistics_far_from_zero():
    tensors, options = make_inputs(Window(3), (40, 30), 'summation', False)
    wide = [tensor + 3000 for tensor in tensors[:2]]
    _, variance = statistics([tensor.float() for tensor in wide], options, has_layer=False)
    _, expected = statistics([tensor.float().double() for tensor in wide], options, False)
    # E[x^2] - E[x]^2 in float32 would have an error of a few units
    torch.testing.assert_close(variance.double(), expected, rtol=1e-4, atol=0)


@built
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('patchwise', [False, True])
def test_threads_do_not_matter(patchwise, dtype):
    relation = 'concatenation' if patchwise else 'subtraction'
    tensors, options = make_inputs(Window(3), (40, 23), relation, patchwise, channels=8, batch=3)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            result = call(leaves, options)
            parts = statistics(leaves, options)
            grads = torch.autograd.grad(result.square().sum() + parts[1].sum(), leaves)
            results.append([result, *parts, *grads])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize(('relation', 'patchwise'), NATIVE)
def test_derivatives(relation, patchwise):
    sizes = dict(groups=1, depth=2, batch=1)
    tensors, options = make_inputs(Window(3), (2, 3), relation, patchwise, **sizes)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert gradcheck(lambda *inputs: call(inputs, options), leaves, fast_mode=True)
    assert gradgradcheck(lambda *inputs: call(inputs, options), leaves, fast_mode=True)
    hidden = lambda *inputs: statistics(inputs, options)  # noqa: E731
    assert gradcheck(hidden, leaves[:6], fast_mode=True)
    features = lambda *inputs: statistics(inputs, options, False)  # noqa: E731
    assert gradgradcheck(features, leaves[:6], fast_mode=True)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('relation', 'patchwise'), NATIVE)
def test_fake_tensors(relation, patchwise, channels_last):
    tensors, options = make_inputs(Window(3), (4, 5), relation, patchwise)
    tensors = in_layout(tensors, channels_last)
    checks = ('test_schema', 'test_faketensor')
    opcheck(attention.op, (*tensors, *options), test_utils=checks)
    grad = torch.randn_like(call(tensors, options))
    layer = tensors[3:6]
    if not _native.MISSING:
        opcheck(attention_backward, (grad, *tensors, *options), test_utils=checks)
    for parameters in (layer, [None, None, None]):
        inputs = (*tensors[:2], *parameters, *options)
        opcheck(moments.op, inputs, test_utils=checks)
        mean, variance = moments(*inputs)
        if not _native.MISSING:
            opcheck(moments_backward, (mean, variance, mean, *inputs), test_utils=checks)


@pytest.mark.parametrize(('relation', 'patchwise'), NATIVE)
def test_an_empty_batch(relation, patchwise):
    tensors, options = make_inputs(Window(3), (4, 5), relation, patchwise, batch=0)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    result = call(leaves, options)
    assert result.shape == (0, 6, 4, 5)
    grads = torch.autograd.grad(result.sum(), leaves)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
    assert all(grad.abs().sum() == 0 for grad in grads)
    assert all(part.isnan().all() for part in statistics(leaves, options))


@pytest.mark.parametrize(('relation', 'patchwise'), ALL)
def test_chunks_of_rows(monkeypatch, relation, patchwise):
    tensors, options = make_inputs(Window(3, 2), (9, 5), relation, patchwise)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    used = leaves[1:] if relation == 'clique_product' else leaves

    def run():
        parts = moments_definition(*leaves[:2], *leaves[3:6], *options)
        result = definition(*leaves, *options)
        total = result.sin().sum() + parts[0].sin().sum() + parts[1].sum()
        return [result, *parts, *torch.autograd.grad(total, used)]

    expected = run()
    # one row at a time
    monkeypatch.setattr(vector_mapping, 'CHUNK_BUDGET', 1)
    torch.testing.assert_close(run(), expected)
    with torch.no_grad():
        torch.testing.assert_close(definition(*leaves, *options), expected[0])


@built
def test_missing_kernels_are_reported(caplog, monkeypatch):
    monkeypatch.setattr('mmrednet.ops.dispatch._logged', set())
    tensors, options = make_inputs(Window(3), (4, 5), 'dot_product', False)
    with caplog.at_level(logging.WARNING, 'mmrednet'):
        call(tensors, options)
        call(tensors, options)
    assert len(caplog.records) == 1
    message = (
        'vector_attention falls back .* it has no kernel for the pairwise dot_product relation'
    )
    assert re.search(message, caplog.text)
    with ops.require_kernels('native'), pytest.raises(RuntimeError, match='dot_product'):
        call(tensors, options)


def test_multiply_adds():
    for relation, patchwise in NATIVE:
        tensors, options = make_inputs(Window(3), (4, 5), relation, patchwise)
        leaves = [tensor.requires_grad_() for tensor in tensors]
        vectors = 2 * 20 * (1 if patchwise else 9)
        convolutions = vectors * (leaves[5].numel() + leaves[8].numel())
        aggregation = 2 * 20 * 9 * 6
        with FlopCounterMode(display=False) as forward:
            result = call(leaves, options)
        assert forward.get_total_flops() == 2 * (convolutions + aggregation)
        if _native.MISSING:
            continue
        with FlopCounterMode(display=False) as backward:
            result.sum().backward()
        assert backward.get_total_flops() == 2 * (3 * convolutions + 2 * aggregation)


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('query', lambda x: x[..., 1:], r'query must end in the output size \(4, 5\)'),
        ('key', lambda x: x[:, 1:], 'query and key must agree in batch, groups'),
        ('value', lambda x: x[..., 1:], 'value must be .* of key'),
        ('value', lambda x: x[:, 1:], 'gamma must have one output for each group of value'),
        ('scale1', lambda x: x[1:], r'gamma.scale1 must be of the shape, \(5,\)'),
        ('weight2', lambda x: x[:, 1:], r'gamma.weight2 must be of the shape, \(2, 5\)'),
    ],
)
def test_bad_shapes(name, change, message):
    tensors, options = make_inputs(Window(3), (4, 5), 'subtraction', False)
    names = ['query', 'key', 'value', *Gamma._fields]
    tensors[names.index(name)] = change(tensors[names.index(name)])
    with pytest.raises(ValueError, match=message):
        call(tensors, options)


def test_bad_relations():
    tensors, options = make_inputs(Window(3), (4, 5), 'subtraction', False)
    with pytest.raises(ValueError, match="relation must be one of .* got 'cosine'"):
        call(tensors, ('cosine', *options[1:]))
    tensors[2] = tensors[2].int()
    with pytest.raises(TypeError, match='value must be a floating-point tensor'):
        call(tensors, options)


@built
def test_the_library_checks_its_arguments():
    tensors, options = make_inputs(Window(3), (4, 5), 'subtraction', False)
    run = torch.ops.mmrednet.vector_attention
    for index in (0, 2, 3, 5, 8, 9):
        wrong = list(tensors)
        wrong[index] = wrong[index][:, 1:] if wrong[index].dim() == 4 else wrong[index][1:]
        with pytest.raises(ValueError, match='must have'):
            run(*wrong, *options)
    with pytest.raises(ValueError, match='no pairwise relation'):
        run(*tensors, 'dot_product', *options[1:])
    with pytest.raises(ValueError, match='position_channels'):
        run(*tensors, 'subtraction', False, 9, options[3])


LAYERS = {
    'pairwise': lambda **options: SANPairwise(16, kernel_size=3, **options),
    'patchwise': lambda **options: SANPatchwise(16, kernel_size=3, **options),
}


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', LAYERS)
def test_training_is_that_of_the_modules(name, stride):
    fused = LAYERS[name](relation_channels=3, stride=stride).double().train()
    # without shifts, the position of the centre lies in the kink of the ReLU
    for norm in (fused.conv_w[0], fused.conv_w[3]):
        torch.nn.init.uniform_(norm.bias, 0.1, 0.5)
    modules = LAYERS[name](relation_channels=3, stride=stride).double().train()
    modules.load_state_dict(fused.state_dict())
    # a hook lets the layer call its modules
    calls = []
    modules.conv_w[1].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64)
    for _ in range(3):
        gradients = []
        for layer in (fused, modules):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            layer(leaf).sin().mean().backward()
            gradients.append([leaf.grad, *(p.grad for p in layer.parameters())])
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter -= 0.1 * parameter.grad
        torch.testing.assert_close(*gradients)
        x = x + torch.randn_like(x)
    assert len(calls) == 3
    torch.testing.assert_close(dict(fused.state_dict()), dict(modules.state_dict()))
    torch.testing.assert_close(fused.eval()(x), modules.eval()(x))


@built
@pytest.mark.parametrize('name', LAYERS)
def test_training_stores_no_features_of_neighbours(name):
    layer = LAYERS[name]()
    x = torch.randn(1, 16, 32, 32)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: stored.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        layer(x)
    assert max(stored) <= x.numel()


@pytest.mark.parametrize('name', LAYERS)
def test_a_folded_norm_stays_fused(monkeypatch, name):
    layer, calls = LAYERS[name]().double().eval(), []
    for norm in (layer.conv_w[0], layer.conv_w[3]):
        torch.nn.init.uniform_(norm.running_mean, -1, 1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    x = torch.randn(1, 16, 5, 6, dtype=torch.float64)
    expected = layer(x)
    monkeypatch.setattr(
        'mmrednet.layers.san.local_vector_attention',
        lambda *inputs, **options: calls.append(1) or local_vector_attention(*inputs, **options),
    )
    torch.testing.assert_close(fuse(layer)(x), expected)
    assert isinstance(layer.conv_w[3], torch.nn.Identity)
    assert calls


@pytest.mark.parametrize('norm', ['BN', 'GN', 'IN'])
def test_other_gammas_by_chunks(monkeypatch, norm):
    norm_cfg = dict(type='GN', num_groups=1) if norm == 'GN' else dict(type=norm)
    act_cfg = dict(type='GELU' if norm == 'BN' else 'ReLU')
    for build in LAYERS.values():
        options = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, relation_channels=2)
        layer = build(**options).double().eval()
        x = torch.randn(1, 16, 5, 4, dtype=torch.float64, requires_grad=True)
        expected = layer(x)
        monkeypatch.setattr(vector_mapping, 'CHUNK_BUDGET', 1)
        result = layer(x)
        torch.testing.assert_close(result, expected)
        monkeypatch.undo()
        grads = [torch.autograd.grad(y.sin().sum(), x)[0] for y in (result, expected)]
        torch.testing.assert_close(*grads)


def test_oracle_of_the_layer_in_bfloat16():
    for build, oracle in ((SANPairwise, oracles.pairwise), (SANPatchwise, oracles.patchwise)):
        layer = build(16, kernel_size=3).bfloat16().eval()
        x = torch.randn(1, 16, 6, 5).bfloat16()
        y = layer(x)
        assert y.dtype == torch.bfloat16
        expected = oracles.san(x.double(), layer.double(), oracle)
        assert (y.double() - expected).abs().max() < 0.02 * expected.abs().max()


# definitions under torch's transforms: vmap has a rule for unfold, and none for adding to slices
UNFOLD_IS_ALLOWED = {'mmrednet/ops/transforms.py'}


def test_nothing_is_unfolded():
    pattern = re.compile(r'\bF\.unfold\b|nn\.Unfold\b|functional\.unfold\b')
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / 'mmrednet').rglob('*.py')
        # copies of the tools are no part of the package
        if '.mim' not in path.parts and pattern.search(path.read_text())
    }
    assert files == UNFOLD_IS_ALLOWED
