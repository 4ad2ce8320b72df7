"""torch.fx traces every backbone, with an operator as one node."""

import pytest
import torch
from operators import EXAMPLES
from torch import fx, nn

from mmrednet.backbones import (
    MSCAN,
    SAN,
    VAN,
    AxialResNet,
    LRNet,
    RedNet,
    SASAResNet,
    SpatialResNet,
)
from mmrednet.layers import OPERATORS, Hamburger, build_spatial
from mmrednet.ops import Window, local_aggregate

SHORT = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
SMALL = dict(depth=26, base_channels=16, **SHORT)
STAGES = dict(
    arch=dict(embed_dims=(8, 16), depths=(2, 1), mlp_ratios=(2, 2)),
    out_indices=(0, 1),
)
SAN_SIZES = dict(depth=10, base_channels=32)
NETWORKS = {
    'ResNet': lambda: SpatialResNet(**SMALL),
    'RedNet': lambda: RedNet(**dict(SMALL, base_channels=32)),
    'SASA': lambda: SASAResNet(**SMALL),
    'SASA, attention stem': lambda: SASAResNet(**SMALL, stem='attention'),
    'LR-Net': lambda: LRNet(**SMALL, operator_channels=20),
    'SAN pairwise': lambda: SAN(**SAN_SIZES),
    'SAN patchwise': lambda: SAN(**SAN_SIZES, relation='patchwise'),
    'Axial': lambda: AxialResNet('s', depth=26),
    'Axial, axial stem': lambda: AxialResNet('s', depth=26, stem='axial', span=7),
    'VAN': lambda: VAN(**STAGES),
    'MSCAN': lambda: MSCAN(**STAGES),
    'DCN': lambda: SpatialResNet(**SMALL, spatial_cfg=dict(type='DCN')),
    'DCNv2': lambda: SpatialResNet(**SMALL, spatial_cfg=dict(type='DCNv2')),
    'hamburger': lambda: Hamburger(3),
}


def operators_of(traced):
    """Return the modules that a trace records as nodes."""
    modules = dict(traced.named_modules())
    return [modules[node.target] for node in traced.graph.nodes if node.op == 'call_module']


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', NETWORKS)
def test_networks(name, training):
    torch.manual_seed(0)
    network = NETWORKS[name]().train(training)
    traced = fx.symbolic_trace(network)
    traced.train(training)
    for size in ((64, 64), (35, 50)):
        x = torch.randn(2, 3, *size)
        results = []
        for model in (network, traced):
            # where images skip branches, the same ones do
            torch.manual_seed(1)
            outputs = model(x)
            results.append([outputs] if isinstance(outputs, torch.Tensor) else outputs)
        for expected, result in zip(*results, strict=True):
            torch.testing.assert_close(result, expected)


@pytest.mark.parametrize('name', EXAMPLES)
def test_an_operator_is_one_node(name):
    layer = build_spatial(EXAMPLES[name], 16).eval()
    traced = fx.symbolic_trace(nn.Sequential(layer))
    assert [type(module) for module in operators_of(traced)] == [type(layer)]
    x = torch.randn(1, 16, 9, 8)
    torch.testing.assert_close(traced(x), layer(x))


def test_a_trace_follows_the_mode():
    """Operators of a trace in eval mode compute their statistics in training."""
    network = SAN(**SAN_SIZES).eval()
    traced = fx.symbolic_trace(network)
    assert any(type(module) in OPERATORS.values() for module in operators_of(traced))
    x = torch.randn(2, 3, 64, 64)
    before = traced(x)[-1]
    traced.train()
    assert not torch.equal(traced(x)[-1], before)


class Blur(nn.Module):
    window = Window(3)

    def forward(self, x):
        weight = torch.ones_like(x[:, :1]).unsqueeze(2).repeat(1, 1, 9, 1, 1) / 9
        return local_aggregate(x.unsqueeze(1), weight=weight, window=self.window)


def test_a_function_is_one_node():
    traced = fx.symbolic_trace(Blur())
    targets = [node.target for node in traced.graph.nodes]
    assert local_aggregate in targets
    x = torch.randn(1, 4, 6, 5)
    torch.testing.assert_close(traced(x), Blur()(x))
