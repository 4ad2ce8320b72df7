"""Transforms of torch: forward-mode derivatives, ``torch.func`` and ``vmap`` of all functions."""

import pytest
import torch
from operators import EXAMPLES
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from mmrednet import ops
from mmrednet.layers import build_spatial
from mmrednet.ops.vector_mapping import Gamma

WINDOW = ops.Window(3, stride=2, dilation=2)
SHIFTED = ops.Window(3, border='shift')
SIZE, OUT = (5, 4), WINDOW.output_size(5, 4)
# mmcv's operators, which torch cannot look into
FOREIGN = ('DCN', 'DCNv2')


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def affine_involution(value, hidden, weight, bias, scale, shift):
    options = dict(scale=scale, shift=shift, relu=True)
    return ops.local_involution(value, hidden, weight, bias, WINDOW, **options)


# functions of tensors alone, and the shapes of these
FUNCTIONS = {
    'local_aggregate': (
        lambda value, weight: ops.local_aggregate(value, weight, WINDOW),
        [(2, 2, 3, *SIZE), (2, 2, 9, *OUT)],
    ),
    'local_correlate': (
        lambda query, key: ops.local_correlate(query, key, WINDOW),
        [(2, 2, 3, *OUT), (2, 2, 3, *SIZE)],
    ),
    'local_scatter': (
        lambda source, weight: ops.local_scatter(source, weight, SIZE, WINDOW),
        [(2, 2, 3, *OUT), (2, 2, 9, *OUT)],
    ),
    'local_aggregate of shifted windows': (
        lambda value, weight: ops.local_aggregate(value, weight, SHIFTED),
        [(2, 2, 3, *SIZE), (2, 2, 9, *SIZE)],
    ),
    'local_correlate of shifted windows': (
        lambda query, key: ops.local_correlate(query, key, SHIFTED),
        [(2, 2, 3, *SIZE), (2, 2, 3, *SIZE)],
    ),
    'local_scatter of shifted windows': (
        lambda source, weight: ops.local_scatter(source, weight, SIZE, SHIFTED),
        [(2, 2, 3, *SIZE), (2, 2, 9, *SIZE)],
    ),
    'local_attention of shifted windows': (
        lambda query, key, value, bias: ops.local_attention(query, key, value, SHIFTED, bias=bias),
        [(2, 2, 4, *SIZE), (2, 2, 4, *SIZE), (2, 2, 3, *SIZE), (2, 25)],
    ),
    'local_involution': (
        lambda value, hidden, weight, bias: ops.local_involution(
            value, hidden, weight, bias, WINDOW
        ),
        [(2, 2, 3, *SIZE), (2, 4, *OUT), (18, 4), (18,)],
    ),
    'local_involution with a norm': (
        affine_involution,
        [(2, 2, 3, *SIZE), (2, 4, *OUT), (18, 4), (18,), (6,), (6,)],
    ),
    'local_attention': (
        lambda query, key, value, rows, columns, bias: ops.local_attention(
            query, key, value, WINDOW, rows=rows, columns=columns, bias=bias
        ),
        [
            (2, 2, 4, *OUT),
            (2, 2, 4, *SIZE),
            (2, 2, 3, *SIZE),
            (2, 2, 3),
            (2, 2, 3),
            (2, 9),
        ],
    ),
    'local_difference_attention': (
        lambda query, key, value, bias: ops.local_difference_attention(
            query, key, value, WINDOW, bias=bias
        ),
        [(2, 2, 3, *OUT), (2, 2, 3, *SIZE), (2, 2, 4, *SIZE), (2, 9)],
    ),
    'local_vector_attention': (
        lambda query, key, value, *gamma: ops.local_vector_attention(
            query,
            key,
            value,
            Gamma(*gamma),
            WINDOW,
            relation='subtraction',
            position_channels=1,
        ),
        [
            (2, 3, *OUT),
            (2, 3, *SIZE),
            (2, 4, *SIZE),
            (3,),
            (3,),
            (3, 3),
            (3,),
            (3,),
            (2, 3),
            (2,),
        ],
    ),
    'axial_attention': (
        lambda *tensors: ops.axial_attention(*tensors, span=5),
        [(2, 2, 3, 6), (2, 2, 3, 6), (2, 2, 4, 6), (10, 7), (3, 2), (3, 2)],
    ),
}


@pytest.fixture(params=FUNCTIONS)
def function_and_inputs(request):
    torch.manual_seed(0)
    function, shapes = FUNCTIONS[request.param]
    return function, tuple(drawn(*shape) for shape in shapes)


def difference(function, inputs, tangents, step=1e-6):
    above = function(*(x + step * t for x, t in zip(inputs, tangents, strict=True)))
    below = function(*(x - step * t for x, t in zip(inputs, tangents, strict=True)))
    return (above - below) / (2 * step)


def test_every_public_function_is_here():
    functions = {name for name in ops.__all__ if name.startswith(('local_', 'axial_'))}
    assert functions == {name.split()[0] for name in FUNCTIONS}


def test_tangents_of_all_inputs(function_and_inputs):
    function, inputs = function_and_inputs
    tangents = tuple(torch.randn_like(x) for x in inputs)
    expected = difference(function, inputs, tangents)
    output, tangent = jvp(function, inputs, tangents)
    torch.testing.assert_close(output, function(*inputs))
    assert tangent.abs().sum() > 0
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('learns', [True, False])
def test_dual_tensors(function_and_inputs, learns):
    function, inputs = function_and_inputs
    tangents = tuple(torch.randn_like(x) for x in inputs)
    expected = difference(function, inputs, tangents)
    for x in inputs:
        x.requires_grad_(learns)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(function(*duals)).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)


def test_tangents_and_gradients_are_adjoint(function_and_inputs):
    """<J t, c> = <t, J^T c>, one input at a time; the right-hand side is by the kernels."""
    function, inputs = function_and_inputs
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    cotangent = torch.randn_like(output)
    gradients = torch.autograd.grad(output, leaves, cotangent)
    for index, gradient in enumerate(gradients):
        tangents = [torch.zeros_like(x) for x in inputs]
        tangents[index] = torch.randn_like(inputs[index])
        tangent = jvp(function, inputs, tuple(tangents))[1]
        torch.testing.assert_close((tangent * cotangent).sum(), (tangents[index] * gradient).sum())


def test_a_tangent_of_the_backward_pass(function_and_inputs):
    """A cotangent with a tangent: J^T is linear in it, so its tangent is J^T of the tangent."""
    function, inputs = function_and_inputs
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    direction = torch.randn_like(output)
    expected = torch.autograd.grad(output, leaves, direction, retain_graph=True)
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(torch.randn_like(output), direction)
        gradients = torch.autograd.grad(output, leaves, cotangent)
        tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]
    for tangent, value in zip(tangents, expected, strict=True):
        assert tangent is not None or not value.any()
        if tangent is not None:
            torch.testing.assert_close(tangent, value)


def test_jacobians(function_and_inputs):
    function, inputs = function_and_inputs
    expected = torch.autograd.functional.jacobian(function, inputs)
    indices = tuple(range(len(inputs)))
    for transform in (jacfwd, jacrev):
        jacobians = transform(function, argnums=indices)(*inputs)
        for jacobian, value in zip(jacobians, expected, strict=True):
            torch.testing.assert_close(jacobian, value)


def test_hessians(function_and_inputs):
    function, inputs = function_and_inputs

    def total(first):
        return function(first, *inputs[1:]).sin().sum()

    expected = torch.autograd.functional.hessian(total, inputs[0])
    torch.testing.assert_close(hessian(total)(inputs[0]), expected)


def test_gradients_under_vmap(function_and_inputs):
    function, inputs = function_and_inputs
    indices = tuple(range(len(inputs)))
    batches = tuple(torch.stack([x, 2 * x, -x]) for x in inputs)

    def total(*tensors):
        return function(*tensors).sin().sum()

    gradients = vmap(grad(total, argnums=indices))(*batches)
    for number in range(3):
        leaves = [batch[number].clone().requires_grad_() for batch in batches]
        expected = torch.autograd.grad(total(*leaves), leaves)
        for gradient, value in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient[number], value)


def layer_and_input(name):
    torch.manual_seed(0)
    layer = build_spatial(EXAMPLES[name], 16).double().eval()
    for module in layer.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1)
    return layer, drawn(3, 16, 6, 5)


@pytest.mark.parametrize('name', [name for name in EXAMPLES if name not in FOREIGN])
class TestLayers:
    def test_tangents(self, name):
        layer, x = layer_and_input(name)
        direction = torch.randn_like(x)
        expected = difference(layer, (x,), (direction,))
        torch.testing.assert_close(jvp(layer, (x,), (direction,))[1], expected)

    def test_gradients_of_single_samples(self, name):
        layer, x = layer_and_input(name)
        parameters = dict(layer.named_parameters())

        def loss(parameters, sample):
            return functional_call(layer, parameters, (sample[None],)).sin().sum()

        gradients = vmap(grad(loss), (None, 0))(parameters, x)
        for index, sample in enumerate(x):
            layer.zero_grad()
            layer(sample[None]).sin().sum().backward()
            for key, parameter in parameters.items():
                torch.testing.assert_close(gradients[key][index], parameter.grad)


@pytest.mark.parametrize('name', FOREIGN)
def test_foreign_operators_say_what_to_do(name):
    layer, x = layer_and_input(name)
    message = rf'{name} has no forward-mode derivatives and no rules for torch.func.*backward\(\)'
    with pytest.raises(RuntimeError, match=message):
        jvp(layer, (x,), (x,))
    with pytest.raises(RuntimeError, match=message):
        grad(lambda x: layer(x).sum())(x)
    with forward_ad.dual_level(), torch.no_grad(), pytest.raises(RuntimeError, match=message):
        layer(forward_ad.make_dual(x, x))


@pytest.mark.parametrize('fullgraph', [True, False])
def test_transforms_inside_of_compile(fullgraph):
    function, shapes = FUNCTIONS['local_aggregate']
    inputs = tuple(drawn(*shape) for shape in shapes)

    def tangent(*inputs):
        return jvp(function, inputs, inputs)[1]

    torch._dynamo.reset()
    compiled = torch.compile(tangent, backend='aot_eager', fullgraph=fullgraph)
    torch.testing.assert_close(compiled(*inputs), tangent(*inputs))
    # bilinear
    torch.testing.assert_close(tangent(*inputs), 2 * function(*inputs))


def test_dual_inputs_of_compiled_functions():
    function, shapes = FUNCTIONS['local_aggregate']
    value, weight = (drawn(*shape) for shape in shapes)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend='aot_eager', fullgraph=True)
    expected = function(value, weight)
    torch.testing.assert_close(compiled(value, weight), expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(compiled(forward_ad.make_dual(value, value), weight))[1]
    # linear
    torch.testing.assert_close(tangent, expected)
