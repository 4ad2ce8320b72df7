"""LKA and MSCA against their formulas, and the backbones made of them."""

import golden
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmrednet.backbones import MSCAN, VAN
from mmrednet.layers import LargeKernelAttention, MultiScaleConvAttention, build_spatial
from mmrednet.layers.large_kernel import DepthWiseConv2d

SMALL = dict(
    arch=dict(embed_dims=(8, 16, 24), depths=(1, 2, 1), mlp_ratios=(2, 2, 2)), out_indices=(0, 1, 2)
)


def depth_wise(x, conv, dilation):
    """Sum the shifted maps, one tap at a time."""
    (height, width), result = conv.weight.shape[-2:], 0
    top, left = dilation * (height - 1) // 2, dilation * (width - 1) // 2
    padded = F.pad(x, (left, left, top, top))
    for u in range(height):
        for v in range(width):
            shifted = padded[
                ...,
                u * dilation : u * dilation + x.shape[-2],
                v * dilation : v * dilation + x.shape[-1],
            ]
            result = result + conv.weight[:, 0, u, v, None, None] * shifted
    return result + conv.bias[:, None, None]


def pointwise(x, conv):
    return torch.einsum('oc,bchw->bohw', conv.weight[..., 0, 0], x) + conv.bias[:, None, None]


@pytest.mark.parametrize(
    ('kernel_size', 'kernel_dilation', 'sizes'),
    [(7, 2, (3, 4)), (14, 3, (5, 5)), (21, 3, (5, 7)), (28, 4, (7, 7))],
)
@pytest.mark.parametrize('dilation', [1, 2])
def test_lka_is_its_formula(kernel_size, kernel_dilation, sizes, dilation):
    layer = LargeKernelAttention(
        4, kernel_size=kernel_size, kernel_dilation=kernel_dilation, dilation=dilation
    ).double()
    assert (layer.conv0.kernel_size[0], layer.conv_spatial.kernel_size[0]) == sizes
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    dilated = depth_wise(
        depth_wise(x, layer.conv0, dilation), layer.conv_spatial, dilation * kernel_dilation
    )
    torch.testing.assert_close(layer(x), pointwise(dilated, layer.conv1) * x)


@pytest.mark.parametrize('strips', [(3,), (7, 11, 21), (5, 9)])
@pytest.mark.parametrize('dilation', [1, 3])
def test_msca_is_its_formula(strips, dilation):
    layer = MultiScaleConvAttention(
        4, kernel_size=3, strip_sizes=strips, dilation=dilation
    ).double()
    x = torch.randn(2, 4, 6, 9, dtype=torch.float64)
    features = total = depth_wise(x, layer.conv0, dilation)
    for index in range(len(strips)):
        row = depth_wise(features, getattr(layer, f'conv{index}_1'), dilation)
        total = total + depth_wise(row, getattr(layer, f'conv{index}_2'), dilation)
    torch.testing.assert_close(layer(x), pointwise(total, getattr(layer, f'conv{len(strips)}')) * x)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ('kernel', 'dilation', 'size'),
    [
        ((7, 7), 3, (9, 12)),
        ((7, 7), 3, (7, 11)),
        ((5, 5), 2, (2, 1)),
        ((1, 7), 3, (5, 8)),
        ((4, 4), 2, (6, 5)),
    ],
)
def test_dilated_depth_wise_convolution_on_the_maps_that_its_taps_see_apart(
    kernel, dilation, size, layout
):
    layer = DepthWiseConv2d(6, kernel, dilation).double()
    x = (
        torch.randn(2, 6, *size, dtype=torch.float64)
        .contiguous(memory_format=layout)
        .requires_grad_()
    )
    got, expected = layer(x), nn.Conv2d.forward(layer, x)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    inputs = (x, *layer.parameters())
    for one, other in zip(
        torch.autograd.grad(got, inputs, weight),
        torch.autograd.grad(expected, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_trace_records_the_dilated_convolution_itself():
    traced = torch.jit.trace(DepthWiseConv2d(4, (7, 7), 3).eval(), torch.randn(1, 4, 9, 9))
    nodes = [node for node in traced.inlined_graph.nodes() if node.kind().startswith('aten::')]
    assert [node.kind() for node in nodes] == ['aten::_convolution']


@pytest.mark.parametrize('operator', [LargeKernelAttention, MultiScaleConvAttention])
def test_with_a_stride_the_product_is_averaged(operator):
    plain, strided = operator(4).double(), operator(4, stride=2).double()
    strided.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 7, 5, dtype=torch.float64)
    cells = plain(x)
    got = strided(x)
    torch.testing.assert_close(got[..., 1, 0], cells[..., 2:4, 0:2].mean((-2, -1)))
    torch.testing.assert_close(got[..., 3, 2], cells[..., 6, 4])


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (
            lambda: LargeKernelAttention(4, kernel_size=11, kernel_dilation=3),
            r'must be odd .* kernel_size=11',
        ),
        (
            lambda: LargeKernelAttention(4, kernel_dilation=0),
            'must be positive, got kernel_size=21, kernel_dilation=0',
        ),
        (
            lambda: MultiScaleConvAttention(4, strip_sizes=(7, 8)),
            r'must be odd, .* strip_sizes=\(7, 8\)',
        ),
        (lambda: MultiScaleConvAttention(4, strip_sizes=()), 'with at least one strip'),
        (lambda: VAN('b9'), "arch must be one of .*'b6'.* or a dict, got 'b9'"),
        (
            lambda: MSCAN('b0'),
            "arch must be one of .'tiny', 'small', 'base', 'large'. or a dict, got 'b0'",
        ),
        (
            lambda: VAN(dict(embed_dims=(8, 8), depths=(1,), mlp_ratios=(2, 2))),
            'arch must have the keys',
        ),
        (
            lambda: VAN('b0', out_indices=(4,)),
            r'out_indices must be stages from 0 to 3, got \(4,\)',
        ),
        (lambda: VAN('b0', [None, None]), 'spatial_cfg must have one entry per stage, 4'),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_layer_needs_its_channels_once():
    for arguments in (dict(), dict(channels=4, in_channels=4)):
        with pytest.raises(
            TypeError, match='must be given channels, or in_channels when it is a plugin'
        ):
            LargeKernelAttention(**arguments)


# millions, table 5 of VAN; its classifier has 1000 classes
@pytest.mark.parametrize(
    ('arch', 'millions'),
    [
        ('b0', 4.1),
        ('b1', 13.9),
        ('b2', 26.6),
        ('b3', 44.8),
        ('b4', 60.3),
        ('b5', 90.0),
        ('b6', 200),
    ],
)
def test_published_parameters_of_van(arch, millions):
    with torch.device('meta'):
        model = VAN(arch)
    count = (
        sum(parameter.numel() for parameter in model.parameters())
        + 1000 * model.arch['embed_dims'][-1]
    )
    assert abs(count + 1000 - millions * 1e6) < (0.5e6 if millions == 200 else 0.05e6)


# millions, table 2 of SegNeXt, the classifier included; 'small' has 13.96
@pytest.mark.parametrize(
    ('arch', 'millions'), [('tiny', 4.2), ('small', 14.0), ('base', 26.8), ('large', 45.2)]
)
def test_published_parameters_of_mscan(arch, millions):
    with torch.device('meta'):
        model = MSCAN(arch)
    count = (
        sum(parameter.numel() for parameter in model.parameters())
        + 1000 * model.arch['embed_dims'][-1]
    )
    # 45.150 was printed as 45.2
    assert abs(round((count + 1000) / 1e6, 2) - millions) < 0.0501


@pytest.mark.parametrize('backbone', [VAN, MSCAN])
class TestBackbones:
    def test_pyramid_of_an_odd_image(self, backbone):
        outputs = backbone(**SMALL).double()(torch.randn(2, 3, 45, 31, dtype=torch.float64))
        assert [tuple(output.shape) for output in outputs] == [
            (2, 8, 12, 8),
            (2, 16, 6, 4),
            (2, 24, 3, 2),
        ]

    def test_checkpointing_changes_nothing(self, backbone):
        plain, checkpointed = (
            backbone(**SMALL, with_cp=flag, drop_path_rate=0.0) for flag in (False, True)
        )
        checkpointed.load_state_dict(plain.state_dict())
        gradients = []
        x = torch.randn(2, 3, 32, 32)
        for model in (plain, checkpointed):
            sum(output.square().mean() for output in model(x)).backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        for plain_gradient, gradient in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, plain_gradient)

    @pytest.mark.parametrize(
        ('frozen_stages', 'frozen'),
        [
            (-1, ()),
            (0, ('patch_embed1',)),
            (2, ('patch_embed1', 'block1', 'norm1', 'patch_embed2', 'block2', 'norm2')),
        ],
    )
    def test_frozen_stages(self, backbone, frozen_stages, frozen):
        model = backbone(**SMALL, frozen_stages=frozen_stages).train()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (name.split('.')[0] not in frozen), name
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == (name.split('.')[0] not in frozen), name

    def test_stochastic_depth_grows(self, backbone):
        model = backbone(**SMALL, drop_path_rate=0.3)
        rates = [
            getattr(block.drop_path, 'drop_prob', 0.0)
            for index in (1, 2, 3)
            for block in getattr(model, f'block{index}')
        ]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
        model.train()
        torch.manual_seed(0)
        x = torch.randn(1, 3, 32, 32).expand(4, -1, -1, -1)
        assert not torch.equal(*model(x)[2][:2])

    def test_layer_scale_and_norms(self, backbone):
        model = backbone(**SMALL, layer_scale=0.5, norm_cfg=dict(type='GN', num_groups=2))
        assert float(model.block2[1].layer_scale_2.detach().mean()) == 0.5
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())

    def test_operators_mix_by_stage(self, backbone):
        model = backbone(
            **SMALL,
            spatial_cfg=[
                None,
                dict(type='Involution', group_channels=8),
                dict(type='LargeKernelAttention', kernel_size=7, kernel_dilation=2),
            ],
        )
        assert [
            type(getattr(model, f'block{index}')[0].attn.spatial_gating_unit).__name__
            for index in (1, 2, 3)
        ] == ['Conv2d', 'Involution', 'LargeKernelAttention']

    def test_initial_weights_are_the_authors(self, backbone):
        torch.manual_seed(0)
        model = backbone('b0' if backbone is VAN else 'tiny')
        model.init_weights()
        # fan-out of a depth-wise 3x3 kernel is 9
        assert float(model.block1[0].mlp.dwconv.weight.detach().std()) == pytest.approx(
            (2 / 9) ** 0.5, rel=0.05
        )
        assert float(model.block1[0].mlp.fc1.weight.detach().std()) == pytest.approx(
            (2 / 256) ** 0.5, rel=0.05
        )
        assert float(model.block1[0].mlp.fc1.bias.detach().abs().max()) == 0


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_names_of_mmpretrain_load(prefix):
    case, _ = golden.load('van_b0')
    official = golden.state_dict(case)
    renamed = {}
    for key, value in official.items():
        for old, new in (
            ('block', 'blocks'),
            ('.proj.', '.projection.'),
            ('conv0', 'DW_conv'),
            ('conv_spatial', 'DW_D_conv'),
            ('dwconv.dwconv', 'dwconv'),
        ):
            key = key.replace(old, new)
        renamed[prefix + key] = value
    model = VAN('b0')
    result = model.load_state_dict(renamed, strict=False)
    assert result.missing_keys == []
    assert [key.split('.')[-2] for key in result.unexpected_keys] == ['head', 'head']
    torch.testing.assert_close(
        model.block3[1].attn.spatial_gating_unit.conv_spatial.weight.double(),
        official['block3.1.attn.spatial_gating_unit.conv_spatial.weight'],
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize('operator', ['LargeKernelAttention', 'MultiScaleConvAttention'])
def test_reduced_precision(operator):
    layer = build_spatial(dict(type=operator), 16).eval()
    x = torch.randn(2, 16, 9, 8)
    expected = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        assert golden.relative_error(layer(x), expected) < 0.03
