"""Traced and exported operators work at sizes other than that of the example."""

import warnings

import pytest
import torch
from operators import EXAMPLES

from mmrednet.layers import build_spatial

# torch.jit.trace cannot look into mmcv's operators
TRACED = [name for name in EXAMPLES if name not in ('DCN', 'DCNv2')]
SIZES = [(11, 6), (5, 13), (8, 9)]


def make_layer(name):
    torch.manual_seed(0)
    layer = build_spatial(EXAMPLES[name], 16).eval().requires_grad_(False)
    if hasattr(layer, 'conv_offset'):
        # taps that move
        torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    return layer


@pytest.fixture
def example():
    return torch.randn(2, 16, 8, 9)


@pytest.mark.parametrize('name', TRACED)
def test_traces(name, example):
    layer = make_layer(name)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(layer, example, check_trace=False)
    for size in SIZES:
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize('name', EXAMPLES)
def test_exports(name, example):
    layer = make_layer(name)
    height, width = (torch.export.Dim(name, min=3, max=64) for name in ('height', 'width'))
    exported = torch.export.export(layer, (example,), dynamic_shapes=({2: height, 3: width},))
    for size in SIZES:
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(exported.module()(x), layer(x))
