"""No door executes a malicious pickle: our modules, our tools, and other libraries' calls within
``safe_loading``.
"""

import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from PIL import Image
from test_pretraining import folders
from test_training import CONFIG, data, options  # noqa: F401

import mmrednet
from mmrednet.checkpoints import CheckpointError
from mmrednet.checkpoints.safe_loading import load_file

ROOT = Path(__file__).parents[1]
CLASSIFIER = ROOT / 'configs/shapes/rednet26-narrow_single-shapes.py'
VAN = dict(
    type='mmrednet.VAN', arch=dict(embed_dims=(8,), depths=(1,), mlp_ratios=(2,)), out_indices=(0,)
)
HAM = dict(in_channels=[8], in_index=[0], channels=8, ham_channels=8, num_classes=2)
# config of a module of ours, and more arguments of its `Pretrained`
MODULES = {
    'backbone': (VAN, {}),
    'part of a backbone': (VAN, dict(prefix='backbone.')),
    'classifier': (
        dict(type='mmrednet.ImageClassifier', backbone=VAN, num_classes=2, channels=8),
        {},
    ),
    'neck': (
        dict(type='mmrednet.SpatialFPN', in_channels=[16], out_channels=16, num_outs=1),
        {},
    ),
    'retina head': (
        dict(
            type='mmrednet.SpatialRetinaHead',
            num_classes=2,
            in_channels=16,
            feat_channels=16,
            spatial_cfg=dict(type='StandAloneSelfAttention', num_heads=2),
        ),
        {},
    ),
    'rpn head': (
        dict(type='mmrednet.SpatialRPNHead', in_channels=16, feat_channels=16),
        {},
    ),
    'axial attention': (dict(type='mmrednet.AxialAttention', channels=16, num_heads=2), {}),
    'hamburger head': (dict(type='mmrednet.LightHamHead', norm_cfg=dict(type='BN'), **HAM), {}),
    'involution': (dict(type='mmrednet.Involution', channels=16), {}),
    'attention': (
        dict(type='mmrednet.StandAloneSelfAttention', channels=16, num_heads=2),
        {},
    ),
    'part of an operator': (
        dict(type='mmrednet.LocalRelation', channels=16),
        dict(prefix='layer.'),
    ),
    'gate': (dict(type='mmrednet.CBAM', channels=16), {}),
}
# script and arguments: PATH is the file, WORK the work directory, IMAGE an image
TRAIN = ('train.py', CONFIG, '--work-dir', 'WORK')
PRETRAIN = (
    'pretrain.py',
    CLASSIFIER,
    '--data',
    'FOLDERS',
    '--work-dir',
    'WORK',
    '--cfg-options',
    'train_dataloader.batch_size=2',
)
TOOLS = {
    'load_from': (*TRAIN, 'OPTIONS', 'load_from=PATH'),
    'whole model': (
        *TRAIN,
        'OPTIONS',
        'model.init_cfg.type=Pretrained',
        'model.init_cfg.checkpoint=PATH',
    ),
    'head of mmdet': (
        *TRAIN,
        'OPTIONS',
        'model.bbox_head.init_cfg.type=Pretrained',
        'model.bbox_head.init_cfg.checkpoint=PATH',
    ),
    'backbone of mmdet': (
        *TRAIN,
        'OPTIONS',
        'model.backbone._delete_=True',
        'model.backbone.type=mmdet.ResNet',
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=PATH',
    ),
    'resume': (*TRAIN, '--resume', 'PATH', 'OPTIONS'),
    'last checkpoint': (*TRAIN, '--resume', 'OPTIONS'),
    'test': ('test.py', CONFIG, 'PATH', '--work-dir', 'WORK', 'OPTIONS'),
    'image demo': ('image_demo.py', 'IMAGE', CONFIG, 'PATH', '--out-dir', 'OUT', 'OPTIONS'),
    'draw': ('analysis_tools/draw.py', CONFIG, 'PATH', '--out-dir', 'OUT', 'OPTIONS'),
    'resume a classifier': (*PRETRAIN, '--resume', 'PATH'),
    'resume the last classifier': (*PRETRAIN, '--resume'),
    'test a classifier': (*PRETRAIN, '--test', 'PATH'),
}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def file(tmp_path):
    content = dict(
        meta=dict(epoch=1, iter=1),
        state_dict={'weight': torch.ones(1)},
        message_hub={},
        optimizer=Malicious(tmp_path / 'executed'),
    )
    work = tmp_path / 'work'
    work.mkdir()
    path = work / 'epoch_1.pth'
    torch.save(content, path)
    (work / 'last_checkpoint').write_text(str(path))
    return path


def assert_refused(call, file):
    with pytest.raises(CheckpointError, match='which weights do not need'):
        call()
    assert not (file.parents[1] / 'executed').exists()


def test_the_file_is_malicious(file):
    torch.load(file, weights_only=False)
    assert (file.parents[1] / 'executed').exists()


@pytest.mark.parametrize('door', MODULES)
def test_modules(door, file):
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    config, arguments = MODULES[door]
    init_cfg = dict(type='Pretrained', checkpoint=str(file), **arguments)
    module = MODELS.build(dict(config, init_cfg=init_cfg))
    assert_refused(module.init_weights, file)


@pytest.mark.parametrize('door', TOOLS)
def test_tools(door, file, options, tmp_path, monkeypatch):  # noqa: F811
    image = tmp_path / 'image.png'
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    words = dict(PATH=file, WORK=file.parent, IMAGE=image, OUT=tmp_path / 'out')
    script, *arguments = TOOLS[door]
    command = []
    for argument in map(str, arguments):
        if argument == 'OPTIONS':
            command += options
            if door == 'backbone of mmdet':
                # another backbone has other arguments
                command = [word for word in command if not word.startswith('model.backbone.')]
                command.append('model.backbone.depth=50')
        elif argument == 'FOLDERS':
            command.append(str(folders(tmp_path / 'images', count=15)))
        else:
            for word, value in words.items():
                argument = argument.replace(word, str(value))
            command.append(argument)
    monkeypatch.setattr(sys, 'argv', [script, *command])
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / 'tools' / script))['main']
    assert_refused(main, file)


def test_an_inferencer(file, tmp_path):
    from mmdet.apis import DetInferencer

    def call():
        with mmrednet.safe_loading():
            DetInferencer(str(CONFIG), str(file), device='cpu')

    assert_refused(call, file)


class TestSafeLoading:
    def test_what_training_stores_is_loaded(self, tmp_path):
        content = dict(
            history=HistoryBuffer([1.0, 3.0], [1, 1]),
            score=np.float32(0.5),
            count=np.int64(3),
            names=np.array(['cat', 'dog']),
            table=np.arange(6.0).reshape(2, 3),
            optimizer=dict(state={0: dict(step=torch.tensor(2.0))}),
        )
        torch.save(content, tmp_path / 'w.pth')
        for source in (tmp_path / 'w.pth', (tmp_path / 'w.pth').open('rb')):
            with mmrednet.safe_loading():
                loaded = torch.load(source, weights_only=False)
            assert loaded['history'].mean() == 2.0
            assert (loaded['score'], loaded['count']) == (np.float32(0.5), 3)
            assert loaded['names'].tolist() == ['cat', 'dog']
            assert np.array_equal(loaded['table'], content['table'])
            assert loaded['optimizer']['state'][0]['step'] == 2

    def test_contexts_are_nested(self):
        original = torch.load
        with mmrednet.safe_loading():
            with mmrednet.safe_loading():
                assert torch.load is not original
            assert torch.load is not original
        assert torch.load is original is torch.serialization.load

    @pytest.mark.parametrize(
        'call',
        [
            (getattr, (HistoryBuffer, '__init__')),
            (np.dtype, ('O',)),
            (np.dtype, ('V99999999',)),
        ],
    )
    def test_calls_beyond_are_refused(self, call, tmp_path):
        class Call:
            def __reduce__(self):
                return call

        torch.save(dict(x=Call()), tmp_path / 'w.pth', pickle_module=pickle)
        with pytest.raises(CheckpointError):
            load_file(tmp_path / 'w.pth')

    def test_no_memory_for_stated_shapes(self, tmp_path):
        class Call:
            def __reduce__(self):
                return np.zeros(1).__reduce__()[0], (np.ndarray, (1 << 50,), b'd')

        torch.save(dict(x=Call()), tmp_path / 'w.pth')
        assert load_file(tmp_path / 'w.pth')['x'].size == 0


@pytest.mark.parametrize('door', ['test', 'resume', 'load_from'])
def test_a_checkpoint_of_another_network(door, options, tmp_path, monkeypatch):  # noqa: F811
    path = tmp_path / 'w.pth'
    content = dict(state_dict={'conv.weight': torch.ones(1)}, meta=dict(epoch=1, iter=1))
    torch.save(dict(content, message_hub={}, optimizer={}), path)
    command = {
        'test': ['test.py', CONFIG, path, *options],
        'resume': ['train.py', CONFIG, '--resume', path, *options],
        'load_from': ['train.py', CONFIG, *options, f'load_from={path}'],
    }[door]
    command[2:2] = ['--work-dir', tmp_path / 'work']
    monkeypatch.setattr(sys, 'argv', [str(word) for word in command])
    main = runpy.run_path(str(ROOT / 'tools' / command[0]))['main']
    with pytest.raises(CheckpointError, match='is of another network than this RetinaNet: 0 of'):
        main()
