"""What stock ResNet configs pass to a backbone, and what a user misspells."""

import copy
import inspect
import logging
import pickle
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, TASK_UTILS
from mmengine.registry import MODELS as ROOT_MODELS
from test_training import CONFIG, data, options  # noqa: F401
from torch import nn

from mmrednet.analysis.stock_configs import (
    StockConfig,
    build,
    failure,
    forward_failure,
    head_types,
    one_of_each_head,
    resnet50s,
    with_backbone,
)
from mmrednet.backbones import VAN, RedNet, SpatialResNet
from mmrednet.engine import apply_train_options, load_config, named_types
from mmrednet.layers import DCN, DCNv2
from mmrednet.necks import SpatialFPN
from mmrednet.registry import MODELS

ROOT = Path(__file__).parents[1]
AFTER = dict(position='after_conv2')


def stock(scope, **arguments):
    if scope == 'mmdet':
        from mmdet.models import ResNet
    else:
        from mmseg.models.backbones import ResNet
    return ResNet(50, **arguments)


@pytest.mark.parametrize(
    ('scope', 'arguments'),
    [
        ('mmdet', dict(deep_stem=True)),
        ('mmdet', dict(stem_channels=32)),
        ('mmseg', dict(deep_stem=True, stem_channels=128)),
        ('mmdet', dict(avg_down=True)),
        ('mmdet', dict(dcn=dict(type='DCN'), stage_with_dcn=(False, True, False, False))),
        (
            'mmdet',
            dict(
                dcn=dict(type='DCNv2', deform_groups=2, fallback_on_stride=False),
                stage_with_dcn=(False, False, True, True),
            ),
        ),
        (
            'mmdet',
            dict(conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='GN', num_groups=32)),
        ),
        ('mmseg', dict(contract_dilation=True, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1))),
        (
            'mmseg',
            dict(dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), multi_grid=(1, 2, 4)),
        ),
    ],
)
def test_without_an_operator_it_is_the_stock_resnet(scope, arguments):
    torch.manual_seed(1)
    theirs, ours = stock(scope, **arguments), SpatialResNet(50, **arguments)
    state = {key.replace('gn', 'bn'): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    # networks of mmdet return nothing from eval()
    theirs.double().eval()
    ours.double().eval()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for left, right in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(left, right)


def test_groups_of_norms_inside_operators_are_halved_until_they_fit():
    model = RedNet(26, norm_cfg=dict(type='GN', num_groups=32))
    inner = [m for m in model.stem[1].modules() if isinstance(m, nn.GroupNorm)]
    assert [norm.num_groups for norm in inner] == [8]
    assert model.layer1[0].bn1.num_groups == 32
    # the same in every place for operators
    neck = SpatialFPN([64], 64, 1, norm_cfg=dict(type='GN', num_groups=32))
    assert neck.fpn_convs[0][0].conv1.norm.num_groups == 16


def test_the_norms_that_an_operator_states_are_not_changed():
    operator = dict(type='Involution', norm_cfg=dict(type='GN', num_groups=32))
    with pytest.raises(
        ValueError,
        match=r"norm_cfg=.*'num_groups': 32.* does not fit the norms inside Involution of 64 chan",
    ):
        RedNet(26, operator)


def test_a_stem_of_other_channels():
    model = RedNet(26, stem_channels=32)
    assert model.layer1[0].conv1.in_channels == 32
    assert model(torch.ones(2, 3, 64, 64))[0].shape == (2, 256, 16, 16)


class TestLogs:
    @pytest.fixture
    def messages(self, caplog):
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        yield lambda: [
            record.getMessage() for record in caplog.records if record.levelno >= logging.INFO
        ]
        logger.removeHandler(caplog.handler)

    def test_dcn_in_place_of_an_operator(self, messages):
        arguments = dict(dcn=dict(type='DCN'), stage_with_dcn=(False, True, False, True))
        RedNet(26, **arguments)
        assert messages() == [
            "dcn={'type': 'DCN'} replaces the operators of spatial_cfg in the stages 2, 4."
        ]
        # as in mmdet, it replaces plain convolutions without a word
        SpatialResNet(26, **arguments)
        assert len(messages()) == 1

    def test_groups_that_were_halved(self, messages):
        RedNet(26, norm_cfg=dict(type='GN', num_groups=32))
        assert messages()[0].startswith('Involution of 32 channels has norms of 8 groups inside')


def test_zero_init_residual():
    for value, weight in ((True, 0.0), (False, 1.0)):
        model = RedNet(26, base_channels=32, zero_init_residual=value)
        model.init_weights()
        assert float(model.layer1[0].bn3.weight.mean()) == weight


def test_pretrained_is_short_for_init_cfg():
    assert RedNet(26, pretrained='x.pth').init_cfg == dict(type='Pretrained', checkpoint='x.pth')
    assert VAN(pretrained='x.pth').init_cfg == dict(type='Pretrained', checkpoint='x.pth')
    with pytest.raises(
        ValueError, match=r'init_cfg and pretrained must not both .*pretrained=None'
    ):
        RedNet(26, pretrained='x.pth', init_cfg=dict(type='Pretrained', checkpoint='y.pth'))


@pytest.mark.parametrize(
    ('cfg', 'error', 'match'),
    [
        (
            dict(type='RedNet', depht=26),
            TypeError,
            "^RedNet has no argument 'depht'; did .*'depth'",
        ),
        (dict(type='SAN', relations='x'), TypeError, "^SAN has no argument .* mean 'relation'"),
        (
            dict(type='VAN', depth=50),
            TypeError,
            "^VAN has no argument 'depth', which is for ResNets alone: .* chosen by arch",
        ),
        (dict(type='MSCAN', dcn=None), TypeError, "^MSCAN has no argument 'dcn', .*deform"),
        (dict(type='RedNett'), KeyError, "'RedNett' is no registered model .* mean 'RedNet'"),
        (
            dict(type='RedNet', spatial_cfg=dict(type='Involutoin')),
            KeyError,
            "spatial_cfg.type must be .* got 'Involutoin'; did you mean 'Involution'",
        ),
        (
            dict(
                type='RedNet',
                dcn=dict(type='DCN', fallback_on_stride=True),
                stage_with_dcn=[True] * 4,
            ),
            ValueError,
            'dcn.fallback_on_stride must be False',
        ),
        (
            dict(type='LRNet', norm_cfg=dict(type='GN', num_groups=32)),
            ValueError,
            "operator_channels must be divisible .*'GN'.*=100; 96 and 128 are",
        ),
        (dict(type='RedNet', multi_grid=(1, 2)), ValueError, 'multi_grid must have .* 3, got'),
    ],
)
def test_errors_name_what_the_user_wrote(cfg, error, match):
    with pytest.raises(error, match=match):
        # the default scope of the process may be another's
        MODELS.build(dict(cfg, type=f'mmrednet.{cfg["type"]}'))


def test_a_misspelt_name_from_another_registry():
    with pytest.raises(KeyError, match="'RedNett' is no registered model .* did you mean 'RedNet'"):
        ROOT_MODELS.build(dict(type='mmrednet.RedNett'))


@pytest.mark.parametrize(
    ('registry', 'name', 'kind', 'right'),
    [
        (ROOT_MODELS, 'RedNet', 'model', 'mmrednet.RedNet'),
        (ROOT_MODELS, 'RedNett', 'model', 'mmrednet.RedNet'),
        (ROOT_MODELS, 'ResNett', 'model', 'ResNet'),
        (ROOT_MODELS, 'mmdet.FasterRCN', 'model', 'FasterRCNN'),
        (ROOT_MODELS, 'EncoderDecodr', 'model', 'mmseg.EncoderDecoder'),
        (TASK_UTILS, 'AnchorGenrator', 'task util', 'AnchorGenerator'),
        (DATASETS, 'CocoDatset', 'dataset', 'CocoDataset'),
    ],
)
def test_a_misspelt_type_in_a_config(registry, name, kind, right):
    from mmdet.utils import register_all_modules as register_mmdet
    from mmseg.utils import register_all_modules as register_mmseg

    register_mmseg(init_default_scope=False)
    register_mmdet(init_default_scope=True)
    with (
        pytest.raises(KeyError, match=f"'{name}' .* no registered {kind}; did you mean '{right}'"),
        named_types(),
        registry.switch_scope_and_registry('mmdet') as children,
    ):
        children.build(dict(type=name))


def test_errors_that_are_about_something_else():
    with pytest.raises(KeyError, match='^1$'), named_types():
        raise KeyError(1)
    with pytest.raises(KeyError, match='xyzzy is not in the'), named_types():
        ROOT_MODELS.build(dict(type='xyzzy'))


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_scripts_name_the_nearest_type(script, options, tmp_path, monkeypatch):  # noqa: F811
    torch.save({}, tmp_path / 'w.pth')
    files = [CONFIG] if script == 'train.py' else [CONFIG, tmp_path / 'w.pth']
    words = [script, *files, '--work-dir', tmp_path, *options, 'model.backbone.type=RedNett']
    monkeypatch.setattr(sys, 'argv', [str(word) for word in words])
    main = runpy.run_path(str(ROOT / 'tools' / script))['main']
    with pytest.raises(KeyError, match="did you mean 'mmrednet.RedNet'"):
        main()


@pytest.mark.parametrize(
    ('cfg', 'match'),
    [
        (
            dict(type='SpatialFPN', in_channels=[8], out_channels=16, num_out=1),
            "^SpatialFPN has no argument 'num_out'; did you mean 'num_outs'",
        ),
        (
            dict(type='SpatialRPNHead', in_channels=256, feat_channel=16),
            "^SpatialRPNHead has no argument 'feat_channel'; did you mean 'feat_channels'",
        ),
        (
            dict(type='SpatialRetinaHead', num_classes=2, in_channels=256, stacked_conv=2),
            "^SpatialRetinaHead has no argument 'stacked_conv'; did you mean 'stacked_convs'",
        ),
        (
            dict(type='SpatialFCNMaskHead', num_class=2),
            "^SpatialFCNMaskHead has no argument 'num_class'; did you mean 'num_classes'",
        ),
        (
            dict(type='LightHamHead', in_channels=[8], in_index=[0], channels=8, numclasses=2),
            "^LightHamHead has no argument 'numclasses'; did you mean 'num_classes'",
        ),
        (
            dict(type='RedNet', spatial_cfg=dict(type='Involution', kernel=3)),
            "^Involution has no argument 'kernel'; did you mean 'kernel_size'",
        ),
        (
            dict(type='OperatorChain', channels=16, operator=[]),
            "^OperatorChain has no argument 'operator'; did you mean 'operators'",
        ),
        # not a word about ResNets
        (
            dict(type='Involution', channels=16, dilations=2),
            "^Involution has no argument 'dilations'; did you mean 'dilation'",
        ),
        # an error of a part is not one of the whole
        (
            dict(type='RedNet', plugins=[dict(cfg=dict(type='mmrednet.CBAM', deep=1), **AFTER)]),
            "^CBAM has no argument 'deep'; it has ",
        ),
    ],
)
def test_a_misspelt_argument(cfg, match):
    with pytest.raises(TypeError, match=match):
        MODELS.build(dict(cfg, type=f'mmrednet.{cfg["type"]}'))


def test_the_signature_of_our_classes():
    # tools and documentation read it
    assert next(iter(inspect.signature(RedNet).parameters)) == 'depth'


@pytest.mark.parametrize('layer', [DCN, DCNv2])
class TestDeformable:
    def test_offsets_have_their_own_learning_rate(self, layer):
        module = layer(8)
        wrapper = build_optim_wrapper(
            nn.Sequential(module),
            dict(optimizer=dict(type='SGD', lr=1.0), paramwise_cfg=dict(dcn_offset_lr_mult=0.1)),
        )
        groups = wrapper.optimizer.param_groups
        rates = {id(group['params'][0]): group['lr'] for group in groups}
        assert rates[id(module.conv_offset.weight)] == rates[id(module.conv_offset.bias)] == 0.1
        assert rates[id(module.weight)] == 1.0

    def test_compilation(self, layer):
        module, x = layer(8).eval(), torch.randn(1, 8, 9, 9)
        nn.init.normal_(module.conv_offset.weight, std=0.1)
        torch.testing.assert_close(torch.compile(module, backend='eager')(x), module(x))

    def test_the_operator_of_an_export(self, layer):
        module, x = layer(8, stride=2, dilation=2), torch.randn(2, 8, 9, 12)
        nn.init.normal_(module.conv_offset.weight, std=0.1)
        exported = torch.export.export(module.eval(), (x,))
        # the operator is in a part without autocast
        graphs = [part.graph for part in exported.graph_module.modules() if hasattr(part, 'graph')]
        nodes = [node for graph in graphs for node in graph.nodes]
        (node,) = [node for node in nodes if str(node.target).startswith('mmrednet.')]
        shapes = [value.meta['val'].shape for value in node.args if hasattr(value, 'meta')]
        arguments = [torch.randn(shape) for shape in shapes]
        arguments += [value for value in node.args if not hasattr(value, 'meta')]
        if layer is DCNv2:
            # without a bias
            assert arguments[4] is None
        torch.library.opcheck(node.target, arguments, test_utils=('test_schema', 'test_faketensor'))
        torch.testing.assert_close(exported.module()(x), module(x))

    def test_copies_and_pickles(self, layer):
        module, x = layer(8, stride=2), torch.randn(1, 8, 9, 9)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert isinstance(copied, layer)
            assert isinstance(copied, DeformConv2d | ModulatedDeformConv2d)
            assert torch.equal(copied(x), module(x))
        assert repr(module).startswith(f'{layer.__name__}(\n  (conv_offset)')


def write(folder, text):
    (folder / 'c.py').write_text(text)
    return str(folder / 'c.py')


def test_weights_for_the_template_need_no_delete(tmp_path):
    template = Path(__file__).parents[1] / 'configs/custom/faster-rcnn_rednet26_custom.py'
    cfg = load_config(
        write(
            tmp_path,
            f"_base_ = '{template}'\nmodel = dict(backbone=dict("
            "init_cfg=dict(type='Pretrained', checkpoint='rednet26.pth')))\n",
        )
    )
    assert cfg.model.backbone.init_cfg.checkpoint == 'rednet26.pth'
    assert cfg.model.backbone.type == 'mmrednet.RedNet'


def test_no_workers(tmp_path):
    cfg = load_config(
        write(tmp_path, "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"),
        options={'train_dataloader.num_workers': 0},
    )
    assert 'persistent_workers' not in cfg.train_dataloader
    assert cfg.val_dataloader.persistent_workers


def test_amp_on_a_cpu_is_bfloat16(monkeypatch):
    monkeypatch.setattr('mmrednet.engine.options.get_device', lambda: 'cpu')
    cfg = Config(
        dict(
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), loss_scale=512.0
            )
        )
    )
    apply_train_options(cfg, amp=True)
    model = nn.Linear(4, 4)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    with wrapper.optim_context(model):
        output = model(torch.ones(1, 4))
    assert output.dtype == torch.bfloat16
    before = model.weight.detach().clone()
    wrapper.update_params(output.float().sum())
    assert not torch.equal(before, model.weight)


class TestSweep:
    model = ConfigDict(
        type='RetinaNet',
        backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN'), norm_eval=True),
        neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=16, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=16, feat_channels=16),
    )

    def test_a_backbone_is_replaced(self):
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        replaced = with_backbone(self.model, 'mmrednet.RedNet')
        assert [backbone.type for backbone in resnet50s(self.model)] == ['ResNet']
        model = build(replaced, 'mmdet')
        assert isinstance(model.backbone, RedNet)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert failure(replaced, 'mmdet') is None
        reason = failure(with_backbone(self.model, 'mmrednet.VAN'), 'mmdet')
        assert reason.startswith("TypeError: VAN has no argument 'depth'")

    def test_teachers_are_found(self):
        assert len(resnet50s(ConfigDict(teacher=self.model, **self.model))) == 2

    def test_one_config_of_each_head(self):
        two_stages = ConfigDict(
            type='CascadeRCNN',
            rpn_head=dict(type='RPNHead'),
            roi_head=dict(type='CascadeRoIHead', bbox_head=[dict(type='A'), dict(type='B')]),
        )
        assert head_types(two_stages) == {'RPNHead', 'CascadeRoIHead', 'A', 'B'}
        assert head_types(ConfigDict(type='DETR')) == {'DETR'}
        fewer = ConfigDict(type='RPN', rpn_head=dict(type='RPNHead'))
        models = [self.model, self.model, two_stages, fewer]
        configs = [StockConfig(Path('a/b.py'), 'mmdet', model) for model in models]
        assert [config.model for config in one_of_each_head(configs)] == [self.model, two_stages]

    def test_an_image_is_computed(self):
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        replaced = with_backbone(self.model, 'mmrednet.RedNet')
        assert forward_failure(replaced, 'mmdet') is None
        replaced.neck.in_channels = [256, 512, 1024, 1024]
        assert failure(replaced, 'mmdet') is None
        reason = forward_failure(replaced, 'mmdet')
        assert reason.startswith('UnrunnableError: RetinaNet cannot be run for an image of 64 x 64')
