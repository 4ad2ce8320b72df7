"""Portable forms of the operators equal them, at sizes other than that of the example."""

import pytest
import torch
from operators import EXAMPLES

from mmrednet.export import blocking, capture, largest_error, operators, portable
from mmrednet.layers import build_spatial

# mmcv's operators cannot be exported
NAMES = [name for name in EXAMPLES if name not in ('DCN', 'DCNv2', 'NeighborhoodAttention')]
SIZES = [(11, 7), (5, 23), (8, 35)]
VARIANTS = {
    'involution, stride and dilation': dict(
        type='Involution', kernel_size=5, stride=2, dilation=2, group_channels=8
    ),
    'involution, generator with a norm behind it': dict(
        type='Involution', kernel_size=3, group_channels=4, act_cfg=None, norm_cfg=None
    ),
    'attention without positions': dict(
        type='StandAloneSelfAttention', kernel_size=5, num_heads=4, position='none', dilation=2
    ),
    'attention without content': dict(
        type='StandAloneSelfAttention', kernel_size=3, num_heads=2, content=False
    ),
    'squared differences': dict(
        type='LocalRelation', kernel_size=5, relation='squared_difference', stride=2
    ),
    'absolute differences': dict(type='LocalRelation', relation='absolute_difference', stride=2),
    'keys without a prior': dict(
        type='LocalRelation', kernel_size=3, relation='key', prior_channels=0
    ),
    'pairwise, concatenation': dict(
        type='SANPairwise', kernel_size=3, relation='concatenation', stride=2
    ),
    'pairwise, hadamard': dict(type='SANPairwise', kernel_size=5, relation='hadamard', dilation=2),
    'pairwise, a row': dict(type='SANPairwise', kernel_size=(1, 5), relation='dot_product'),
    'patchwise, star product': dict(type='SANPatchwise', kernel_size=3, relation='star_product'),
    'patchwise, clique product': dict(
        type='SANPatchwise', kernel_size=3, relation='clique_product'
    ),
    'patchwise, stride': dict(type='SANPatchwise', kernel_size=5, stride=2, dilation=2),
    'axial, span': dict(type='AxialAttention', num_heads=2, table_size=4, span=5),
    'axial, one term': dict(
        type='AxialAttention', num_heads=2, terms=('query_position',), value_position=False
    ),
}


def with_statistics(layer):
    """Give norms statistics that are not those of an identity."""
    for module in layer.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return layer


def test_shifted_windows_have_no_portable_form():
    layer = build_spatial(EXAMPLES['NeighborhoodAttention'], 16).eval().requires_grad_(False)
    with pytest.raises(Exception, match="border='zero' alone .* got 'shift'"):
        portable(capture(layer, torch.randn(2, 16, 12, 10)))


@pytest.mark.parametrize('name', [*NAMES, *VARIANTS])
def test_portable_form(name):
    torch.manual_seed(0)
    cfg = EXAMPLES.get(name) or VARIANTS[name]
    layer = with_statistics(build_spatial(cfg, 16)).eval().requires_grad_(False)
    program = capture(layer, torch.randn(2, 16, 12, 10))
    standard = portable(program)
    assert not blocking(standard)
    assert not any('unfold' in operator or 'im2col' in operator for operator in operators(standard))
    # module() builds a module with each call
    modules = program.module(), standard.module()
    for size in SIZES:
        x = torch.randn(3, 16, *size)
        expected = layer(x)
        assert largest_error([modules[0](x)], [expected]) < 1e-6
        assert largest_error([modules[1](x)], [expected]) < 2e-5


def test_captured_programs_have_one_node_for_an_operator():
    layer = build_spatial(dict(type='Involution', group_channels=8), 16).eval()
    names = operators(capture(layer, torch.randn(1, 16, 12, 10)))
    assert blocking(capture(layer, torch.randn(1, 16, 12, 10))) == {'mmrednet.involution': 1}
    assert names['aten.conv2d'] == 1


def test_a_network_in_training_mode():
    with pytest.raises(ValueError, match='eval mode'):
        capture(torch.nn.Conv2d(3, 3, 1), torch.randn(1, 3, 8, 8))
