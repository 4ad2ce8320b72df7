"""Stock configs of mmseg and mmdet whose types alone are replaced by ours."""

import copy
import logging
from importlib.util import find_spec
from pathlib import Path

import golden
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger

from mmrednet.analysis.stock_configs import build, failure, forward_failure
from mmrednet.backbones import MSCAN, VAN, SpatialResNet
from mmrednet.heads import LightHamHead, SpatialRPNHead
from mmrednet.heads.ham_head import _warn_of_inv_t
from mmrednet.necks import SpatialFPN

SEGNEXTS = {
    'mscan-t': ((32, 64, 160, 256), (3, 3, 5, 2)),
    'mscan-s': ((64, 128, 320, 512), (2, 2, 4, 2)),
    'mscan-b': ((64, 128, 320, 512), (3, 3, 12, 3)),
    'mscan-l': ((64, 128, 320, 512), (3, 5, 27, 3)),
}
# configs whose FPNs have other arguments each, and what their authors chose them for
DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': {},
    'retinanet/retinanet_r50_fpn_1x_coco': dict(start_level=1, add_extra_convs='on_input'),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': dict(relu_before_extra_convs=True),
    'nas_fpn/retinanet_r50_fpn_crop640-50e_coco': dict(no_norm_on_lateral=True),
    'gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco': dict(conv_cfg=dict(type='ConvWS')),
    'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman': dict(
        upsample_cfg=dict(mode='bilinear', align_corners=False)
    ),
    'strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco': dict(
        norm_cfg=dict(type='SyncBN', requires_grad=True)
    ),
}


def stock_model(scope, name):
    """Return the model of a config that an installed framework brings along."""
    folder = Path(find_spec(scope).origin).parent / '.mim/configs'
    model = Config.fromfile(folder / f'{name}.py').model
    model.backbone.init_cfg = None
    return model


def with_types(model, **types):
    """Return a config with other types of some parts."""
    model = copy.deepcopy(model)
    for part, type_name in types.items():
        model[part].type = f'mmrednet.{type_name}'
    return model


def in_double(module):
    """Return a module in eval mode and float64, with weights that differ from one another."""
    # in lines of their own: mmdet's modules return None from eval()
    module.double()
    module.eval()
    shapes = [(key, value.shape, '') for key, value in module.state_dict().items()]
    module.load_state_dict(golden.state_dict(dict(state_dict=shapes, fill_scale=())))
    return module


@pytest.mark.parametrize('width', SEGNEXTS)
def test_segnext(width):
    name = f'segnext/segnext_{width}_1xb16-adamw-160k_ade20k-512x512'
    stock = stock_model('mmseg', name)
    types = dict(backbone='MSCAN', decode_head='LightHamHead')
    model = build(with_types(stock, **types), 'mmseg', 'cpu').eval()
    embed_dims, depths = SEGNEXTS[width]
    assert isinstance(model.backbone, MSCAN)
    assert isinstance(model.decode_head, LightHamHead)
    arch = model.backbone.arch
    assert (tuple(arch['embed_dims']), tuple(arch['depths'])) == (embed_dims, depths)
    # mmseg's configs have the rank of the smallest in all sizes
    assert model.decode_head.hamburger.ham.rank == 16
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 64, 64), mode='tensor')
    assert logits.shape == (1, 150, 8, 8)
    assert logits.isfinite().all()


def test_segnexts_backbone_is_mmsegs():
    stock = stock_model('mmseg', 'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512')
    theirs = in_double(build(stock, 'mmseg', 'cpu').backbone)
    model = build(with_types(stock, backbone='MSCAN'), 'mmseg', 'cpu').backbone.double().eval()
    model.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 47, 64, dtype=torch.float64)
    for result, expected in zip(model(x), theirs(x), strict=True):
        torch.testing.assert_close(result, expected)


class TestMSCANArguments:
    small = dict(embed_dims=(8, 8), depths=(1, 1), mlp_ratios=(2, 2), out_indices=(0, 1))

    def test_entries_replace_those_of_arch(self):
        assert VAN('b1', depths=(1, 1, 1, 1)).arch == {
            'embed_dims': (64, 128, 320, 512),
            'depths': (1, 1, 1, 1),
            'mlp_ratios': (8, 8, 4, 4),
        }
        # the table stays as it is
        assert VAN.archs['b1']['depths'] == (2, 2, 4, 2)
        with pytest.raises(ValueError, match='one entry for each of 1 to 4'):
            VAN('b1', depths=(1, 1))

    def test_kernels_as_mmseg_writes_them(self):
        model = MSCAN(**self.small, attention_kernel_sizes=[3, [1, 5], [1, 9]])
        unit = model.block1[0].attn.spatial_gating_unit
        sizes = {name: conv.kernel_size for name, conv in unit.named_children() if 'conv' in name}
        assert sizes == {
            'conv0': (3, 3),
            'conv0_1': (1, 5),
            'conv0_2': (5, 1),
            'conv1_1': (1, 9),
            'conv1_2': (9, 1),
            'conv2': (1, 1),
        }

    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            (
                dict(attention_kernel_sizes=[3, [5, 5]]),
                'attention_kernel_sizes must be a size',
            ),
            (
                dict(attention_kernel_sizes=[3, [1, 5]], attention_kernel_paddings=[1, [0, 1]]),
                r'half of attention_kernel_sizes, \[1, \[0, 2\]\], got \[1, \[0, 1\]\]',
            ),
            (
                dict(attention_kernel_paddings=[2, [0, 3], [0, 5], [0, 9]]),
                r'half of attention_kernel_sizes, \[2, \[0, 3\], \[0, 5\], \[0, 10\]\], got',
            ),
            (
                dict(
                    attention_kernel_sizes=[3, [1, 5]],
                    spatial_cfg=dict(type='LargeKernelAttention'),
                ),
                'attention_kernel_sizes and spatial_cfg must not both be given',
            ),
        ],
    )
    def test_bad_kernels(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            MSCAN(**self.small, **arguments)

    @pytest.mark.parametrize('backbone', [VAN, MSCAN])
    def test_patch_sizes(self, backbone):
        x = torch.randn(1, 3, 64, 47)
        published = backbone(**self.small)
        model = backbone(**self.small, patch_sizes=(5, 7))
        assert model.patch_embed2.proj.kernel_size == (7, 7)
        stem = model.patch_embed1.proj
        assert (stem if backbone is VAN else stem[3]).kernel_size == (5, 5)
        for result, expected in zip(model(x), published(x), strict=True):
            assert result.shape == expected.shape
        with pytest.raises(ValueError, match='patch_sizes must be odd numbers, one for each of 2'):
            backbone(**self.small, patch_sizes=(5, 4))
        with pytest.raises(ValueError, match='patch_sizes must be odd numbers, one for each of 2'):
            backbone(**self.small, patch_sizes=(5,))

    @pytest.mark.parametrize('backbone', [VAN, MSCAN])
    def test_all_stages_are_returned(self, backbone):
        # mmpretrain's VAN returns the last one
        assert len(backbone().eval()(torch.zeros(1, 3, 32, 32))) == 4


class TestHam:
    arguments = dict(in_channels=[8], in_index=[0], channels=8, ham_channels=8, num_classes=2)

    @pytest.fixture
    def messages(self, caplog):
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        _warn_of_inv_t.cache_clear()
        yield lambda: [
            record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
        ]
        logger.removeHandler(caplog.handler)

    def test_inv_t_is_ignored_with_one_warning(self, messages):
        x = [torch.randn(1, 8, 6, 5)]
        ham_kwargs = dict(MD_R=4, inv_t=100)
        heads = []
        for options in (dict(MD_R=4), ham_kwargs, ham_kwargs):
            torch.manual_seed(0)
            heads.append(LightHamHead(**self.arguments, ham_kwargs=options).eval())
        assert torch.equal(heads[1](x), heads[0](x))
        assert [message[:43] for message in messages()] == [
            'ham_kwargs.inv_t=100 is ignored: the publis'
        ]
        # a config stays as it was
        assert ham_kwargs == dict(MD_R=4, inv_t=100)

    def test_an_inv_t_of_1_is_what_happens(self, messages):
        LightHamHead(**self.arguments, ham_kwargs=dict(inv_t=1))
        assert messages() == []


@pytest.mark.parametrize('name', DETECTORS)
def test_fpn_of_a_stock_config(name):
    cfg = stock_model('mmdet', name).neck
    assert cfg.type == 'FPN'
    assert cfg == {**cfg, **DETECTORS[name]}
    stock, model, involution = (
        in_double(build(dict(cfg, **changes), 'mmdet', 'cpu'))
        for changes in (
            {},
            dict(type='mmrednet.SpatialFPN', spatial_cfg=None),
            dict(type='mmrednet.SpatialFPN'),
        )
    )
    assert list(model.state_dict()) == list(stock.state_dict())
    inputs = [
        torch.randn(1, channels, 24 >> level, 17 >> level, dtype=torch.float64)
        for level, channels in enumerate(cfg.in_channels)
    ]
    expected = stock(inputs)
    for result, output in zip(model(inputs), expected, strict=True):
        torch.testing.assert_close(result, output)
    for result, output in zip(involution(inputs), expected, strict=True):
        assert result.shape == output.shape
        assert result.isfinite().all()


@pytest.mark.parametrize('name', DETECTORS)
def test_detector_of_a_stock_config(name):
    stock = stock_model('mmdet', name)
    types = dict(neck='SpatialFPN')
    if stock.get('rpn_head', {}).get('type') == 'RPNHead':
        types['rpn_head'] = 'SpatialRPNHead'
    model = with_types(stock, **types)
    if name.startswith('crowddet'):
        # mmdet's head needs torchvision to run
        assert failure(model, 'mmdet') is None
    else:
        assert forward_failure(in_one_process(model), 'mmdet') is None


def in_one_process(cfg):
    """Return a config whose norms need no group of processes."""
    if isinstance(cfg, dict):
        is_norm = cfg.get('type') == 'MMSyncBN'
        changes = dict(type='BN') if is_norm else {}
        return ConfigDict({**{key: in_one_process(value) for key, value in cfg.items()}, **changes})
    return [in_one_process(item) for item in cfg] if isinstance(cfg, list) else cfg


class TestFPN:
    arguments = dict(in_channels=[8, 16, 32], out_channels=16)

    @pytest.mark.parametrize(
        'arguments',
        [
            dict(num_outs=2, end_level=1),
            dict(num_outs=1, start_level=1, end_level=1),
            dict(num_outs=4, end_level=2, add_extra_convs='on_lateral'),
            dict(num_outs=3, no_norm_on_lateral=True, norm_cfg=dict(type='BN')),
            dict(num_outs=3, act_cfg=dict(type='ReLU')),
            dict(num_outs=3, upsample_cfg=dict(mode='nearest', scale_factor=2)),
            dict(num_outs=3, upsample_cfg=dict(mode='bilinear', align_corners=True)),
        ],
    )
    def test_arguments_of_mmdet(self, arguments):
        from mmdet.models import FPN

        arguments = {**self.arguments, **arguments}
        stock = in_double(FPN(**arguments))
        model = SpatialFPN(**arguments, spatial_cfg=None).double().eval()
        model.load_state_dict(stock.state_dict())
        inputs = [
            torch.randn(2, 8 << level, 24 >> level, 16 >> level, dtype=torch.float64)
            for level in range(3)
        ]
        expected = stock(inputs)
        for result, output in zip(model(inputs), expected, strict=True):
            assert torch.equal(result, output)
        shapes = [output.shape for output in SpatialFPN(**arguments).double()(inputs)]
        assert shapes == [output.shape for output in expected]

    def test_an_activation_follows_the_operator(self):
        neck = SpatialFPN(**self.arguments, num_outs=3, act_cfg=dict(type='ReLU'))
        inputs = [torch.randn(1, 8 << level, 8 >> level, 8 >> level) for level in range(3)]
        assert all(output.min() == 0 for output in neck(inputs))

    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            (dict(num_outs=3, end_level=3), 'end_level must be from -1 to 2, got'),
            (dict(num_outs=3, end_level=1), 'num_outs must be the number of inputs from start'),
            (dict(num_outs=1, start_level=2, end_level=1), 'num_outs must be at least'),
        ],
    )
    def test_bad_levels(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            SpatialFPN(**self.arguments, **arguments)


class TestRPN:
    @pytest.mark.parametrize('num_convs', [1, 2])
    def test_without_operator_it_is_mmdets(self, num_convs):
        from mmdet.models import RPNHead

        options = dict(in_channels=16, feat_channels=16, num_convs=num_convs)
        stock = in_double(RPNHead(**options))
        head = SpatialRPNHead(**options, spatial_cfg=None).double()
        head.load_state_dict(stock.state_dict())
        x = [torch.randn(1, 16, 7, 5, dtype=torch.float64)]
        for results, expected in zip(head(x), stock(x), strict=True):
            assert torch.equal(results[0], expected[0])

    def test_each_of_two_operators_has_a_relu(self):
        head = SpatialRPNHead(16, 16, num_convs=2).eval()
        first, second = head.rpn_conv
        x = torch.randn(1, 16, 7, 5)
        expected = head.rpn_cls(second[0](first[0](x).relu()).relu())
        torch.testing.assert_close(head([x])[0][0], expected)

    def test_no_operator(self):
        with pytest.raises(ValueError, match='num_convs must be at least 1, got num_convs=0'):
            SpatialRPNHead(16, 16, num_convs=0)


def test_norms_of_mmdets_resnet_differ_in_training_alone():
    from mmdet.models import ResNet

    stock = in_double(ResNet(50, base_channels=16))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for norm_eval in (False, True):
        model = SpatialResNet(50, base_channels=16, norm_eval=norm_eval).double().eval()
        model.load_state_dict(stock.state_dict())
        for mode in (False, True):
            model.train(mode)
            stock.train(mode)
            is_same = all(map(torch.equal, model(x), stock(x)))
            assert is_same == (norm_eval or not mode)
