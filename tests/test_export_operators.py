"""Portable forms of the operators equal them, at sizes other than that of the example."""

import pytest
import torch
from operators import EXAMPLES
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from mmrednet.export import (
    attention_sums,
    blocking,
    capture,
    largest_error,
    local_sums,
    operators,
    portable,
)
from mmrednet.export.formats import blocking_message
from mmrednet.export.programs import without_kernels
from mmrednet.layers import build_spatial
from mmrednet.ops import Window

# mmcv's operators cannot be exported
NAMES = [name for name in EXAMPLES if name not in ('DCN', 'DCNv2')]
SIZES = [(11, 7), (5, 23), (8, 35)]
DILATED = 'neighbourhoods, dilation'
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
    # maps of less than 9 x 6 are padded
    DILATED: dict(type='NeighborhoodAttention', kernel_size=3, dilation=(3, 2), rel_pos_bias=False),
    'axial, one term': dict(
        type='AxialAttention', num_heads=2, terms=('query_position',), value_position=False
    ),
}


def build(cfg):
    """Return a layer. Its stride and dilation are those of a network, not of the config."""
    options = {key: cfg[key] for key in ('stride', 'dilation') if key in cfg}
    operator = {key: value for key, value in cfg.items() if key not in options}
    return build_spatial(operator, 16, **options)


def with_statistics(layer):
    """Give norms statistics that are not those of an identity."""
    for module in layer.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return layer


def test_attention_alone_has_a_portable_form_over_shifted_windows():
    value, weight = torch.randn(1, 2, 3, 5, 6), torch.randn(1, 2, 9, 5, 6)
    with pytest.raises(ValueError, match="border='zero' alone .* got 'shift'"):
        local_sums.aggregate(value, weight, list(Window(3, border='shift')))


@pytest.mark.parametrize('name', [*NAMES, *VARIANTS])
def test_portable_form(name):
    torch.manual_seed(0)
    layer = with_statistics(build(EXAMPLES.get(name) or VARIANTS[name]))
    layer = layer.eval().requires_grad_(False)
    program = capture(layer, torch.randn(2, 16, 12, 10))
    standard = portable(program)
    assert not blocking(standard)
    assert not any('unfold' in operator or 'im2col' in operator for operator in operators(standard))
    # module() builds a module with each call
    portable_module = standard.module()
    native_module = None if without_kernels(program) else program.module()
    assert (native_module is None) == (name == DILATED)
    for size in SIZES:
        x = torch.randn(3, 16, *size)
        expected = layer(x)
        assert largest_error([portable_module(x)], [expected]) < 2e-5
        if native_module is not None:
            assert largest_error([native_module(x)], [expected]) < 1e-6


def test_native_forms_for_any_size_have_no_dilated_shifted_windows():
    layer = build(VARIANTS[DILATED]).eval().requires_grad_(False)
    program = capture(layer, torch.randn(2, 16, 12, 10))
    message = blocking_message(program, 'aoti', 'native')
    assert message is not None
    assert 'mmrednet.attention over dilated shifted windows (1)' in message
    assert blocking_message(program, 'aoti', 'portable') is None
    one_size = capture(layer, torch.randn(2, 16, 12, 10), dynamic=False)
    assert blocking_message(one_size, 'aoti', 'native') is None


def map_of(groups, channels):
    """Return a feature map of a quarter of 480 x 640."""
    return torch.empty(1, groups, channels, 120, 160)


# portable form of an operator, its arguments, and the elements of its largest tensor as a share of
# those of its value
LARGEST = {
    'involution': (
        local_sums.involution,
        lambda: (map_of(4, 16), map_of(1, 16)[:, 0], torch.empty(4 * 49, 16), None),
        dict(kernel=7),
        1.77,
    ),
    'attention': (
        attention_sums.attention,
        lambda: (*(map_of(2, 32) for _ in range(3)), None, None, None),
        dict(kernel=7),
        1.89,
    ),
    'attention over shifted windows': (
        attention_sums.attention,
        lambda: (*(map_of(2, 32) for _ in range(3)), None, None, None),
        dict(kernel=7, border='shift'),
        1.8,
    ),
}


@pytest.mark.parametrize('name', LARGEST)
def test_portable_forms_have_no_large_tensor(name):
    """Unfolded, the value alone would have 49 times its elements."""
    portable_form, make_arguments, options, expected = LARGEST[name]
    # nothing is computed: the trace has the sizes of all tensors
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = make_arguments()
        window = list(Window(**options))
        graph = make_fx(lambda *inputs: portable_form(*inputs, window))(*tensors).graph
    results = [node.meta.get('val') for node in graph.nodes if node.op == 'call_function']
    sizes = [x.untyped_storage().nbytes() for x in results if isinstance(x, torch.Tensor)]
    largest = max(sizes) / tensors[0].untyped_storage().nbytes()
    assert largest == pytest.approx(expected, abs=0.006)
    assert largest < 2


def test_captured_programs_have_one_node_for_an_operator():
    layer = build_spatial(dict(type='Involution', group_channels=8), 16).eval()
    names = operators(capture(layer, torch.randn(1, 16, 12, 10)))
    assert blocking(capture(layer, torch.randn(1, 16, 12, 10))) == {'mmrednet.involution': 1}
    assert names['aten.conv2d'] == 1


def test_deformable_convolutions_are_named_before_an_export():
    program = capture(build_spatial(dict(type='DCN'), 16).eval(), torch.randn(2, 16, 12, 10))
    assert 'of these operators: mmrednet.deform_conv2d (1)' in blocking_message(
        program, 'onnx', 'portable'
    )
    assert blocking_message(program, 'exported-program', 'native') is None


def test_a_network_in_training_mode():
    with pytest.raises(ValueError, match='eval mode'):
        capture(torch.nn.Conv2d(3, 3, 1), torch.randn(1, 3, 8, 8))
