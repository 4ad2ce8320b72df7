"""Involution against its formula, and how configs name operators."""

import golden
import oracles
import pytest
import torch
from torch import nn

from mmrednet.layers import Involution, build_spatial


@pytest.mark.parametrize(
    ('arguments', 'size'),
    [
        (dict(kernel_size=3), (5, 7)),
        (dict(kernel_size=7, group_channels=4), (6, 5)),
        (dict(kernel_size=3, stride=2), (6, 8)),
        (dict(kernel_size=3, stride=2), (7, 5)),
        (dict(kernel_size=5, stride=3, dilation=2), (7, 8)),
        (
            dict(kernel_size=3, norm_cfg=dict(type='GN', num_groups=2), act_cfg=dict(type='GELU')),
            (5, 4),
        ),
    ],
)
def test_involution_is_its_formula(arguments, size):
    layer = Involution(16, **{'group_channels': 8, **arguments}).double().eval()
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), oracles.involution(x, layer))


def test_involution_kernels_are_what_is_applied():
    layer = Involution(32, kernel_size=3).double().eval()
    x = torch.randn(1, 32, 5, 4, dtype=torch.float64)
    kernels = layer.generate(layer.conv1(layer.pool(x)))
    assert kernels.shape == (1, 2, 9, 5, 4)
    interior = layer(x)[..., 1:-1, 1:-1]
    patches = nn.functional.unfold(x, 3).view(1, 2, 16, 9, 3, 2)
    expected = (kernels[:, :, None, :, 1:-1, 1:-1] * patches).sum(3).flatten(1, 2)
    torch.testing.assert_close(interior, expected)


def test_reduced_precision():
    layer = Involution(32).eval()
    x = torch.randn(2, 32, 9, 8)
    expected = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        result = layer(x)
    assert result.dtype == torch.bfloat16
    assert golden.relative_error(result, expected) < 0.02


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(channels=24),
            'group_channels must divide channels, got channels=24, group_channels=16',
        ),
        (dict(channels=16, kernel_size=4), 'kernel_size must be odd, got kernel_size=4'),
        (dict(channels=16, reduction_ratio=32), 'reduction_ratio must be between 1 and channels'),
        (dict(channels=16, stride=0), 'stride must be at least 1, got stride=0'),
    ],
)
def test_bad_involutions(arguments, message):
    with pytest.raises(ValueError, match=message):
        Involution(**arguments)


def test_bad_spatial_configs():
    with pytest.raises(
        TypeError,
        match="spatial_cfg must be None .* or a dict with the key 'type', got 'Involution'",
    ):
        build_spatial('Involution', 16)
    with pytest.raises(
        KeyError, match="spatial_cfg.type must be a registered operator .* got 'Inception'"
    ):
        build_spatial(dict(type='Inception'), 16)


def test_the_norm_of_the_network_reaches_the_operator():
    group_norm = dict(type='GN', num_groups=2)
    assert isinstance(
        build_spatial(dict(type='Involution'), 16, norm_cfg=group_norm).conv1.norm, nn.GroupNorm
    )
    stated = dict(type='Involution', norm_cfg=dict(type='BN'))
    assert isinstance(build_spatial(stated, 16, norm_cfg=group_norm).conv1.norm, nn.BatchNorm2d)
