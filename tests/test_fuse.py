"""Layers with norms and activations behind them in one pass: the same numbers, where nobody looks
between.
"""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.backbones import RedNet, SpatialResNet
from mmrednet.layers import Involution
from mmrednet.layers.one_pass import one_pass

CHANNELS = 16
LAYERS = {
    '1x1': lambda: nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
    '3x3': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=2, dilation=2),
    'grouped': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=4),
    'same': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding='same'),
    'reflect': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, padding_mode='reflect'),
    'ConvModule': lambda: ConvModule(CHANNELS, CHANNELS, 3, padding=1, norm_cfg=dict(type='BN')),
    'ConvModule, norm first': lambda: ConvModule(
        CHANNELS, CHANNELS, 3, norm_cfg=dict(type='BN'), order=('norm', 'act', 'conv')
    ),
    'involution': lambda: Involution(CHANNELS, kernel_size=3, group_channels=8),
    'involution, stride 2': lambda: Involution(CHANNELS, kernel_size=5, stride=2),
    'pool': lambda: nn.AvgPool2d(3),
}
NORMS = {
    'none': lambda: None,
    'identity': nn.Identity,
    'BN': lambda: nn.BatchNorm2d(CHANNELS),
    'BN, no weight': lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    'GN': lambda: nn.GroupNorm(4, CHANNELS),
    'BN of the batch': lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
}
ACTS = {'none': lambda: None, 'ReLU': lambda: nn.ReLU(inplace=True), 'GELU': nn.GELU}


def settle(module):
    """Give norms statistics and weights as training leaves them, and return the module in eval
    mode.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -1, 1),
                (norm.running_mean, -1, 1),
                (norm.running_var, 0.5, 2),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return module.eval()


def one_by_one(x, layer, norm, act, added=None):
    out = layer(x)
    out = out if norm is None else norm(out)
    out = out if added is None else out + added
    return out if act is None else act(out)


@pytest.fixture
def parts():
    return settle(LAYERS['1x1']()), settle(NORMS['BN']()), ACTS['ReLU']()


@pytest.fixture(autouse=True)
def always_pays(monkeypatch):
    """Let norms be folded on small maps too."""
    monkeypatch.setitem(one_pass.__globals__, 'LEAST_SAVED', -(10**9))


@pytest.fixture
def fused(monkeypatch):
    """Return a list that grows with each convolution that is computed with its norm."""
    calls, convolve = [], one_pass.__globals__['_convolve']
    monkeypatch.setitem(
        one_pass.__globals__, '_convolve', lambda *args: calls.append(args) or convolve(*args)
    )
    return calls


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('layer', LAYERS)
def test_same_numbers(layer, norm, memory_format):
    layer, norm = (
        part if part is None else settle(part) for part in (LAYERS[layer](), NORMS[norm]())
    )
    x = torch.randn(2, CHANNELS, 11, 14).contiguous(memory_format=memory_format)
    for act in (make() for make in ACTS.values()):
        expected = one_by_one(x, layer, norm, act)
        added = torch.randn_like(expected)
        with torch.no_grad():
            got = one_pass(x, layer, norm, act)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
            assert got.stride() == expected.stride()
            torch.testing.assert_close(
                one_pass(x, layer, norm, act, added),
                one_by_one(x, layer, norm, act, added),
                atol=1e-5,
                rtol=1e-5,
            )


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    layers = [settle(LAYERS[name]()).to(dtype) for name in ('1x1', 'involution')]
    norm, act = settle(NORMS['BN']()).to(dtype), ACTS['ReLU']()
    x = torch.randn(1, CHANNELS, 9, 8, dtype=dtype)
    for layer in layers:
        with torch.no_grad():
            got = one_pass(x, layer, norm, act)
        assert got.dtype == dtype
        tolerance = 0.03 if dtype == torch.bfloat16 else 1e-12
        torch.testing.assert_close(
            got, one_by_one(x, layer, norm, act), atol=tolerance, rtol=tolerance
        )


def test_weights_may_change_between_calls(parts):
    layer, norm, act = parts
    x = torch.randn(1, CHANNELS, 9, 8)
    with torch.no_grad():
        one_pass(x, *parts)
        layer.weight.data.mul_(-2)
        norm.running_mean.add_(1)
        norm.load_state_dict({**norm.state_dict(), 'weight': torch.rand(CHANNELS)})
        torch.testing.assert_close(one_pass(x, *parts), one_by_one(x, *parts))
        norm.train()
        before = norm.running_mean.clone()
        torch.testing.assert_close(one_pass(x, *parts), one_by_one(x, *parts))
    assert not torch.equal(norm.running_mean, before)


def test_gradients_go_through_the_modules(parts, fused):
    x = torch.randn(1, CHANNELS, 9, 8, requires_grad=True)
    (got,) = torch.autograd.grad(one_pass(x, *parts).sin().sum(), x)
    (expected,) = torch.autograd.grad(one_by_one(x, *parts).sin().sum(), x)
    assert torch.equal(got, expected)
    assert not fused


def test_hooks_see_what_lies_between(parts, fused):
    x, seen = torch.randn(1, CHANNELS, 9, 8), []
    see = lambda *args: seen.append(args)  # noqa: E731
    for register in (
        *(part.register_forward_hook for part in parts),
        nn.modules.module.register_module_forward_hook,
    ):
        handle = register(see)
        with torch.no_grad():
            one_pass(x, *parts)
        handle.remove()
        assert seen
        seen.clear()
    assert not fused
    with torch.no_grad():
        one_pass(x, *parts)
    assert len(fused) == 1


def test_counters_and_autocast_see_the_modules(parts, fused):
    x = torch.randn(1, CHANNELS, 9, 8)
    with torch.no_grad():
        with FlopCounterMode(display=False) as count:
            one_pass(x, *parts)
        assert count.get_total_flops() == 2 * CHANNELS**2 * 72
        with torch.autocast('cpu', torch.bfloat16):
            assert one_pass(x, *parts).dtype == torch.bfloat16
        traced = torch.jit.trace(
            lambda x: one_pass(x, *(part.requires_grad_(False) for part in parts)),
            x,
            check_trace=False,
        )
    assert 'aten::batch_norm' in str(traced.inlined_graph)
    assert not fused


class Halved(Involution):
    """An involution of the user's own."""

    def forward(self, x):
        return super().forward(x) / 2


class Doubled(nn.BatchNorm2d):
    """A norm of the user's own."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(('layer', 'norm'), [(Halved, nn.BatchNorm2d), (Involution, Doubled)])
def test_a_subclass_may_compute_something_else(layer, norm):
    layer, norm, act = settle(layer(CHANNELS)), settle(norm(CHANNELS)), ACTS['ReLU']()
    x = torch.randn(1, CHANNELS, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(one_pass(x, layer, norm, act), one_by_one(x, layer, norm, act))


@pytest.mark.parametrize('layer', LAYERS)
def test_what_is_not_a_number_stays_so(layer):
    layer, norm, act = settle(LAYERS[layer]()), settle(NORMS['BN']()), ACTS['ReLU']()
    x = torch.randn(1, CHANNELS, 9, 8)
    x[0, 3, 4, 4] = torch.nan
    with torch.no_grad():
        got, expected = one_pass(x, layer, norm, act), one_by_one(x, layer, norm, act)
    assert expected.isnan().any()
    assert torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize(
    'name', ['stem', 'layer1.0.downsample', 'layer2.0.conv2', 'layer2.0.conv2.conv1']
)
def test_hooks_on_containers(name):
    network = settle(RedNet(26, base_channels=32))
    seen = []
    network.get_submodule(name).register_forward_hook(lambda *args: seen.append(args))
    with torch.no_grad():
        network(torch.randn(1, 3, 33, 35))
    assert len(seen) == 1


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(
            plugins=[
                dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv3'),
                dict(
                    cfg=dict(type='ContextBlock', ratio=0.25, postfix='_1'), position='after_conv1'
                ),
            ]
        ),
    ],
    ids=['plain', 'plugins'],
)
@pytest.mark.parametrize('kind', [SpatialResNet, RedNet])
def test_backbones(kind, arguments, memory_format, fused):
    network = settle(kind(26, base_channels=32, **arguments)).to(memory_format=memory_format)
    x = torch.randn(2, 3, 65, 70).contiguous(memory_format=memory_format)
    expected = network(x)
    with torch.no_grad():
        outputs = network(x)
        folded = fuse_conv_bn(copy.deepcopy(network))(x)
    assert len(fused) > 10
    for got, also, want in zip(outputs, folded, expected, strict=True):
        assert got.stride() == also.stride() == want.stride()
        assert (got - want).abs().max() < 1e-5 * want.abs().max()
        assert (also - want).abs().max() < 1e-5 * want.abs().max()


def test_small_maps_are_normed_one_by_one(parts, fused, monkeypatch):
    monkeypatch.setitem(one_pass.__globals__, 'LEAST_SAVED', 1000)
    with torch.no_grad():
        # 16 * 7 * 11 outputs less 256 weights
        one_pass(torch.randn(1, CHANNELS, 7, 11), *parts)
        assert not fused
        one_pass(torch.randn(1, CHANNELS, 8, 10), *parts)
    assert len(fused) == 1
