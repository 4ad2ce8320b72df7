"""Traced and exported operators work at sizes other than that of the example."""

import warnings

import pytest
import torch
from operators import EXAMPLES

from mmrednet.layers import build_spatial

# mmcv's operators cannot be exported
NAMES = [name for name in EXAMPLES if name not in ('DCN', 'DCNv2')]
SIZES = [(11, 6), (5, 13), (8, 9)]


@pytest.fixture(params=NAMES)
def layer(request):
    torch.manual_seed(0)
    return build_spatial(EXAMPLES[request.param], 16).eval().requires_grad_(False)


@pytest.fixture
def example():
    return torch.randn(2, 16, 8, 9)


def test_traces(layer, example):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(layer, example, check_trace=False)
    for size in SIZES:
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(traced(x), layer(x))


def test_exports(layer, example):
    height, width = (torch.export.Dim(name, min=3, max=64) for name in ('height', 'width'))
    exported = torch.export.export(layer, (example,), dynamic_shapes=({2: height, 3: width},))
    for size in SIZES:
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(exported.module()(x), layer(x))
