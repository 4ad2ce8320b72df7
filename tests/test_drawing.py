"""Pictures of images of all sizes, and tools on images of all channels."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from PIL import Image
from running import run_warm
from test_training import CONFIG, data, options  # noqa: F401

from mmrednet.analysis import draw_detections, draw_segmentations
from mmrednet.analysis.image_network import image_channels
from mmrednet.analysis.networks import build_network
from mmrednet.analysis.panels import CAPTION_HEIGHT, COLOURS, GAP, display_image
from mmrednet.commands import draw as draw_command
from mmrednet.engine import load_config

ROOT = Path(__file__).parents[1]
SIZES = ((32, 48), (48, 32))
META = dict(classes=('road', 'tree', 'car'), palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)])
MODEL = SimpleNamespace(dataset_meta=META, test_step=lambda batch: batch['data_samples'])


def images(folder):
    for number, (height, width) in enumerate(SIZES):
        path = folder / f'{number}.png'
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
        yield str(path), height, width


def segmentations(folder):
    items = []
    for path, height, width in images(folder):
        labels = torch.zeros(1, height, width, dtype=torch.long)
        labels[:, :8] = 2
        labels[:, 8:10] = 255
        label_data = SimpleNamespace(data=labels)
        sample = SimpleNamespace(img_path=path, gt_sem_seg=label_data, pred_sem_seg=label_data)
        sample.cpu = lambda sample=sample: sample
        items.append(dict(inputs=None, data_samples=sample))
    return items


def detections(folder, count=1, masks=True):
    from mmdet.structures import DetDataSample

    items = []
    for path, height, width in images(folder):
        boxes = dict(
            bboxes=torch.tensor([[4.0, 14.0, 20.0, 30.0]] * count).reshape(count, 4),
            labels=torch.zeros(count, dtype=torch.long),
        )
        if masks:
            bitmaps = np.zeros((count, height, width), bool)
            bitmaps[:, 16:28, 6:18] = True
            boxes['masks'] = bitmaps
        sample = DetDataSample(
            metainfo=dict(img_path=path),
            gt_instances=InstanceData(**boxes),
            pred_instances=InstanceData(scores=torch.ones(count), **boxes),
        )
        items.append(dict(inputs=None, data_samples=sample))
    return items


def colours_of(picture):
    return {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}


class TestSegmentations:
    def test_sizes(self, tmp_path):
        picture = draw_segmentations(MODEL, segmentations(tmp_path), [0, 1])
        # rows of 64 and 96 pixels with captions and gaps, and a legend of one line
        assert picture.shape == (64 + 96 + 2 * (CAPTION_HEIGHT + GAP) + 26, 3 * 96 + 2 * GAP, 3)
        # beside the narrower image it is white
        assert (picture[110:200, 64:96] == 255).all()
        # the labels: the car is blue, the road red, what is ignored black
        truth = picture[CAPTION_HEIGHT : CAPTION_HEIGHT + 64, 96 + GAP : 2 * 96 + GAP]
        assert truth[10, 90].tolist() == [0, 0, 255]
        assert truth[18, 90].tolist() == [0, 0, 0]
        assert truth[40, 90].tolist() == [255, 0, 0]

    def test_a_legend_of_the_classes_that_occur(self, tmp_path):
        picture = draw_segmentations(MODEL, segmentations(tmp_path), [0])
        colours = colours_of(picture[64 + CAPTION_HEIGHT + GAP :])
        assert {(255, 0, 0), (0, 0, 255), (0, 0, 0)} <= colours
        # no tree occurs
        assert (0, 255, 0) not in colours

    def test_captions(self, tmp_path):
        picture = draw_segmentations(MODEL, segmentations(tmp_path), [0])
        for left in (0, 96 + GAP, 2 * (96 + GAP)):
            assert (picture[:CAPTION_HEIGHT, left : left + 96] < 128).any()

    def test_no_images(self):
        for draw in (draw_segmentations, draw_detections):
            with pytest.raises(ValueError, match='indices must name at least one image'):
                draw(MODEL, [], [])


class TestDetections:
    @pytest.mark.parametrize('indices', [[0], [1], [0, 1], [0, 1, 0]])
    @pytest.mark.parametrize('masks', [False, True])
    def test_any_number_and_size(self, tmp_path, indices, masks):
        picture = draw_detections(MODEL, detections(tmp_path, masks=masks), indices, scale=3)
        heights = [3 * SIZES[index][0] + CAPTION_HEIGHT + GAP for index in indices]
        rows = [max(heights[start : start + 2]) for start in range(0, len(heights), 2)]
        assert picture.shape[0] == sum(rows) + 26

    def test_photographs_of_all_sizes_become_equally_large(self, tmp_path):
        picture = draw_detections(MODEL, detections(tmp_path, masks=False), [0])
        height, width = SIZES[0]
        factor = 384 / max(height, width)
        assert picture.shape[1] == 2 * round(width * factor) + GAP
        # on the left side of the box
        side = [CAPTION_HEIGHT + round(22 * factor), round(4 * factor)]
        assert picture[tuple(side)].tolist() == [255, 0, 0]

    def test_boxes_and_masks(self, tmp_path):
        plain = draw_detections(MODEL, detections(tmp_path, masks=False), [0], scale=3)
        masked = draw_detections(MODEL, detections(tmp_path), [0], scale=3)
        for left in (0, 3 * 48 + GAP):
            # on the left side of the box, and inside the object, three times as large
            side, inside = [20 + 66, left + 12], [20 + 66, left + 36]
            assert plain[tuple(side)].tolist() == masked[tuple(side)].tolist() == [255, 0, 0]
            assert plain[tuple(inside)].tolist() == [0, 0, 0]
            assert masked[tuple(inside)].tolist() == [127, 0, 0]

    def test_a_legend_of_the_classes_that_occur(self, tmp_path):
        picture = draw_detections(MODEL, detections(tmp_path), [0], scale=3)
        colours = colours_of(picture[96 + CAPTION_HEIGHT + GAP :])
        assert (255, 0, 0) in colours
        assert (0, 255, 0) not in colours

    def test_classes_without_colours_get_distinct_ones(self, tmp_path):
        meta = dict(META, palette=[(9, 9, 9)] * 80)
        model = SimpleNamespace(dataset_meta=meta, test_step=MODEL.test_step)
        picture = draw_detections(model, detections(tmp_path), [0], scale=3)
        assert COLOURS[0] in colours_of(picture)
        assert len(set(COLOURS)) == len(COLOURS)

    def test_a_box_beyond_the_image(self, tmp_path):
        items = detections(tmp_path, masks=False)
        items[0]['data_samples'].pred_instances.bboxes = torch.tensor([[-9.0, 14.0, 90.0, 90.0]])
        picture = draw_detections(MODEL, items, [0], scale=3)
        assert picture.shape == (96 + CAPTION_HEIGHT + GAP + 26, 2 * 144 + GAP, 3)
        # its right side is at the border of the image
        assert picture[20 + 66, -1].tolist() == [255, 0, 0]

    def test_nothing_found(self, tmp_path):
        picture = draw_detections(MODEL, detections(tmp_path, count=0), [0], scale=3)
        assert picture.shape == (96 + CAPTION_HEIGHT + GAP, 2 * 144 + GAP, 3)

    def test_scores_below_the_threshold(self, tmp_path):
        items = detections(tmp_path, masks=False)
        items[0]['data_samples'].pred_instances.scores = torch.tensor([0.4])
        picture = draw_detections(MODEL, items, [0], scale=3)
        assert picture[20 + 66, 12].tolist() == [255, 0, 0]
        assert picture[20 + 66, 3 * 48 + GAP + 12].tolist() == [0, 0, 0]

    def test_without_ground_truth(self, tmp_path):
        items = detections(tmp_path, masks=False)
        items[0]['data_samples'].gt_instances = InstanceData()
        picture = draw_detections(MODEL, items, [0], scale=3)
        assert picture[20 + 66, 12].tolist() == [0, 0, 0]
        assert picture[20 + 66, 3 * 48 + GAP + 12].tolist() == [255, 0, 0]

    def test_a_model_without_boxes(self, tmp_path):
        items = detections(tmp_path)
        del items[0]['data_samples'].pred_instances
        with pytest.raises(ValueError, match='model must predict boxes, SimpleNamespace gives'):
            draw_detections(MODEL, items, [0], scale=3)


class TestImages:
    @pytest.mark.parametrize('channels', [1, 2, 4, 6])
    def test_of_other_channels(self, channels):
        inputs = torch.zeros(channels, 4, 6)
        inputs[0, :, 3:] = 7
        sample = SimpleNamespace(img_path=['a.tif', 'b.tif'], ori_shape=(8, 12))
        image = display_image(dict(inputs=inputs, data_samples=sample))
        assert image.shape == (8, 12, 3)
        # the first channel is red, or grey if there are fewer than three
        assert image[0, -1].tolist() == ([255, 0, 0] if channels >= 3 else [255] * 3)
        assert image[0, 0].tolist() == [0, 0, 0]

    def test_a_file_that_is_no_picture(self, tmp_path):
        np.save(tmp_path / 'a.npy', np.zeros((4, 4, 6)))
        sample = SimpleNamespace(img_path=str(tmp_path / 'a.npy'), ori_shape=(4, 4))
        image = display_image(dict(inputs=torch.ones(6, 4, 4), data_samples=sample))
        assert image.shape == (4, 4, 3)


@pytest.mark.parametrize('channels', [1, 4, 6])
def test_channels_of_the_image(channels):
    for type_name in ('RedNet', 'VAN', 'MSCAN', 'SAN', 'LRNet', 'SASAResNet', 'AxialResNet'):
        network, _ = build_network(dict(type=f'mmrednet.{type_name}', in_channels=channels))
        assert image_channels(network.model) == channels


@pytest.mark.parametrize('channels', [1, 4])
def test_get_flops_of_other_channels(channels):
    choices = ['--cfg-options', 'model.depth=26', f'model.in_channels={channels}']
    script = ROOT / 'tools/analysis_tools/get_flops.py'
    result = run_warm(script, 'mmrednet.RedNet', '--classes', '5', '--shape', '32', '32', *choices)
    assert result.returncode == 0, result.stderr
    assert f'input 1 x {channels} x 32 x 32' in result.stdout


def test_a_single_prior_of_a_level():
    from mmdet.utils import register_all_modules

    from mmrednet.heads import SpatialRPNHead

    register_all_modules(init_default_scope=True)
    head = SpatialRPNHead(
        16,
        16,
        spatial_cfg=None,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[16, 32]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        test_cfg=ConfigDict(
            nms_pre=10, max_per_img=10, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
        ),
    )
    with torch.no_grad():
        outputs = head((torch.randn(1, 16, 2, 2), torch.randn(1, 16, 1, 1)))
        meta = [dict(img_shape=(32, 32), scale_factor=(1.0, 1.0))]
        result = head.predict_by_feat(*outputs, batch_img_metas=meta)[0]
    # what the single position gives is there once
    score = outputs[0][1].sigmoid().item()
    assert int(((result.scores - score).abs() < 1e-6).sum()) == 1


@pytest.mark.parametrize('channels', [1, 4])
def test_draw_with_other_channels(channels, data, options, tmp_path, monkeypatch):  # noqa: F811
    images = tmp_path / 'images'
    images.mkdir()
    for path in (data / 'val').iterdir():
        Image.open(path).convert({1: 'L', 4: 'RGBA'}[channels]).save(images / path.name)
    color_type = {1: 'grayscale', 4: 'unchanged'}[channels]
    changes = [
        *options,
        f'test_dataloader.dataset.data_prefix.img={images}',
        f'test_dataloader.dataset.pipeline.0.color_type={color_type}',
        f'model.backbone.in_channels={channels}',
        # mmengine knows one value or three
        'model.data_preprocessor.mean=[0]',
        'model.data_preprocessor.std=[1]',
        'model.data_preprocessor.bgr_to_rgb=False',
    ]
    out = tmp_path / 'out'
    command = ['draw.py', CONFIG, tmp_path / 'w.pth', '--out-dir', out, '--images', 0, *changes]
    monkeypatch.setattr(sys, 'argv', [str(word) for word in command])
    args = draw_command.parse_args(None)
    cfg = load_config(args.config, options=args.cfg_options)
    with MODELS.switch_scope_and_registry('mmdet') as registry:
        torch.save(dict(state_dict=registry.build(cfg.model).state_dict()), tmp_path / 'w.pth')
    draw_command.main()
    assert sorted(path.name for path in out.iterdir()) == ['detections.png', 'kernels.png']
    # two panels of 64 x 64, enlarged
    assert Image.open(out / 'detections.png').width == 2 * 384 + GAP
