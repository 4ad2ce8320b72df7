"""Backbones: published sizes, what mmdet's arguments do, and equality with stock mmdet where
nothing is replaced.
"""

import golden
import pytest
import torch
from torch import nn

from mmrednet.backbones import RedNet, SpatialResNet
from mmrednet.necks import SpatialFPN
from mmrednet.registry import MODELS

SMALL = dict(depth=26, base_channels=32)


@pytest.fixture(scope='module')
def image():
    return torch.randn(2, 3, 65, 47, generator=torch.Generator().manual_seed(0))


# millions, README of the involution repository; the classifier's linear layer has 2048 * 1000 +
# 1000
@pytest.mark.parametrize(
    ('depth', 'millions'), [(26, 9.23), (38, 12.39), (50, 15.54), (101, 25.65), (152, 33.99)]
)
def test_published_parameters(depth, millions):
    with torch.device('meta'):
        counts = {
            size: sum(
                parameter.numel() for parameter in RedNet(depth, stem_kernel_size=size).parameters()
            )
            for size in (3, 7)
        }
    assert round((counts[7] + 2_049_000) / 1e6, 2) == millions
    # only the expansion of the stem's kernels differs: 16 channels and a bias for each tap of each
    # of its two groups
    assert counts[7] - counts[3] == (49 - 9) * 2 * (16 // 2 + 1)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(style='caffe', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        dict(
            base_channels=16,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(0, 2),
            in_channels=4,
        ),
    ],
)
def test_without_operator_it_is_mmdets_resnet(arguments):
    from mmdet.models import ResNet

    stock, model = ResNet(50, **arguments).double(), SpatialResNet(50, **arguments).double().eval()
    stock.eval()
    stock.load_state_dict(
        golden.state_dict(
            dict(
                state_dict=[(key, value.shape, '') for key, value in stock.state_dict().items()],
                fill_scale=[('bn3.weight', 0.25)],
            )
        )
    )
    assert list(model.state_dict()) == list(stock.state_dict())
    model.load_state_dict(stock.state_dict())
    x = torch.randn(1, arguments.get('in_channels', 3), 37, 50, dtype=torch.float64)
    for got, expected in zip(model(x), stock(x), strict=True):
        assert torch.equal(got, expected)


def test_fpn_without_operator_is_mmdets_fpn():
    from mmdet.models import FPN

    arguments = dict(
        in_channels=[8, 16, 32],
        out_channels=8,
        num_outs=5,
        start_level=1,
        add_extra_convs='on_output',
        relu_before_extra_convs=True,
        norm_cfg=dict(type='BN'),
    )
    stock, model = (
        FPN(**arguments).double().eval(),
        SpatialFPN(**arguments, spatial_cfg=None).double().eval(),
    )
    model.load_state_dict(stock.state_dict())
    inputs = [
        torch.randn(1, 8 << level, 20 >> level, 13 >> level, dtype=torch.float64)
        for level in range(3)
    ]
    for got, expected in zip(model(inputs), stock(inputs), strict=True):
        assert torch.equal(got, expected)


def test_pyramid_of_an_odd_image(image):
    outputs = RedNet(**SMALL, out_indices=(1, 3))(image)
    assert [tuple(output.shape) for output in outputs] == [(2, 256, 9, 6), (2, 1024, 3, 2)]


@pytest.mark.parametrize('backbone', [RedNet, SpatialResNet])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
def test_frozen_stages_stay_frozen(backbone, frozen_stages, image):
    model = backbone(**SMALL, frozen_stages=frozen_stages).train()
    stem = 'stem' if backbone is RedNet else ('conv1', 'bn1')
    frozen = tuple(f'layer{index}.' for index in range(1, frozen_stages + 1))
    frozen += (stem if isinstance(stem, tuple) else (stem,)) if frozen_stages >= 0 else ()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum(output.sum() for output in model(image)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen or ('none',)), name
    for name, value in model.state_dict().items():
        if name.endswith('running_mean'):
            assert torch.equal(value, before[name]) == name.startswith(frozen or ('none',)), name


def test_train_returns_self_and_keeps_norms(image):
    model = RedNet(**SMALL, norm_eval=True)
    assert model.eval() is model
    assert model.train() is model
    assert model.training
    assert not any(
        module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    )
    assert model.layer2[0].conv1.training


def test_checkpointing_changes_nothing(image):
    plain, checkpointed = RedNet(**SMALL), RedNet(**SMALL, with_cp=True)
    checkpointed.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain, checkpointed):
        sum(output.square().mean() for output in model(image)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain_gradient, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, plain_gradient)


def test_operators_mix_by_stage():
    involution = dict(type='Involution', kernel_size=3)
    model = SpatialResNet(**SMALL, spatial_cfg=[None, None, involution, dict(type='Involution')])
    kinds = [type(getattr(model, f'layer{stage}')[0].conv2).__name__ for stage in range(1, 5)]
    assert kinds == ['Conv2d', 'Conv2d', 'Involution', 'Involution']
    assert [model.layer3[0].conv2.window.taps, model.layer4[0].conv2.window.taps] == [9, 49]


def test_norms_follow_the_config():
    model = RedNet(**SMALL, norm_cfg=dict(type='GN', num_groups=4))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert 'layer1.0.bn1.weight' in model.state_dict()


def test_blocks_begin_as_the_identity():
    model = RedNet(**SMALL)
    model.init_weights()
    assert all(float(block.bn3.weight.detach().abs().sum()) == 0 for block in model.layer3)
    assert float(model.layer3[0].bn1.weight.detach().sum()) > 0


@pytest.mark.parametrize('wrapper', ['', 'backbone.', 'module.', 'module.backbone.'])
def test_pretrained_file_in_the_official_format(wrapper, tmp_path):
    case, _ = golden.load('rednet26_cls')
    official = golden.state_dict(case)
    state = {
        wrapper + key.removeprefix('backbone.'): value
        for key, value in official.items()
        if 'backbone.' in key
    }
    state |= {key: value for key, value in official.items() if 'head.' in key}
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'official.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth'))
    model = RedNet(26, stem_kernel_size=3, init_cfg=init_cfg)
    model.init_weights()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(
            value.double(), official[f'backbone.{key}'].double(), rtol=1e-6, atol=1e-7, msg=key
        )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(depth=34), r'depth must be one of \[26, 38, 50, 101, 152\], got 34'),
        (dict(out_indices=(0, 4)), r'out_indices must be stages from 0 to 3, got \(0, 4\)'),
        (dict(out_indices=()), 'out_indices must be stages'),
        (dict(frozen_stages=5), 'frozen_stages must be from -1 to 4, got 5'),
        (dict(strides=(1, 2)), r'strides must have one entry per stage, 4, got \(1, 2\)'),
        (dict(spatial_cfg=[None, None]), 'spatial_cfg must have one entry per stage, 4'),
        (dict(style='tensorflow'), "style must be 'pytorch' or 'caffe', got 'tensorflow'"),
        (dict(num_stages=5), 'num_stages must be from 1 to 4, got 5'),
    ],
)
def test_bad_backbones(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialResNet(**arguments)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_outs=1), 'num_outs must be at least the number of inputs'),
        (dict(start_level=2), 'num_outs must be at least the number of inputs'),
        (
            dict(add_extra_convs='on_top'),
            "add_extra_convs must be a bool or one of .* got 'on_top'",
        ),
    ],
)
def test_bad_necks(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialFPN(**{**dict(in_channels=[16, 32], out_channels=16, num_outs=2), **arguments})
    with pytest.raises(ValueError, match='inputs must be 2 maps, one per in_channels, got 1'):
        SpatialFPN([16, 32], 16, 2)([torch.zeros(1, 16, 4, 4)])


@pytest.mark.parametrize(
    'arguments',
    [
        dict(type='mmrednet.RedNet', depth=26),
        dict(type='mmrednet.SASAResNet', depth=26, stem='attention'),
        dict(type='mmrednet.SASAResNet', depth=26),
        dict(type='mmrednet.SAN', depth=10),
        dict(type='mmrednet.SAN', depth=10, relation='patchwise'),
    ],
)
def test_an_image_is_converted_once_for_inference(arguments):
    torch.manual_seed(0)
    model = MODELS.build(arguments).eval()
    image, layouts = torch.randn(2, 3, 40, 56), []
    last = getattr(model, model.stage_names[-1][-1])
    last.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        results = model(image)
    expected = model(image)
    # a gradient is recorded in the layout of the image
    assert layouts == [True, False]
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-3, atol=1e-4)
    # the image itself stays as it is
    assert image.is_contiguous()


@pytest.mark.parametrize(
    'arguments',
    [
        dict(type='mmrednet.RedNet', depth=26),
        dict(type='mmrednet.SAN', depth=10),
        dict(type='mmrednet.VAN', arch='b0'),
        dict(type='mmrednet.MSCAN', arch='tiny'),
        dict(type='mmrednet.NAT', arch='mini'),
    ],
    ids=lambda arguments: arguments['type'],
)
@pytest.mark.parametrize('training', [False, True])
def test_outputs_have_the_layout_of_the_image(arguments, training):
    # mmcv's RoIAlign would read a channels-last map in the wrong order
    model, image = MODELS.build(arguments).train(training), torch.randn(2, 3, 64, 64)
    with torch.set_grad_enabled(training):
        assert all(output.is_contiguous() for output in model(image))
