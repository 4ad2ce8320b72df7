"""Classification by mmengine alone: data, model, recipes, and a run whose checkpoint starts a
detector.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image
from running import run_warm
from synthetic import CLASSES, make_scene, scene_generator, write_image_folder

from mmrednet.backbones import load_pretrained
from mmrednet.checkpoints import read_checkpoint, write_checkpoint
from mmrednet.engine import load_config
from mmrednet.pretraining import (
    Accuracy,
    ImageClassifier,
    ImageFolder,
    PackImage,
    RandomErasing,
    RandomResizedCrop,
    check_batches,
    use_image_folders,
)
from mmrednet.pretraining.image_folder import classes_of

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/shapes/rednet26-narrow_single-shapes.py'
BACKBONE = dict(
    type='mmrednet.VAN', arch=dict(embed_dims=(8,), depths=(1,), mlp_ratios=(2,)), out_indices=(0,)
)


def folders(root, splits=('train', 'val'), classes=('cat', 'dog'), count=2):
    """Write images of one colour per class."""
    for split in splits:
        for index, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = np.full((40, 32, 3), 60 * index + 10 * number, np.uint8)
                Image.fromarray(image).save(root / split / name / f'{number}.png')
    return root


class TestData:
    def test_images_and_labels(self, tmp_path):
        data = ImageFolder(
            data_root=str(folders(tmp_path)),
            split='val',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='mmrednet.PackImage')],
        )
        assert data.metainfo['classes'] == ('cat', 'dog')
        assert [int(data[index]['data_samples']) for index in range(len(data))] == [0, 0, 1, 1]
        assert data[3]['inputs'].shape == (3, 40, 32)
        assert data[3]['inputs'].unique().tolist() == [70]

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(
            FileNotFoundError,
            match=r'train must be a folder with one folder per class, .* got \[\]',
        ):
            ImageFolder(data_root=str(tmp_path))
        (folders(tmp_path) / 'train' / 'empty').mkdir()
        with pytest.raises(FileNotFoundError, match='empty must hold images that end in one of'):
            ImageFolder(data_root=str(tmp_path))

    def test_the_config_follows_the_folders(self, tmp_path):
        cfg = load_config(str(ROOT / 'configs/san/san10-pairwise_8xb32-100e_imagenet.py'))
        use_image_folders(cfg, str(folders(tmp_path, classes=('a', 'b', 'c'))))
        assert cfg.model.num_classes == 3
        assert {cfg[name].dataset.data_root for name in ('train_dataloader', 'val_dataloader')} == {
            str(tmp_path)
        }
        (tmp_path / 'val' / 'd').mkdir()
        with pytest.raises(
            ValueError, match='all splits must have the same classes, got .*train.*3: .*val.*4: '
        ):
            use_image_folders(cfg, str(tmp_path))

    def test_fewer_images_than_a_batch_are_named(self, tmp_path, monkeypatch):
        cfg = load_config(str(CONFIG))
        use_image_folders(cfg, str(folders(tmp_path, count=4)))
        cfg.train_dataloader.batch_size = 8
        check_batches(cfg)
        monkeypatch.setattr('mmrednet.pretraining.image_folder.get_world_size', lambda: 2)
        with pytest.raises(
            ValueError,
            match=f'train_dataloader.batch_size must .* in {tmp_path}/train for each '
            'process, 8 for 2, got 8: give a smaller one',
        ):
            check_batches(cfg)
        cfg.train_dataloader.batch_size = 4
        check_batches(cfg)
        cfg.train_dataloader.update(batch_size=9, drop_last=False)
        check_batches(cfg)

    def test_crops(self):
        np.random.seed(0)
        image = np.arange(60 * 40 * 3).reshape(60, 40, 3).astype(np.float32)
        crop = RandomResizedCrop(16, area=(0.2, 0.5))
        shares, ratios = [], []
        for _ in range(200):
            top, left, height, width = crop.rectangle(60, 40)
            assert 0 <= top <= 60 - height
            assert 0 <= left <= 40 - width
            shares.append(height * width / 2400)
            ratios.append(width / height)
        assert 0.19 < min(shares) < 0.23
        assert 0.45 < max(shares) < 0.52
        assert 0.7 < min(ratios) < 0.85 < 1.2 < max(ratios) < 1.45
        assert crop(dict(img=image))['img'].shape == (16, 16, 3)
        # no rectangle of this shape fits
        assert RandomResizedCrop(8, area=(1, 1), ratio=(5, 5)).rectangle(60, 40) == (10, 0, 40, 40)
        with pytest.raises(ValueError, match=r'area in \(0, 1\] .* got size=8, area=\(0, 1\)'):
            RandomResizedCrop(8, area=(0, 1))

    def test_erasing(self):
        image = np.zeros((50, 50, 3), np.uint8)
        erased = RandomErasing(prob=1.0)(dict(img=image))['img']
        assert not image.any()
        rows, columns = (np.flatnonzero(erased.any(axis)) for axis in ((1, 2), (0, 2)))
        patch = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 0.015 < patch[..., 0].size / 2500 < 0.35
        assert 90 < patch.mean() < 150
        assert not RandomErasing(prob=0.0)(dict(img=image))['img'].any()

    def test_packing(self):
        packed = PackImage()(dict(img=np.arange(24, dtype=np.uint8).reshape(2, 4, 3), gt_label=3))
        assert packed['inputs'][1].tolist() == [[1, 4, 7, 10], [13, 16, 19, 22]]
        assert int(packed['data_samples']) == 3


def classifier(**kwargs):
    return ImageClassifier(BACKBONE, 3, channels=8, **kwargs)


class TestClassifier:
    def test_loss_and_predictions(self):
        model, x = classifier(label_smoothing=0.2), torch.randn(2, 3, 32, 32)
        labels = [torch.tensor(2), torch.tensor(0)]
        # one class is far ahead
        model.head['fc'].bias.data = torch.tensor([0.0, 0.0, 9.0])
        model.head['fc'].weight.data.zero_()
        log = torch.tensor([0.0, 0.0, 9.0]).log_softmax(0)
        expected = -(0.8 * (log[2] + log[0]) / 2 + 0.2 * log.mean())
        torch.testing.assert_close(model(x, labels, mode='loss')['loss'], expected)
        predictions = model(x, labels, mode='predict')
        torch.testing.assert_close(predictions[1]['scores'], log.exp())
        assert [int(entry['label']) for entry in predictions] == [2, 0]
        assert model(x).shape == (2, 3)

    def test_logits_are_those_of_the_mean(self):
        model, x = classifier().eval(), torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(model(x), model.head['fc'](model.backbone(x)[0].mean((2, 3))))

    @pytest.mark.parametrize('method', ['mixup', 'cutmix'])
    def test_images_and_targets_are_mixed_alike(self, method):
        model = classifier(**{method: 1.0})
        inputs, target = torch.zeros(2, 3, 20, 30), torch.eye(3)[:2]
        inputs[1] = 1
        shares = set()
        for _ in range(20):
            mixed, soft = model._mix(inputs, target)
            # ones come from the second image, as does its class
            torch.testing.assert_close(mixed.mean((1, 2, 3)), soft[:, 1], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(soft.sum(1), torch.ones(2))
            assert (method == 'cutmix') == (set(mixed.unique().tolist()) <= {0.0, 1.0})
            shares.add(round(float(soft[0, 0]), 3))
        assert len(shares) > 10
        assert inputs[0].sum() == 0

    def test_bad_arguments(self):
        for kwargs in (dict(label_smoothing=1.0), dict(mixup=-1.0)):
            with pytest.raises(
                ValueError, match='num_classes must be at least 2, label_smoothing in'
            ):
                classifier(**kwargs)

    def test_accuracy(self):
        metric = Accuracy(topk=(1, 2, 5))
        scores = torch.tensor([0.5, 0.2, 0.3])
        metric.process(
            None, [dict(scores=scores, label=torch.tensor(label)) for label in (0, 1, 2, 2)]
        )
        assert metric.evaluate(4) == {'accuracy/top1': 25.0, 'accuracy/top2': 75.0}

    @pytest.mark.parametrize(
        ('scores', 'expected'),
        [
            # nothing is known: the first class, and the first two, are as good as any
            ([0.25] * 4, (25.0, 50.0)),
            ([float('nan')] * 4, (0.0, 0.0)),
            # class 1 is the first, what is no number stands before it
            ([0.1, 0.9, float('nan'), 0.0], (0.0, 25.0)),
            ([0.1, 0.4, 0.4, 0.1], (25.0, 50.0)),
        ],
    )
    def test_accuracy_of_ties_and_of_what_is_no_number(self, scores, expected):
        metric = Accuracy(topk=(1, 2))
        metric.process(
            None,
            [dict(scores=torch.tensor(scores), label=torch.tensor(label)) for label in range(4)],
        )
        assert metric.evaluate(4) == {'accuracy/top1': expected[0], 'accuracy/top2': expected[1]}


# what the sources say: learning rate, batch, epochs, and millions of parameters
@pytest.mark.parametrize(
    ('path', 'lr', 'batch', 'epochs', 'gpus', 'parameters'),
    [
        ('rednet/rednet50_64xb32-130e_imagenet', 0.8, 2048, 130, 64, 15.5),
        ('san/san10-pairwise_8xb32-100e_imagenet', 0.1, 256, 100, 8, 10.5),
        ('san/san10-patchwise_8xb32-100e_imagenet', 0.1, 256, 100, 8, 11.8),
        ('sasa/sasa50-conv-stem_64xb64-130e_imagenet', 1.6, 4096, 130, 64, 18.0),
        ('van/van-b0_8xb128-310e_imagenet', 1e-3, 1024, 310, 8, 4.1),
        ('van/van-b3_8xb128-310e_imagenet', 1e-3, 1024, 310, 8, 44.8),
    ],
)
def test_recipes(path, lr, batch, epochs, gpus, parameters):
    cfg = load_config(str(ROOT / f'configs/{path}.py'))
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs) == (lr, epochs)
    assert cfg.auto_scale_lr.base_batch_size == batch == gpus * cfg.train_dataloader.batch_size
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == parameters
    model.backbone.out_indices = model.backbone.out_indices[-1:]
    with torch.device('meta'):
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)


SMALL = [
    'train_cfg.max_epochs=5',
    'model.backbone.base_channels=32',
    'default_hooks.logger.interval=1',
    'param_scheduler=None',
    'train_dataloader.batch_size=8',
    'train_dataloader.dataset.pipeline.1.size=32',
]


def test_a_short_run_starts_a_detector(tmp_path):
    for split, count in (('train', 48), ('val', 16)):
        scenes = (
            make_scene(scene_generator(0, split, index), (48, 48), objects=(1, 1))
            for index in range(count)
        )
        write_image_folder(tmp_path / 'data', split, scenes, CLASSES)
    assert len(list(tmp_path.glob('data/train/*/*.png'))) == 48
    tool = [ROOT / 'tools/pretrain.py', CONFIG]
    data = ['--data', tmp_path / 'data', '--cfg-options', *SMALL]
    run = run_warm(*tool, '--work-dir', tmp_path / 'work', *data)
    assert run.returncode == 0, run.stderr[-3000:]
    plain = tmp_path / 'plain.safetensors'
    write_checkpoint(plain, read_checkpoint(tmp_path / 'work/epoch_5.pth').state)
    test_run = run_warm(*tool, '--work-dir', tmp_path / 'test', '--test', plain, *data)
    assert test_run.returncode == 0, test_run.stderr[-3000:]
    log = next((tmp_path / 'work').glob('*/vis_data/2*.json'))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [entry['loss'] for entry in entries if 'loss' in entry]
    assert len(losses) == 30
    assert sum(losses[-4:]) < sum(losses[:4])
    # what is trained is what is evaluated
    accuracy = next(
        entry['accuracy/top1'] for entry in reversed(entries) if 'accuracy/top1' in entry
    )
    assert f'accuracy/top1: {accuracy:.4f}' in test_run.stdout
    assert 'Epoch(test)' in test_run.stdout
    checkpoint = tmp_path / 'work' / 'epoch_5.pth'
    state = read_checkpoint(checkpoint).state
    cfg = load_config(str(ROOT / 'configs/shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'))
    cfg.model.backbone.update(
        base_channels=32, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint))
    )
    with MODELS.switch_scope_and_registry('mmdet') as registry:
        backbone = registry.build(cfg.model).backbone
    load_pretrained(backbone, str(checkpoint), logger='silent')
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[f'backbone.{name}']), name


def test_nothing_needs_mmpretrain():
    sources = [
        *ROOT.glob('mmrednet/**/*.py'),
        *ROOT.glob('tools/**/*.py'),
        *ROOT.glob('configs/**/*.py'),
    ]
    assert not [
        path
        for path in sources
        if 'import mmpretrain' in path.read_text()
        or 'from mmpretrain' in path.read_text()
        or 'mmpretrain::' in path.read_text()
    ]


def test_folders_that_are_no_classes_are_left_out(tmp_path):
    for name in ('b', 'a', '.ipynb_checkpoints', '__MACOSX'):
        (tmp_path / name).mkdir()
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'mmrednet.pretraining.image_folder.print_log', lambda text, **_: lines.append(text)
        )
        assert classes_of(tmp_path) == ('a', 'b')
    assert lines == [
        f"{tmp_path}: 2 folders are no classes and left out: ['.ipynb_checkpoints', '__MACOSX']"
    ]
