"""Depth-wise convolution against torch's convolution: values, gradients, layouts, limits."""

import sys

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.layers.depth_wise import DepthWiseConv2d, activated
from mmrednet.ops import _native, depthwise, depthwise_conv2d

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}
# kernel, dilation, padding, size of the map
CASES = {
    '1x1': ((1, 1), (1, 1), (0, 0), (3, 5)),
    '3x3': ((3, 3), (1, 1), (1, 1), (9, 20)),
    '3x3, no padding': ((3, 3), (1, 1), (0, 0), (5, 7)),
    '3x3, full padding': ((3, 3), (2, 1), (4, 2), (5, 7)),
    '5x5': ((5, 5), (1, 1), (2, 2), (40, 11)),
    '7x7, dilation 3': ((7, 7), (3, 3), (9, 9), (15, 20)),
    '7x7 on one pixel': ((7, 7), (3, 3), (9, 9), (1, 1)),
    '1x21': ((1, 21), (1, 1), (0, 10), (4, 33)),
    '21x1': ((21, 1), (1, 1), (10, 0), (33, 4)),
    '4x2, dilation 2': ((4, 2), (2, 2), (3, 1), (6, 5)),
    'padding as wide as the kernel': ((3, 3), (1, 1), (2, 2), (4, 6)),
}
# one block of channels, with a tail, less than a block, many
CHANNELS = [16, 35, 5, 1]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}

native = pytest.mark.skipif(_native.MISSING is not None, reason='needs the compiled kernels')


def make_inputs(case, channels, layout='contiguous', dtype=torch.float64, batch=2):
    """Return x, weight and bias."""
    kernel, _, _, size = CASES[case]
    x = torch.randn(batch, channels, *size, dtype=torch.float64)
    weight = torch.randn(channels, 1, *kernel, dtype=torch.float64)
    bias = torch.randn(channels, dtype=torch.float64)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    return [tensor.to(dtype) for tensor in (x, weight, bias)]


def options_of(case, gelu=False):
    _, dilation, padding, _ = CASES[case]
    return dict(padding=padding, dilation=dilation, gelu=gelu)


def reference(x, weight, bias, *, padding, dilation, gelu):
    result = F.conv2d(x, weight, bias, 1, padding, dilation, len(weight))
    return F.gelu(result) if gelu else result


def assert_near(result, expected, dtype, factor=1):
    error = (result.double() - expected).norm()
    assert error <= factor * TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('gelu', [False, True], ids=['', 'gelu'])
@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients(case, gelu, layout, dtype):
    options = options_of(case, gelu)
    for channels in CHANNELS:
        inputs = [x.requires_grad_() for x in make_inputs(case, channels, layout, dtype)]
        wide = [x.detach().double().requires_grad_() for x in inputs]
        result, expected = depthwise_conv2d(*inputs, **options), reference(*wide, **options)
        assert result.dtype == dtype
        assert_near(result, expected, dtype)
        grad = torch.randn_like(result)
        grads = torch.autograd.grad(result, inputs, grad)
        expected_grads = torch.autograd.grad(expected, wide, grad.double())
        for got, wanted in zip(grads, expected_grads, strict=True):
            assert got.dtype == dtype
            # the terms of sums over the map cancel
            assert_near(got, wanted, dtype, factor=10)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_results_keep_the_layout_of_the_map(layout):
    inputs = [x.requires_grad_() for x in make_inputs('3x3', 32, layout)]
    result = depthwise_conv2d(*inputs, **options_of('3x3'))
    assert result.is_contiguous(memory_format=LAYOUTS[layout])
    (grad,) = torch.autograd.grad(result.sum(), inputs[0])
    assert grad.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('gelu', [False, True], ids=['', 'gelu'])
@pytest.mark.parametrize('case', ['3x3', '4x2, dilation 2'])
def test_gradients_of_both_orders(case, gelu, layout):
    inputs = [x.requires_grad_() for x in make_inputs(case, 3, layout, batch=1)]
    inputs[0] = inputs[0].detach()[..., :6].requires_grad_()

    def function(*tensors):
        return depthwise_conv2d(*tensors, **options_of(case, gelu))

    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def test_without_bias():
    x, weight, _ = (x.requires_grad_() for x in make_inputs('3x3', 20))
    options = options_of('3x3', gelu=True)
    result = depthwise_conv2d(x, weight, **options)
    expected = reference(x, weight, None, **options)
    torch.testing.assert_close(result, expected)
    grads = torch.autograd.grad(result.sum(), (x, weight))
    expected_grads = torch.autograd.grad(expected.sum(), (x, weight))
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize('gelu', [False, True], ids=['', 'gelu'])
def test_the_fallback_is_the_definition(gelu):
    """Plain torch, which other devices than the CPU use, and CPUs without the kernels."""
    for case in CASES:
        options = options_of(case, gelu)
        inputs = make_inputs(case, 6)
        flat = (options['padding'], options['dilation'], gelu)
        result = depthwise.without_dilation(*inputs, *flat)
        torch.testing.assert_close(result, reference(*inputs, **options))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('gelu', [False, True], ids=['', 'gelu'])
def test_registration(gelu, layout):
    inputs = [x.requires_grad_() for x in make_inputs('5x5', 18, layout)]
    arguments = (*inputs, [2, 2], [1, 1], gelu)
    opcheck(depthwise.depthwise.op, arguments)
    grad = torch.randn_like(inputs[0])
    opcheck(
        depthwise.depthwise_backward.op,
        (grad, *(x.detach() for x in inputs), *arguments[3:]),
        test_utils=('test_schema', 'test_faketensor'),
    )


def test_tangents_and_vectorisation():
    inputs = make_inputs('3x3', 4)
    options = options_of('3x3', gelu=True)
    tangents = [torch.randn_like(x) for x in inputs]
    got = torch.func.jvp(lambda *x: depthwise_conv2d(*x, **options), (*inputs,), (*tangents,))
    expected = torch.func.jvp(lambda *x: reference(*x, **options), (*inputs,), (*tangents,))
    torch.testing.assert_close(got, expected)
    maps = torch.stack([inputs[0], 2 * inputs[0]])
    got = torch.vmap(lambda x: depthwise_conv2d(x, *inputs[1:], **options))(maps)
    torch.testing.assert_close(got[1], depthwise_conv2d(maps[1], *inputs[1:], **options))


@pytest.mark.parametrize('shape', [(0, 4, 5, 6), (2, 0, 5, 6)])
def test_empty(shape):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape[1], 1, 3, 3, requires_grad=True)
    bias = torch.randn(shape[1], requires_grad=True)
    result = depthwise_conv2d(x, weight, bias, padding=1, gelu=True)
    assert result.shape == shape
    grads = torch.autograd.grad(result.sum(), (x, weight, bias))
    assert [grad.shape for grad in grads] == [x.shape, weight.shape, bias.shape]
    assert all(grad.eq(0).all() for grad in grads)


@native
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('gelu', [False, True], ids=['', 'gelu'])
@pytest.mark.parametrize('case', ['3x3', '7x7, dilation 3', '21x1'])
def test_results_do_not_depend_on_the_number_of_threads(case, gelu, layout):
    results = []
    torch.manual_seed(0)
    inputs = make_inputs(case, 40, layout, torch.float32, batch=3)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaves = [x.detach().requires_grad_() for x in inputs]
            result = depthwise_conv2d(*leaves, **options_of(case, gelu))
            results.append([result, *torch.autograd.grad(result.sin().sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@native
@pytest.mark.parametrize('gelu', [False, True], ids=['', 'gelu'])
def test_strided_and_shared_memory(gelu):
    x, weight, bias = make_inputs('5x5', 18)
    options = options_of('5x5', gelu)
    for view in (x[:, :, ::2], x.flip(3), x[:1].expand(3, -1, -1, -1), x.transpose(2, 3)):
        leaf = view.detach().requires_grad_()
        result = depthwise_conv2d(leaf, weight, bias, **options)
        expected = reference(leaf, weight, bias, **options)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(
            torch.autograd.grad(result.sin().sum(), leaf),
            torch.autograd.grad(expected.sin().sum(), leaf),
        )


@native
def test_the_gelu_of_every_size():
    x = torch.cat([torch.linspace(-14, 14, 20000), torch.tensor([torch.inf, -100.0, 0.0, 1e-30])])
    x = x.reshape(1, 1, 1, -1).requires_grad_()
    result = depthwise_conv2d(x, torch.ones(1, 1, 1, 1), gelu=True)
    wide = x.detach().double().requires_grad_()
    # F.gelu cancels in its tail
    expected = wide * torch.special.erfc(-wide / 2**0.5) / 2
    error = (result - expected).abs() / expected.abs().clamp_min(1e-33)
    assert error[..., :-4].max() < 3e-5
    near = (wide.abs() < 3).flatten()
    assert error.flatten()[near].max() < 1e-6
    assert result.flatten()[-4:].tolist()[:3] == [torch.inf, 0, 0]
    (grad,) = torch.autograd.grad(result[..., :-4].sum(), x)
    (expected,) = torch.autograd.grad(expected[..., :-4].sum(), wide)
    assert (grad - expected)[..., :-4].abs().max() < 5e-7


@native
def test_nan_stays_nan():
    x, weight, bias = make_inputs('3x3', 20, dtype=torch.float32)
    x[0, 3, 4, 4] = torch.nan
    options = options_of('3x3', gelu=True)
    result = depthwise_conv2d(x, weight, bias, **options)
    assert torch.equal(result.isnan(), reference(x, weight, bias, **options).isnan())


def test_flops():
    inputs = [x.requires_grad_() for x in make_inputs('3x3, no padding', 16)]
    with FlopCounterMode(display=False) as count:
        result = depthwise_conv2d(*inputs, **options_of('3x3, no padding', gelu=True))
    forward = 2 * 2 * 16 * 3 * 5 * 9
    assert count.get_total_flops() == forward
    with FlopCounterMode(display=False) as count:
        result.sum().backward()
    assert count.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(weight=torch.randn(4, 2, 3, 3)), ValueError, r'weight must be \(channels, 1, Kh, Kw'),
        (dict(weight=torch.randn(5, 1, 3, 3)), ValueError, r'weight must be \(channels, 1, Kh, Kw'),
        (dict(bias=torch.randn(3)), ValueError, r'bias must be \(channels,\)'),
        (dict(weight=torch.randn(4, 1, 3, 3).double()), TypeError, 'weight must have the dtype of'),
        (dict(x=torch.ones(1, 4, 6, 6).int()), TypeError, 'x must be a floating-point tensor'),
        (dict(x=torch.randn(4, 6, 6)), ValueError, 'x must have 4 dimensions'),
        (dict(padding=3), ValueError, r'padding must be at most .*\(2, 2\), got padding=3'),
        (dict(padding=-1), ValueError, 'padding must be at least 0'),
        (dict(dilation=0), ValueError, 'dilation must be at least 1'),
        (dict(dilation=4), ValueError, 'the kernel must fit into the padded map'),
    ],
)
def test_bad_input(change, error, message):
    arguments = dict(x=torch.randn(1, 4, 6, 6), weight=torch.randn(4, 1, 3, 3), bias=None)
    with pytest.raises(error, match=message):
        depthwise_conv2d(**{**arguments, **change})


@native
@pytest.mark.parametrize('name', ['depthwise', 'depthwise_backward'])
def test_the_dispatcher_uses_the_kernels(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'mmrednet::{name}', 'CPU')


@native
def test_calls_that_nobody_checked():
    op = torch.ops.mmrednet.depthwise
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 3, 3)
    for arguments, message in (
        ((x[0], weight, None, [1, 1], [1, 1], False), 'must have 4 dimensions'),
        ((x, weight[:3], None, [1, 1], [1, 1], False), 'weight must have sizes'),
        ((x, weight, torch.randn(3), [1, 1], [1, 1], False), 'bias must have sizes'),
        ((x, weight, None, [1], [1, 1], False), 'must have 2 numbers'),
        ((x, weight, None, [1, 1], [0, 1], False), 'dilation .* must lie between'),
        ((x, weight, None, [1, 1], [4, 4], False), 'must fit into the padded map'),
        ((x, weight, None, [2**40, 1], [2**40, 1], False), 'reach'),
    ):
        with pytest.raises(ValueError, match=message):
            op(*arguments)


class TestLayer:
    def layer(self, kernel=(3, 3)):
        return DepthWiseConv2d(6, kernel).double()

    def test_its_state_is_that_of_a_convolution(self):
        expected = nn.Conv2d(6, 6, 3, padding=1, groups=6).state_dict()
        assert {name: x.shape for name, x in self.layer().state_dict().items()} == {
            name: x.shape for name, x in expected.items()
        }

    @pytest.mark.parametrize('act', [nn.GELU(), nn.GELU('tanh'), nn.ReLU(), nn.Identity()], ids=str)
    def test_an_activation_behind_it(self, act):
        layer, x = self.layer(), torch.randn(2, 6, 5, 4, dtype=torch.float64)
        torch.testing.assert_close(activated(act, layer, x), act(nn.Conv2d.forward(layer, x)))

    @pytest.mark.parametrize('index', [0, 1])
    def test_a_hook_runs(self, index):
        modules, calls = (nn.GELU(), self.layer()), []
        modules[index].register_forward_hook(lambda *_: calls.append(1))
        x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
        result = activated(*modules, x)
        assert calls == [1]
        torch.testing.assert_close(result, F.gelu(nn.Conv2d.forward(modules[1], x)))

    def test_gelu_keeps_its_input_alone(self):
        layer, sizes = self.layer(), []
        x = torch.randn(2, 6, 50, 40, dtype=torch.float64, requires_grad=True)

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            activated(nn.GELU(), layer, x)
        assert sorted(sizes) == sorted([x.numel(), layer.weight.numel(), layer.bias.numel()])

    def test_autocast(self):
        layer, x = self.layer().float(), torch.randn(2, 6, 5, 4)
        with torch.autocast('cpu', torch.bfloat16):
            result = activated(nn.GELU(), layer, x)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.float(), F.gelu(layer(x)), atol=0.03, rtol=0.03)

    def test_autocast_leaves_what_was_computed_without_it(self):
        layer, x = self.layer().float(), torch.randn(2, 6, 5, 4).requires_grad_()
        x = x.to(memory_format=torch.channels_last)
        for gelu in (False, True):
            result = activated(nn.GELU() if gelu else nn.Identity(), layer, x)
            (expected,) = torch.autograd.grad(result.sum(), x, retain_graph=True)
            with torch.autocast('cpu', torch.bfloat16):
                (grad,) = torch.autograd.grad(result.sum(), x)
            assert torch.equal(grad, expected)

    def test_torch_computes_where_it_is_faster(self):
        layer = self.layer().float()
        calls, module = [], sys.modules['mmrednet.layers.depth_wise']
        compute = module.depthwise_conv2d
        x = torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last)
        cases = (
            (x, False, 0),
            (x.contiguous(), False, 1),
            (x.double(), False, 1),
            (x, True, 1),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module, 'depthwise_conv2d', lambda *a, **k: calls.append(1) or compute(*a, **k)
            )
            for image, training, count in cases:
                calls.clear()
                layer.to(image.dtype)
                with torch.set_grad_enabled(training):
                    result = activated(nn.GELU(), layer, image)
                assert len(calls) == count
                torch.testing.assert_close(result, F.gelu(nn.Conv2d.forward(layer, image)))

    def test_other_padding_and_one_image(self):
        layer, x = self.layer(), torch.randn(6, 5, 4, dtype=torch.float64)
        torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x))
        layer.padding_mode = 'reflect'
        layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
        torch.testing.assert_close(layer(x[None]), nn.Conv2d.forward(layer, x[None]))

    def test_compilation(self):
        layer, x = self.layer(), torch.randn(2, 6, 5, 4, dtype=torch.float64)
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda x: activated(nn.GELU(), layer, x), backend='aot_eager', fullgraph=True
        )
        torch.testing.assert_close(compiled(x), F.gelu(nn.Conv2d.forward(layer, x)))
