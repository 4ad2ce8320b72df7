"""What is checked before a run starts, and what the options of the scripts do to a config."""

import json

import pytest
from mmengine.config import Config

from mmrednet import packages
from mmrednet.engine import (
    apply_test_options,
    apply_train_options,
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
    (folder / 'ann.json').write_text(json.dumps(dict(categories=[dict(id=i, name=n) for i, n in enumerate(names)])))


def config(folder, classes=('cat', 'dog'), heads=2, **dataset):
    return Config(dict(
        default_scope='mmdet',
        model=dict(rpn_head=dict(num_classes=1), roi_head=dict(
            bbox_head=[dict(num_classes=heads)] * 2, mask_head=dict(num_classes=heads))),
        train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(
            type='CocoDataset', data_root=str(folder), ann_file='ann.json', metainfo=dict(classes=classes),
            **dataset)))))


def test_matching_classes_pass(tmp_path):
    annotations(tmp_path, 'dog', 'cat')
    check_classes(config(tmp_path))


def test_a_class_that_the_file_lacks_is_an_error(tmp_path):
    annotations(tmp_path, 'raccoon', 'dog')
    with pytest.raises(ValueError, match='only in the config') as caught:
        check_classes(config(tmp_path))
    for part in ("['cat', 'dog']", "['raccoon', 'dog']", 'ann.json', 'train_dataloader.dataset.dataset.metainfo'):
        assert part in str(caught.value)


def test_the_classes_of_the_data_set_type_are_the_default(tmp_path):
    annotations(tmp_path, 'raccoon')
    cfg = config(tmp_path)
    del cfg.train_dataloader.dataset.dataset['metainfo']
    with pytest.raises(ValueError, match='toothbrush'):
        check_classes(cfg)


def test_a_part_of_the_classes_is_legal(tmp_path):
    annotations(tmp_path, 'dog', 'cat', 'raccoon')
    check_classes(config(tmp_path))


def test_heads_must_fit(tmp_path):
    annotations(tmp_path, 'dog', 'cat')
    with pytest.raises(ValueError, match=r'model.roi_head.bbox_head.0.num_classes must be 2.*got 80'):
        check_classes(config(tmp_path, heads=80))


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'train_dataloader.dataset.dataset.ann_file must be an existing file'):
        check_classes(config(tmp_path))


def test_missing_weights_are_named(tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth'))
    cfg = Config(dict(model=dict(backbone=dict(type='X', init_cfg=init_cfg))))
    with pytest.raises(FileNotFoundError, match=r'model.backbone.init_cfg.checkpoint must be .*backbone.init_cfg=None'):
        check_pretrained(cfg)
    (tmp_path / 'w.pth').write_text('')
    check_pretrained(cfg)
    cfg.model.backbone.init_cfg.checkpoint = 'torchvision://resnet50'
    check_pretrained(cfg)


def test_unknown_scopes_are_named():
    with pytest.raises(ValueError, match=r"default_scope must be one of \('mmdet', 'mmseg'\), got 'mmpose'"):
        scope_of(Config(dict(default_scope='mmpose')))


def test_a_missing_framework_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, 'find_spec', lambda name: None if name == 'mmdet' else True)
    (tmp_path / 'c.py').write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'")
    with pytest.raises(ImportError, match=r'needs mmdet.*pip install onedl-mmdetection \(or, .* pip install mmdet\)'):
        load_config(str(tmp_path / 'c.py'))


def test_load_config(tmp_path):
    (tmp_path / 'c.py').write_text("default_scope = 'mmdet'\nmodel = dict(depth=50)")
    cfg = load_config(str(tmp_path / 'c.py'), options={'model.depth': 26})
    assert (cfg.model.depth, cfg.work_dir, cfg.launcher) == (26, 'work_dirs/c', 'none')
    assert load_config(str(tmp_path / 'c.py'), work_dir='w').work_dir == 'w'
    with pytest.raises(FileNotFoundError, match=r"config must be an existing file, got 'none.py'"):
        load_config('none.py')


def test_train_options():
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper'), auto_scale_lr=dict(enable=False, base_batch_size=16)))
    apply_train_options(cfg, amp=True, auto_scale_lr=True, resume='auto')
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    assert cfg.auto_scale_lr.enable
    assert (cfg.resume, cfg.load_from) == (True, None)
    apply_train_options(cfg, resume='x.pth')
    assert cfg.load_from == 'x.pth'
    with pytest.raises(ValueError, match='--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        apply_train_options(Config(dict()), auto_scale_lr=True)
    with pytest.raises(ValueError, match="--amp needs optim_wrapper.type .* got 'DeepSpeed'"):
        apply_train_options(Config(dict(optim_wrapper=dict(type='DeepSpeed'))), amp=True)


def test_test_options():
    cfg = Config(dict(
        default_scope='mmdet', model=dict(type='FasterRCNN'), default_hooks=dict(visualization=dict(type='V')),
        test_dataloader=dict(dataset=dict(pipeline=[dict(type='Load'), dict(type='PackDetInputs')]))))
    assert apply_test_options(cfg, checkpoint='x.pth', show_dir='pictures', tta=True) is None
    assert cfg.load_from == 'x.pth'
    assert cfg.default_hooks.visualization.draw
    assert cfg.default_hooks.visualization.test_out_dir == 'pictures'
    assert (cfg.model.type, cfg.model.module.type) == ('DetTTAModel', 'FasterRCNN')
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == ['Load', 'TestTimeAug']
    with pytest.raises(ValueError, match=r"--out must end in .pkl or .pickle for a detector, got 'x.json'"):
        apply_test_options(cfg, checkpoint='x.pth', out='x.json')
    with pytest.raises(ValueError, match='need default_hooks.visualization'):
        apply_test_options(Config(dict(default_hooks={})), checkpoint='x.pth', show=True)
