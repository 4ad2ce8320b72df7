"""What is checked before a run starts, and what the options of the scripts do to a config."""

import json
import logging

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.utils import digit_version
from running import run_code

from mmrednet import packages
from mmrednet.engine import (
    apply_test_options,
    apply_train_options,
    build_runner,
    check_classes,
    check_pretrained,
    load_config,
    scope_of,
)


@pytest.fixture(scope='module', autouse=True)
def _datasets():
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)


def annotations(folder, *names):
    (folder / 'ann.json').write_text(
        json.dumps(
            dict(
                images=[],
                annotations=[],
                categories=[dict(id=i, name=n) for i, n in enumerate(names)],
            )
        )
    )


def config(folder, classes=('cat', 'dog'), heads=2, **dataset):
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(
                rpn_head=dict(num_classes=1),
                roi_head=dict(
                    bbox_head=[dict(num_classes=heads)] * 2, mask_head=dict(num_classes=heads)
                ),
            ),
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    times=2,
                    dataset=dict(
                        type='CocoDataset',
                        data_root=str(folder),
                        ann_file='ann.json',
                        metainfo=dict(classes=classes),
                        **dataset,
                    ),
                )
            ),
        )
    )


def test_matching_classes_pass(tmp_path):
    annotations(tmp_path, 'cat', 'dog')
    check_classes(config(tmp_path))


def test_a_class_that_the_file_lacks_is_an_error(tmp_path):
    annotations(tmp_path, 'raccoon', 'dog')
    with pytest.raises(ValueError, match='only in the config') as caught:
        check_classes(config(tmp_path))
    for part in (
        "['cat', 'dog']",
        "['raccoon', 'dog']",
        'ann.json',
        'train_dataloader.dataset.dataset.metainfo',
    ):
        assert part in str(caught.value)


def test_the_classes_of_the_data_set_type_are_the_default(tmp_path):
    annotations(tmp_path, 'raccoon')
    cfg = config(tmp_path)
    del cfg.train_dataloader.dataset.dataset['metainfo']
    with pytest.raises(ValueError, match='toothbrush'):
        check_classes(cfg)


def test_a_part_of_the_classes_is_legal_and_logged_once(tmp_path, caplog):
    annotations(tmp_path, 'cat', 'dog', 'raccoon')
    cfg = config(tmp_path)
    cfg.val_dataloader = cfg.test_dataloader = cfg.train_dataloader
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    check_classes(cfg)
    logger.removeHandler(caplog.handler)
    messages = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert len(messages) == 1
    for part in (
        "['cat', 'dog']",
        "['cat', 'dog', 'raccoon']",
        'train_dataloader.dataset.dataset',
        'ann.json',
    ):
        assert part in messages[0]


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader', 'test_dataloader'])
@pytest.mark.parametrize(
    ('wrap', 'key'),
    [
        (lambda inner: inner, 'dataset'),
        (
            lambda inner: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner),
            'dataset.dataset',
        ),
        (
            lambda inner: dict(
                type='ConcatDataset', datasets=[dict(type='MultiImageMixDataset', dataset=inner)]
            ),
            'dataset.datasets.0.dataset',
        ),
    ],
)
def test_every_loader_is_checked_through_wrappers(tmp_path, loader, wrap, key):
    annotations(tmp_path, 'raccoon')
    inner = config(tmp_path).train_dataloader.dataset.dataset
    with pytest.raises(ValueError, match=f'{loader}.{key}.metainfo.classes must be names that'):
        check_classes(Config({'default_scope': 'mmdet', loader: dict(dataset=wrap(inner))}))


@pytest.mark.parametrize(
    ('classes', 'match'),
    [
        (
            'cat',
            r"must be a sequence of names or an existing file .* got 'cat'. A sequence of one name "
            r"is \('cat', \)",
        ),
        (None, r"metainfo must name the classes under 'classes', got them under 'CLASSES'"),
    ],
)
def test_classes_that_mmdet_would_misread_are_errors(tmp_path, classes, match):
    annotations(tmp_path, 'cat')
    cfg = config(tmp_path, classes=classes, heads=1)
    if classes is None:
        cfg.train_dataloader.dataset.dataset.metainfo = dict(CLASSES=('cat',))
    with pytest.raises(ValueError, match=match):
        check_classes(cfg)


def test_classes_may_be_a_file(tmp_path):
    annotations(tmp_path, 'cat', 'dog')
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    check_classes(config(tmp_path, classes=str(tmp_path / 'names.txt')))
    with pytest.raises(ValueError, match='num_classes must be 2'):
        check_classes(config(tmp_path, classes=str(tmp_path / 'names.txt'), heads=1))


@pytest.mark.parametrize(
    'content', ['{"a": 1}\n{"a": 2}', '[1, 2]', '{"metainfo": {}, "data_list": []}']
)
def test_other_formats_are_left_out(tmp_path, content):
    (tmp_path / 'ann.json').write_text(content)
    check_classes(config(tmp_path))
    voc = dict(
        type='VOCDataset',
        data_root='data/VOC',
        ann_file='no.txt',
        metainfo=dict(classes=('cat', 'dog')),
    )
    remote = dict(type='CocoDataset', data_root='s3://bucket', ann_file='ann.json')
    check_classes(
        Config(
            dict(
                default_scope='mmdet',
                train_dataloader=dict(dataset=voc),
                val_dataloader=dict(dataset=remote),
            )
        )
    )


def test_a_file_without_categories_is_an_error(tmp_path):
    (tmp_path / 'ann.json').write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r'the file has:   \[\]'):
        check_classes(config(tmp_path))


def test_heads_must_fit(tmp_path):
    annotations(tmp_path, 'cat', 'dog')
    with pytest.raises(
        ValueError, match=r'model.roi_head.bbox_head.0.num_classes must be 2.*got 80'
    ):
        check_classes(config(tmp_path, heads=80))
    cfg = config(tmp_path)
    cfg.model = dict(bbox_head=dict(type='RetinaHead', num_classes=3))
    with pytest.raises(ValueError, match=r'model.bbox_head.num_classes must be 2.*got 3'):
        check_classes(cfg)


def test_heads_fit_the_training_data_alone(tmp_path):
    annotations(tmp_path, 'cat', 'dog')
    cfg = config(tmp_path, heads=256)
    cfg.val_dataloader, cfg.train_dataloader = (
        cfg.train_dataloader,
        dict(dataset=dict(type='ODVGDataset', ann_file='')),
    )
    check_classes(cfg)


def test_heads_of_a_panoptic_network_score_things(tmp_path):
    annotations(tmp_path, 'cat', 'dog')
    cfg = config(tmp_path, heads=1)
    cfg.train_dataloader.dataset.dataset.metainfo.thing_classes = ('cat',)
    check_classes(cfg)


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r'train_dataloader.dataset.dataset.ann_file must be an existing file',
    ):
        check_classes(config(tmp_path))


def test_missing_weights_are_named(tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth'))
    cfg = Config(dict(model=dict(backbone=dict(type='X', init_cfg=init_cfg))))
    with pytest.raises(
        FileNotFoundError,
        match=r'model.backbone.init_cfg.checkpoint must be .*backbone.init_cfg=None',
    ):
        check_pretrained(cfg)
    (tmp_path / 'w.pth').write_text('')
    check_pretrained(cfg)
    cfg.model.backbone.init_cfg.checkpoint = 'torchvision://resnet50'
    check_pretrained(cfg)


def test_pretrained_files_are_missed_in_every_spelling(tmp_path):
    for type_name in ('Pretrained', 'mmengine.Pretrained'):
        cfg = Config(
            dict(model=dict(init_cfg=dict(type=type_name, checkpoint=str(tmp_path / 'w.pth'))))
        )
        with pytest.raises(
            FileNotFoundError, match='model.init_cfg.checkpoint must be an existing file'
        ):
            check_pretrained(cfg)


def test_unknown_scopes_are_named():
    with pytest.raises(
        ValueError, match=r"must be one of \('mmdet', 'mmseg', 'mmengine'\), got 'mmpose'"
    ):
        scope_of(Config(dict(default_scope='mmpose')))


def test_a_missing_framework_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, 'find_spec', lambda name: None if name == 'mmdet' else True)
    (tmp_path / 'c.py').write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'")
    with pytest.raises(
        ImportError,
        match=r'needs mmdet.*pip install onedl-mmdetection \(or, .* pip install mmdet\)',
    ):
        load_config(str(tmp_path / 'c.py'))


def test_load_config(tmp_path):
    (tmp_path / 'c.py').write_text("default_scope = 'mmdet'\nmodel = dict(depth=50)")
    cfg = load_config(str(tmp_path / 'c.py'), options={'model.depth': 26})
    assert (cfg.model.depth, cfg.work_dir, cfg.launcher) == (26, 'work_dirs/c', 'none')
    assert load_config(str(tmp_path / 'c.py'), work_dir='w').work_dir == 'w'
    with pytest.raises(FileNotFoundError, match=r"config must be an existing file, got 'none.py'"):
        load_config('none.py')


def test_configs_of_mmseg_are_found(tmp_path, monkeypatch):
    # the default scope of this process stays mmdet
    monkeypatch.setattr('mmseg.utils.register_all_modules', lambda **_: None)
    (tmp_path / 'c.py').write_text(
        "_base_ = 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'"
    )
    assert load_config(str(tmp_path / 'c.py')).model.type == 'EncoderDecoder'


def test_an_error_of_a_config_stays_what_it_is(tmp_path):
    (tmp_path / 'c.py').write_text("raise ModuleNotFoundError('mmdet is not the matter')")
    with pytest.raises(ModuleNotFoundError, match='not the matter'):
        load_config(str(tmp_path / 'c.py'))


def test_processes_without_gpu_need_gloo(monkeypatch):
    monkeypatch.setattr('mmrednet.engine.hosts.get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match="env_cfg.dist_cfg.backend must be 'gloo' .* got 'nccl'"):
        build_runner(Config(dict(launcher='pytorch')))


# in a process of its own, for the types that are allowed stay so
CHECKPOINTS = """
import sys, torch
from mmrednet.engine import allow_checkpoint_globals
allow_checkpoint_globals()
history = torch.load(sys.argv[1], weights_only=True)['message_hub']['loss']
print(history.mean(), history.current(), len(history.data[0]))
for path in sys.argv[2:]:
    try:
        torch.load(path, weights_only=True)
    except Exception as error:
        print(type(error).__name__, 'public methods of HistoryBuffer' in str(error))
"""


class Reaches:
    """Pickles as the attribute of something, as a file with bad intent may."""

    def __init__(self, owner, name):
        self.pair = owner, name

    def __reduce__(self):
        return getattr, self.pair


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'), reason='torch loads all by default'
)
def test_checkpoints_load_without_arbitrary_code(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save(dict(message_hub=dict(loss=history), best=np.float32(1)), tmp_path / 'good.pth')
    for index, (owner, name) in enumerate([(HistoryBuffer, '__init__'), (np.ndarray, 'tofile')]):
        torch.save(Reaches(owner, name), tmp_path / f'bad{index}.pth')
    paths = [tmp_path / f'{name}.pth' for name in ('good', 'bad0', 'bad1')]
    result = run_code(CHECKPOINTS, *paths)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        '2.0 3.0 2',
        'UnpicklingError True',
        'UnpicklingError True',
    ]


def test_train_options(tmp_path, monkeypatch):
    monkeypatch.setattr('mmrednet.engine.options.get_device', lambda: 'cuda')
    cfg = Config(
        dict(
            work_dir=str(tmp_path),
            optim_wrapper=dict(type='OptimWrapper'),
            auto_scale_lr=dict(enable=False, base_batch_size=16),
        )
    )
    apply_train_options(cfg, amp=True, auto_scale_lr=True, resume='auto')
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    assert cfg.auto_scale_lr.enable
    # there is nothing to continue from
    assert (cfg.resume, cfg.load_from) == (False, None)
    cfg.optim_wrapper.loss_scale = 512.0
    apply_train_options(cfg, amp=True, resume='x.pth')
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale=512.0)
    assert (cfg.resume, cfg.load_from) == (True, 'x.pth')
    with pytest.raises(ValueError, match='--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        apply_train_options(Config(dict()), auto_scale_lr=True)
    with pytest.raises(ValueError, match="--amp needs optim_wrapper.type .* got 'DeepSpeed'"):
        apply_train_options(Config(dict(optim_wrapper=dict(type='DeepSpeed'))), amp=True)


def test_test_options():
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(type='FasterRCNN'),
            default_hooks=dict(visualization=dict(type='V')),
            test_dataloader=dict(
                dataset=dict(pipeline=[dict(type='Load'), dict(type='PackDetInputs')])
            ),
        )
    )
    assert apply_test_options(cfg, checkpoint='x.pth', show_dir='pictures', tta=True) is None
    assert cfg.load_from == 'x.pth'
    assert cfg.default_hooks.visualization.draw
    assert cfg.default_hooks.visualization.test_out_dir == 'pictures'
    assert (cfg.model.type, cfg.model.module.type) == ('DetTTAModel', 'FasterRCNN')
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == ['Load', 'TestTimeAug']
    with pytest.raises(
        ValueError, match=r"--out must end in .pkl or .pickle for a detector, got 'x.json'"
    ):
        apply_test_options(cfg, checkpoint='x.pth', out='x.json')
    with pytest.raises(ValueError, match='need default_hooks.visualization'):
        apply_test_options(Config(dict(default_hooks={})), checkpoint='x.pth', show=True)


def test_test_options_of_segmentation():
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(type='EncoderDecoder'),
            test_evaluator=dict(type='IoUMetric'),
            visualizer=dict(type='V'),
            default_hooks=dict(visualization=dict(type='V')),
            test_dataloader=dict(dataset=dict(pipeline=[dict(type='Load')])),
            tta_model=dict(type='SegTTAModel'),
            tta_pipeline=[dict(type='TestTimeAug')],
        )
    )
    assert (
        apply_test_options(cfg, checkpoint='x.pth', out='labels', show_dir='pictures', tta=True)
        is None
    )
    assert (cfg.model.type, cfg.model.module.type) == ('SegTTAModel', 'EncoderDecoder')
    assert cfg.test_dataloader.dataset.pipeline[0].type == 'TestTimeAug'
    assert (cfg.test_evaluator.output_dir, cfg.visualizer.save_dir) == ('labels', 'pictures')
    cfg.pop('tta_model')
    with pytest.raises(
        ValueError, match=r"--tta needs tta_model and tta_pipeline .*\['tta_model'\] not found"
    ):
        apply_test_options(cfg, checkpoint='x.pth', tta=True)
