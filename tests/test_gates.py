"""SE, CBAM and deformable convolution, and the doors through which operators enter stock models."""

import re
from importlib import import_module
from pathlib import Path

import golden
import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.registry import MODELS
from operators import EXAMPLES
from torch import nn

from mmrednet.backbones import SpatialResNet
from mmrednet.engine import load_config
from mmrednet.layers import CBAM, DCN, SE, DCNv2, SpatialConv, build_spatial

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ('name', 'build'),
    [
        ('op_se_c32', lambda: SE(32, bias=False)),
        ('op_se_timm_c32', lambda: SE(32, divisor=8)),
        ('op_cbam_c32', lambda: CBAM(32, reduction_ratio=8)),
        (
            'op_cbam_timm_c32',
            lambda: CBAM(32, reduction_ratio=8, bias=False, spatial_order='mean_max'),
        ),
    ],
)
def test_golden(name, build):
    case, arrays = golden.load(name)
    layer = build().double().eval()
    layer.load_state_dict(golden.state_dict(case), strict=True)
    assert sum(parameter.numel() for parameter in layer.parameters()) == case['num_parameters']
    x = golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape']).requires_grad_()
    output = layer(x)
    assert golden.relative_error(output, arrays['output']) < 1e-12
    torch.testing.assert_close(output, x * layer.gate(x))
    (output * golden.signed(case['grad_output_key'], output.shape)).sum().backward()
    assert golden.relative_error(x.grad, arrays['grad_input']) < 1e-11
    # in the order of the official entries, which ours are renamed from
    official = [
        arrays[f'grad.{key}'] for key, _, _ in case['state_dict'] if f'grad.{key}' in arrays
    ]
    for (key, parameter), expected in zip(layer.named_parameters(), official, strict=True):
        assert golden.relative_error(parameter.grad.flatten(), expected.flatten()) < 1e-11, key


def test_the_tutorial_convention():
    layer = CBAM(8, reduction_ratio=2, convention='tutorial').double()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    assert [name for name, _ in layer.spatial.named_parameters()] == ['conv.weight', 'conv.bias']
    channel = torch.sigmoid(
        layer.channel(x.mean((2, 3), keepdim=True)) + layer.channel(x.amax((2, 3), keepdim=True))
    )
    passed = x * channel
    pixel = layer.spatial.conv(torch.stack([passed.mean(1), passed.amax(1)], 1)).sigmoid()
    torch.testing.assert_close(layer(x), passed * pixel)


def plugged(times=1, **plugin):
    return SpatialResNet(plugins=[dict(cfg=dict(type='mmrednet.SE'), **plugin)] * times)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: SE(8, reduction_ratio=0), 'reduction_ratio and divisor must be at least 1'),
        (lambda: CBAM(8, convention='timm'), "convention must be one of .* got 'timm'"),
        (lambda: CBAM(8, spatial_order='mean'), "spatial_order must be one of .* got 'mean'"),
        (lambda: CBAM(8, kernel_size=4), 'kernel_size must be odd'),
        (lambda: DCN(8, kernel_size=2), 'kernel_size must be odd'),
        (lambda: plugged(position='before_conv1'), 'plugins.position must be one of'),
        (
            lambda: plugged(2, position='after_conv3'),
            "plugins.cfg.postfix must .* got 'se_layer' twice",
        ),
        (
            lambda: plugged(position='after_conv1', stages=(True,)),
            'plugins.stages must have one entry per stage, 4',
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ('layer_type', 'reference_name'),
    [(DCN, 'DeformConv2dPack'), (DCNv2, 'ModulatedDeformConv2dPack')],
)
@pytest.mark.parametrize('arguments', [dict(), dict(stride=2, dilation=2, deform_groups=2)])
def test_deformable_convolution_is_mmcvs(layer_type, reference_name, arguments):
    from mmcv import ops

    layer = layer_type(8, **arguments)
    dilation = arguments.get('dilation', 1)
    reference = getattr(ops, reference_name)(8, 8, 3, padding=dilation, bias=False, **arguments)
    assert list(layer.state_dict()) == list(reference.state_dict())
    assert float(layer.conv_offset.weight.detach().abs().sum()) == 0
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.3)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 7, 6)
    torch.testing.assert_close(layer(x), reference(x))
    with torch.autocast('cpu', torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert golden.relative_error(half.float(), reference(x)) < 0.1


# millions beyond ResNet-50 (25.557 with a classifier of 1000 classes): README of mmpretrain and of
# attention-module for the gates, for the others what offset channels make
@pytest.mark.parametrize(
    ('arguments', 'added'),
    [
        (
            dict(plugins=[dict(cfg=dict(type='mmrednet.SE'), position='after_conv3')]),
            28.088 - 25.557,
        ),
        (
            dict(plugins=[dict(cfg=dict(type='mmrednet.CBAM'), position='after_conv3')]),
            28.0896 - 25.557,
        ),
        (dict(spatial_cfg=[None, *[dict(type='DCN')] * 3]), 0.58),
        (dict(spatial_cfg=[None, *[dict(type='DCNv2')] * 3]), 0.87),
        (dict(spatial_cfg=[None, *[dict(type='DCNv2', deform_groups=4)] * 3]), 3.49),
    ],
)
def test_published_parameters(arguments, added):
    with torch.device('meta'):
        counts = [
            sum(parameter.numel() for parameter in SpatialResNet(50, **options).parameters())
            for options in ({}, arguments)
        ]
    assert abs((counts[1] - counts[0]) / 1e6 - added) < 0.006


@pytest.mark.parametrize(
    ('plugin', 'names'),
    [
        ('SE', {'se_layer.fc': 'se.fc'}),
        ('SE', {'se_layer.fc1': 'se_layer.conv1.conv', 'se_layer.fc2': 'se_layer.conv2.conv'}),
        ('SE', {'se_layer.fc': 'se_module.fc'}),
        (
            'CBAM',
            {
                'cbam.channel.fc1': 'cbam.ChannelGate.mlp.1',
                'cbam.channel.fc2': 'cbam.ChannelGate.mlp.3',
                'cbam.spatial': 'cbam.SpatialGate.spatial',
            },
        ),
    ],
)
def test_files_of_other_projects_load(plugin, names):
    model, other = (
        SpatialResNet(
            26,
            base_channels=16,
            plugins=[dict(cfg=dict(type=f'mmrednet.{plugin}'), position='after_conv3')],
        )
        for _ in range(2)
    )
    state = {}
    for key, value in model.state_dict().items():
        for name, official_name in names.items():
            key = key.replace(name, official_name)
        # linear layers there
        state[f'module.{key}'] = value[..., 0, 0] if '.mlp.' in key and value.dim() == 4 else value
    assert any(official_name in key for key in state for official_name in names.values())
    other.load_state_dict(state, strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('name', EXAMPLES)
def test_plugins_of_stock_resnets(host, name):
    resnet = import_module(f'{host}.models.backbones').ResNet
    cfg = dict(EXAMPLES[name], type=f'mmrednet.{name}')
    positions = ('after_conv1', 'after_conv2', 'after_conv3')
    everywhere = [
        dict(cfg=dict(cfg, postfix=f'_{position}'), position=position) for position in positions
    ]
    in_the_second = [dict(cfg=cfg, stages=(False, True), position='after_conv2')]
    # stages have three and four blocks
    for plugins, stages, count in ((everywhere, 1, 9), (in_the_second, 2, 4)):
        indices = tuple(range(stages))
        options = dict(num_stages=stages, strides=(1, 2)[:stages], dilations=(1, 1)[:stages])
        options.update(base_channels=16, stem_channels=16, out_indices=indices)
        model = resnet(50, plugins=plugins, **options)
        layers = [
            (path, module)
            for path, module in model.named_modules()
            if type(module).__name__ == name
        ]
        assert len(layers) == count
        outputs = model(torch.randn(2, 3, 32, 32))
        sum(output.square().mean() for output in outputs).backward()
        assert all(
            parameter.grad.isfinite().all()
            for _, layer in layers
            for parameter in layer.parameters()
        )


def stock(model_type, conv_cfg):
    """Return a stock module built with this conv_cfg, and its output for a random input."""
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    if model_type == 'ResNet':
        module = MODELS.build(
            dict(
                type='mmdet.ResNet', depth=50, base_channels=16, stem_channels=16, conv_cfg=conv_cfg
            )
        )
        return module, module(torch.randn(2, 3, 64, 64))
    if model_type == 'FPN':
        module = MODELS.build(
            dict(
                type='mmdet.FPN',
                in_channels=[16, 32],
                out_channels=16,
                num_outs=2,
                conv_cfg=conv_cfg,
            )
        )
        return module, module([torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)])
    if model_type == 'RetinaHead':
        module = MODELS.build(
            dict(
                type='mmdet.RetinaHead',
                num_classes=3,
                in_channels=16,
                feat_channels=16,
                conv_cfg=conv_cfg,
            )
        )
        return module, module.forward_single(torch.randn(2, 16, 8, 8))
    if model_type == 'FCNMaskHead':
        module = MODELS.build(
            dict(
                type='mmdet.FCNMaskHead',
                in_channels=16,
                conv_out_channels=16,
                num_classes=3,
                conv_cfg=conv_cfg,
            )
        )
        return module, [module(torch.randn(2, 16, 8, 8))]
    from mmseg.models.decode_heads import FCNHead

    module = FCNHead(
        in_channels=32, channels=16, num_classes=3, conv_cfg=conv_cfg, norm_cfg=dict(type='BN')
    )
    return module, [module([torch.randn(2, 32, 8, 8)])]


@pytest.mark.parametrize(
    ('model_type', 'count'),
    [('ResNet', 16), ('FPN', 2), ('RetinaHead', 8), ('FCNMaskHead', 4), ('FCNHead', 3)],
)
@pytest.mark.parametrize(
    'name', ['Involution', 'StandAloneSelfAttention', 'SANPatchwise', 'DCNv2', 'SE']
)
def test_conv_cfg_of_stock_models(model_type, count, name):
    cfg = dict(type='mmrednet.SpatialConv', spatial_cfg=EXAMPLES[name])
    module, outputs = stock(model_type, cfg)
    layers = [layer for layer in module.modules() if type(layer).__name__ == name]
    assert len(layers) == count
    sum(output.square().mean() for output in outputs).backward()
    assert all(
        parameter.grad.isfinite().all() for layer in layers for parameter in layer.parameters()
    )


class TestAdapter:
    def test_a_convolution_that_is_not_replaced_stays_one(self):
        layer = build_conv_layer(
            dict(type='mmrednet.SpatialConv'), 8, 16, 7, stride=2, padding=3, groups=4, bias=False
        )
        assert type(layer) is nn.Conv2d
        assert (layer.kernel_size, layer.stride, layer.groups, layer.bias) == (
            (7, 7),
            (2, 2),
            4,
            None,
        )

    def test_it_is_the_operator_behind_a_projection_and_a_bias(self):
        layer = SpatialConv(8, 16, 3, stride=2, padding=2, dilation=2).double().eval()
        layer.bias.data.normal_()
        x = torch.randn(1, 8, 7, 5, dtype=torch.float64)
        expected = layer.operator(layer.project(x)) + layer.bias[:, None, None]
        torch.testing.assert_close(layer(x), expected)
        assert (layer.operator.window.stride, layer.operator.window.dilation) == ((2, 2), (2, 2))
        assert SpatialConv(16, 16, 3, padding=1, bias=False).project is None

    def test_conv_module_reads_it(self):
        module = ConvModule(
            16,
            16,
            3,
            padding=1,
            conv_cfg=dict(type='mmrednet.SpatialConv'),
            norm_cfg=dict(type='BN'),
        )
        assert (module.out_channels, module.conv.bias, module.padding) == (16, None, 1)
        module.init_weights()
        assert module(torch.randn(2, 16, 5, 4)).shape == (2, 16, 5, 4)

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (
                dict(groups=4),
                'cannot replace a convolution with groups: groups must be 1, got groups=4',
            ),
            (
                dict(padding=0),
                r'conv_cfg.spatial_cfg=.*keeps the size of a map: padding must be 1, got padding=0',
            ),
            (dict(stride=(1, 2)), r'needs one number for both directions, got stride=\(1, 2\)'),
            (
                dict(spatial_cfg=dict(type='Involution', group_channels=5)),
                'conv_cfg.spatial_cfg=.*group_channels must',
            ),
            (
                dict(spatial_cfg=dict(type='Involution', heads=5)),
                "conv_cfg.spatial_cfg=.*has no argument 'heads'",
            ),
        ],
    )
    def test_what_cannot_work_names_the_key(self, arguments, message):
        with pytest.raises((ValueError, TypeError), match=message):
            SpatialConv(16, 16, 3, **{'padding': 1, **arguments})


def test_deformable_stages_mix_with_others():
    model = SpatialResNet(
        26, [None, dict(type='DCN'), dict(type='DCNv2'), dict(type='Involution')], base_channels=16
    )
    outputs = model(torch.randn(2, 3, 45, 37))
    assert [tuple(x.shape[-2:]) for x in outputs] == [(12, 10), (6, 5), (3, 3), (2, 2)]
    assert isinstance(build_spatial(dict(type='DCN'), 8), DCN)


RECIPES = re.findall(
    r'```python\n(.*?)```', (ROOT / 'docs/plug_into_your_model.md').read_text(), re.DOTALL
)


@pytest.mark.parametrize('index', range(3))
def test_recipes_of_the_guide_train(index, tmp_path):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    (tmp_path / 'recipe.py').write_text(RECIPES[index])
    cfg = load_config(str(tmp_path / 'recipe.py'))
    cfg.model.backbone.update(init_cfg=None, frozen_stages=-1)
    with MODELS.switch_scope_and_registry('mmdet') as registry:
        model = registry.build(cfg.model)
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    samples = [
        DetDataSample(
            metainfo=dict.fromkeys(
                ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (64, 64)
            ),
            gt_instances=InstanceData(
                bboxes=torch.tensor([[8.0, 8.0, 40.0, 36.0]]), labels=torch.tensor([1])
            ),
        )
    ] * 2
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        losses = model.loss(torch.randn(2, 3, 64, 64), samples)
        total = sum(sum(value) if isinstance(value, list) else value for value in losses.values())
        assert total.isfinite()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert any(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )
    assert len(RECIPES) == 3
