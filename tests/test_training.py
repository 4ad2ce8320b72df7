"""One tiny detector through the scripts that a user calls: train, resume, test, draw."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import run_warm
from synthetic import CLASSES, make_scene, scene_generator, write_coco

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/rednet/retinanet_rednet50_inv-fpn_1x_coco.py'
# of one iteration each
EPOCHS = 2


def run(script, *arguments, cwd=ROOT):
    result = run_warm(ROOT / 'tools' / script, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    for split, count in (('train', 4), ('val', 2)):
        write_coco(
            folder,
            split,
            (make_scene(scene_generator(0, split, i), (64, 64)) for i in range(count)),
            CLASSES,
        )
    return folder


@pytest.fixture(scope='session')
def options(data):
    """Return what turns a published COCO config into a training of two epochs on our data."""
    loaders = []
    for loader, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loaders += [
            f'{loader}_dataloader.dataset.{key}={value}'
            for key, value in (
                ('data_root', f'{data}/'),
                ('ann_file', f'annotations/instances_{split}.json'),
                ('data_prefix.img', f'{split}/'),
                ('metainfo.classes', ','.join(CLASSES)),
            )
        ]
        loaders += [
            f'{loader}_dataloader.num_workers=0',
            f'{loader}_dataloader.persistent_workers=False',
        ]
    evaluators = [
        f'{split}_evaluator.ann_file={data}/annotations/instances_val.json'
        for split in ('val', 'test')
    ]
    return [
        '--cfg-options',
        *loaders,
        *evaluators,
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'test_dataloader.dataset.pipeline.1.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)',
        'train_dataloader.dataset.pipeline.3.prob=0.0',
        'train_dataloader.batch_size=4',
        'model.backbone.depth=26',
        # checkpoints of a hundred megabytes would take most of the time
        'model.backbone.base_channels=32',
        'model.neck.in_channels=[128,256,512,1024]',
        'model.neck.out_channels=64',
        'model.bbox_head.in_channels=64',
        'model.bbox_head.feat_channels=64',
        'model.backbone.init_cfg=None',
        'model.backbone.frozen_stages=-1',
        f'model.bbox_head.num_classes={len(CLASSES)}',
        f'train_cfg.max_epochs={EPOCHS}',
        f'train_cfg.val_interval={EPOCHS}',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
        # no warm-up, and every box counts: two steps move the weights and leave something to
        # evaluate
        'param_scheduler.0.start_factor=1.0',
        'model.test_cfg.score_thr=0.0',
    ]


@pytest.fixture(scope='session')
def trained(tmp_path_factory, options):
    work_dir = tmp_path_factory.mktemp('work')
    # as a user does: this process imports what it needs
    result = subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', CONFIG, '--work-dir', work_dir, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return work_dir


def scalars(work_dir):
    lines = [
        line
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().split('\n')
    ]
    return [json.loads(line) for line in lines if line]


def state(work_dir, epoch):
    return torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=False)['state_dict']


def test_training_is_finite_and_moves(trained):
    losses = [entry['loss'] for entry in scalars(trained) if 'loss' in entry]
    assert len(losses) == EPOCHS
    assert all(0 < loss < 100 for loss in losses)
    first, last = state(trained, 1), state(trained, EPOCHS)
    assert all(value.isfinite().all() for value in last.values())
    for name in ('backbone.layer4.0.conv2.conv2.conv.weight', 'neck.fpn_convs.0.conv1.conv.weight'):
        assert not torch.equal(first[name], last[name])


def test_resuming_is_bit_for_bit(trained, options, tmp_path):
    run('train.py', CONFIG, '--work-dir', tmp_path, '--resume', trained / 'epoch_1.pth', *options)
    assert not (tmp_path / 'epoch_1.pth').exists()
    expected, resumed = state(trained, EPOCHS), state(tmp_path, EPOCHS)
    assert list(resumed) == list(expected)
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_mixed_precision_on_a_cpu(options, tmp_path):
    # torch's bfloat16 weight gradient of a strided convolution reads beyond a map of one position
    short = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.pipeline.2.scale=(128,128)']
    run('train.py', CONFIG, '--amp', '--work-dir', tmp_path, *options, *short)
    assert all(entry['loss'] < 100 for entry in scalars(tmp_path) if 'loss' in entry)
    weights = state(tmp_path, 1)
    assert all(value.isfinite().all() for value in weights.values())
    # parameters stay in float32
    assert weights['backbone.layer4.0.conv3.weight'].dtype == torch.float32


def test_our_checkpoints_need_no_unpickling(trained):
    from mmrednet.engine import allow_checkpoint_globals

    allow_checkpoint_globals()
    assert torch.load(trained / 'epoch_1.pth', weights_only=True)['meta']['epoch'] == 1


@pytest.fixture(scope='session')
def tested(trained, options, tmp_path_factory):
    """Return the folder in which the test script ran, and wrote predictions and pictures."""
    folder = tmp_path_factory.mktemp('tested')
    checkpoint = trained / f'epoch_{EPOCHS}.pth'
    files = ['--work-dir', folder, '--out', folder / 'out.pkl', '--show-dir', 'shown']
    run('test.py', CONFIG, checkpoint, *files, *options, cwd=folder)
    return folder


def test_test_script(trained, tested):
    metrics = json.loads(next(tested.glob('*/*.json')).read_text())
    evaluated = [entry for entry in scalars(trained) if 'coco/bbox_mAP' in entry]
    assert metrics['coco/bbox_mAP'] == evaluated[0]['coco/bbox_mAP']
    assert len(pickle.loads((tested / 'out.pkl').read_bytes())) == 2
    assert len(list(tested.glob('*/shown/*.png'))) == 2


def test_a_folded_network_predicts_the_same(trained, tested, options, tmp_path):
    out, checkpoint = tmp_path / 'out.pkl', trained / f'epoch_{EPOCHS}.pth'
    files = ['--work-dir', tmp_path, '--out', out]
    run('test.py', CONFIG, checkpoint, *files, '--fuse-conv-bn', *options)
    predictions = [pickle.loads(path.read_bytes()) for path in (tested / 'out.pkl', out)]
    for plain, folded in zip(*predictions, strict=True):
        for key in ('scores', 'bboxes'):
            plain_values, folded_values = (x['pred_instances'][key] for x in (plain, folded))
            torch.testing.assert_close(folded_values, plain_values, rtol=1e-3, atol=1e-3)


def test_pictures(trained, options, data, tmp_path):
    checkpoint = trained / f'epoch_{EPOCHS}.pth'
    out_dir = ['--out-dir', tmp_path / 'a', '--fuse-conv-bn']
    printed = run('image_demo.py', data / 'val', CONFIG, checkpoint, *out_dir, *options)
    assert [Path(line).name for line in printed.split() if line.endswith('.png')] == [
        '000000.png',
        '000001.png',
    ]
    assert len(list((tmp_path / 'a').glob('*.png'))) == 2
    run(
        'analysis_tools/draw.py',
        CONFIG,
        checkpoint,
        '--out-dir',
        tmp_path / 'b',
        '--images',
        0,
        1,
        *options,
    )
    assert {path.name for path in (tmp_path / 'b').iterdir()} == {'detections.png', 'kernels.png'}


def test_a_wrong_class_stops_before_training(options, tmp_path):
    wrong = [option.replace('circle', 'cow') for option in options]
    result = run_warm(ROOT / 'tools/train.py', CONFIG, '--work-dir', tmp_path, *wrong)
    assert result.returncode != 0
    assert "'cow'" in result.stderr
    assert "'circle'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_operators_of_mmcv_under_mixed_precision():
    from mmcv.ops.nms import batched_nms
    from mmcv.ops.roi_align import RoIAlign

    from mmrednet.engine.cpu_amp import CpuAmpOptimWrapper

    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 8, 8], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.75, 0.25]).bfloat16()
    features = torch.randn(1, 2, 8, 8).bfloat16()
    rois = torch.tensor([[0.0, 1, 1, 6, 6]])
    layer = RoIAlign(2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD([parameter], 0.1))
    with wrapper.optim_context(torch.nn.Identity()):
        kept = batched_nms(boxes, scores, torch.zeros(3), dict(type='nms', iou_threshold=0.5))[1]
        pooled = layer(features, rois.bfloat16())
    assert kept.tolist() == [1, 2]
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, layer(features.float(), rois).bfloat16())
    with pytest.raises(RuntimeError):
        layer(features, rois.bfloat16())
