"""Panoptic-DeepLab as an mmdet detector: training, predictions, testing with augmentations."""

import copy

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData

from mmrednet.layers import Involution
from mmrednet.panoptic import PanopticInference, PanopticTTAModel
from mmrednet.panoptic.detector import ImageMaps
from mmrednet.panoptic.losses import Predictions

NARROW_MSCAN = dict(embed_dims=(8, 16, 24, 32), depths=(1,) * 4, mlp_ratios=(2,) * 4)
BACKBONES = {
    'axial': (
        dict(
            type='mmrednet.AxialResNet',
            arch=0.25,
            depth=26,
            output_stride=16,
            stem='inception',
            span=9,
            out_indices=(0, 1, 3),
        ),
        [64, 128, 512],
    ),
    'resnet': (
        dict(type='mmdet.ResNet', depth=18, base_channels=16, out_indices=(0, 1, 2, 3)),
        [16, 32, 64, 128],
    ),
    'small': (
        dict(
            type='mmdet.ResNet',
            depth=18,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(0, 1),
        ),
        [64, 128],
    ),
    'rednet': (
        dict(type='mmrednet.RedNet', depth=26, base_channels=32, out_indices=(0, 1, 3)),
        [128, 256, 1024],
    ),
    'mscan': (
        dict(type='mmrednet.MSCAN', arch=NARROW_MSCAN, out_indices=(0, 1, 3)),
        [8, 16, 32],
    ),
}
DECODER = dict(context='projection', context_channels=32)


def config(backbone='resnet', **options):
    cfg, channels = BACKBONES[backbone]
    decoder = {**DECODER, 'in_channels': channels, **options.pop('decoder', {})}
    return dict(
        type='mmrednet.PanopticDeepLab',
        backbone=cfg,
        num_classes=5,
        thing_classes=[3, 1],
        decoder=decoder,
        semantic_decoder=dict(channels=32, low_channels=(16, 16, 16)),
        instance_decoder=dict(channels=32, low_channels=(16, 16, 16)),
        test_cfg=dict(stuff_area=1),
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3, pad_size_divisor=1
        ),
        **options,
    )


def sample(ids=None, shape=(61, 90), **metainfo):
    result = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, **metainfo))
    if ids is not None:
        result.gt_panoptic_seg = PixelData(sem_seg=ids[None])
        info = [dict(id=7, category=0), dict(id=11, category=1), dict(id=12, category=3)]
        result.set_metainfo(dict(segments_info=[dict(entry, iscrowd=0) for entry in info]))
    return result


def scene(height=61, width=90):
    ids = torch.full((height, width), 7)
    ids[10:30, 20:40], ids[35:50, 50:80], ids[:, :4] = 11, 12, 0
    return ids


# every backbone with one variant, and every variant with one backbone
@pytest.mark.parametrize(
    ('backbone', 'variant'),
    [
        *((backbone, 'deeplab2') for backbone in BACKBONES),
        ('small', 'detectron2'),
        ('small', 'bowenc0221'),
    ],
)
def test_training_step(backbone, variant):
    model = MODELS.build(config(backbone, variant=variant))
    model.init_weights()
    images = torch.randn(2, 3, 64, 96)
    losses = model(images, [sample(scene()), sample(scene(64, 96))], mode='loss')
    assert set(losses) == {'loss_semantic', 'loss_heat', 'loss_offset'}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_padding_is_void():
    """A larger batch changes neither the heat map's loss nor the offsets'."""
    model = MODELS.build(config('small'))
    targets = model._targets(sample(scene()), (64, 96))
    assert targets.semantic[61:].eq(255).all()
    assert targets.semantic[:, 90:].eq(255).all()
    assert targets.heat_weight[:61, :90].sum() == targets.heat_weight.sum() == 61 * 86
    assert targets.offset_weight.sum() == 20 * 20 + 15 * 30


def test_a_scene_is_learnt():
    """A few steps on one image give its panoptic map back."""
    model = MODELS.build(config('small'))
    model.init_weights()
    truth = scene(64, 80)
    image = torch.stack([(truth == value).float() for value in (7, 11, 12)])[None] - 0.5
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(image, [sample(truth, (64, 80))], mode='loss').values()).backward()
        optimizer.step()
    # the norms have seen one batch
    result = model(image, [sample(shape=(64, 80))], mode='predict')[0]
    ids = result.pred_panoptic_seg.sem_seg
    assert ids.shape == (1, 64, 80)
    assert ids.dtype == torch.int64
    for truth_id, own in ((7, 0), (11, 1001), (12, 1003)):
        union = (truth == truth_id) | (ids[0] == own)
        assert ((truth == truth_id) & (ids[0] == own)).sum() > 0.6 * union.sum()
    infos = {info['id']: info for info in result.pred_segments_info}
    assert {0, 1001, 1003} <= set(infos)
    assert infos[1003]['category'] == 3
    assert all(0 < info['score'] <= 1.5 for info in infos.values())


def drawn(model, height=16, width=24):
    """Let a model predict two instances and stuff on a map of this size."""
    semantic = torch.zeros(1, 5, height, width)
    semantic[:, 0] = 5
    semantic[:, 1, 2:6, 2:10], semantic[:, 3, 8:14, 10:20] = 9, 9
    heat, offset = torch.zeros(1, 1, height, width), torch.zeros(1, 2, height, width)
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    parts = [(slice(2, 6), slice(2, 10)), (slice(8, 14), slice(10, 20))]
    for (row, column), part in zip([(4, 6), (11, 15)], parts, strict=True):
        heat[0, 0, row, column] = 0.9
        offset[0, 0][part] = (row - rows[part]).float()
        offset[0, 1][part] = (column - columns[part]).float()
    model._forward = lambda images, samples=None: Predictions(semantic, heat, offset)
    return model.eval()


def test_predictions_at_the_original_size():
    model = drawn(MODELS.build(config('small')))
    # some columns and rows are padding, and the image had twice the size
    result = model.predict(
        torch.zeros(1, 3, 61, 93),
        [DetDataSample(metainfo=dict(img_shape=(61, 81), ori_shape=(122, 162)))],
    )[0]
    ids = result.pred_panoptic_seg.sem_seg[0]
    assert ids.shape == (122, 162)
    assert result.pred_sem_seg.sem_seg.shape == (1, 122, 162)
    assert ids.unique().tolist() == [0, 1001, 1003]
    assert [info['id'] for info in result.pred_segments_info] == [1001, 1003, 0]
    rows, columns = (ids == 1001).nonzero().float().mean(0).tolist()
    # rows 2 to 5 of 16 on 65, to which the batch is padded, and that twice
    assert rows == pytest.approx(2 * 3.5 * 64 / 15, abs=1.0)
    assert columns == pytest.approx(2 * 5.5 * 96 / 23, abs=1.0)


@pytest.mark.parametrize(
    ('variant', 'stride', 'expected'),
    [('deeplab2', 16, (65, 97)), ('deeplab2', 32, (65, 97)), ('detectron2', 32, (64, 96))],
)
def test_images_are_padded_to_the_stride(variant, stride, expected):
    """With aligned corners, one more than a multiple."""
    model = MODELS.build(config('small', variant=variant, stride=stride))
    images = torch.rand(1, 3, 61, 93)
    padded = model._pad(images)
    assert padded.shape[2:] == expected
    assert torch.equal(padded[..., :61, :93], images)
    assert padded[..., 61:, :].abs().max() == padded[..., 93:].abs().max() == 0
    assert model._pad(padded).shape == padded.shape


def test_offsets_grow_with_the_image():
    metainfo = dict(img_shape=(61, 93), ori_shape=(122, 279))
    offsets = {}
    for rescale in (True, False):
        options = dict(config('small')['test_cfg'], rescale_offsets=rescale)
        model = drawn(MODELS.build(dict(config('small'), test_cfg=options)))
        maps = model.predict_maps(torch.zeros(1, 3, 61, 93), [DetDataSample(metainfo=metainfo)])
        offsets[rescale] = maps[0].offset
    assert torch.allclose(offsets[True][0], 2 * offsets[False][0])
    assert torch.allclose(offsets[True][1], 3 * offsets[False][1])


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flipped_images_are_flipped_back(direction):
    model = drawn(MODELS.build(config('small')))
    plain = model.predict_maps(torch.zeros(1, 3, 65, 97), [sample(shape=(65, 97))])[0]
    predictions = model._forward(None)
    dims = dict(horizontal=[3], vertical=[2], diagonal=[2, 3])[direction]
    signs = torch.tensor([-1.0 if dim in dims else 1.0 for dim in (2, 3)])[:, None, None]
    semantic, heat, offset = (x.flip(dims) for x in predictions)
    model._forward = lambda images, samples=None: Predictions(semantic, heat, offset * signs)
    metainfo = dict(shape=(65, 97), flip=True, flip_direction=direction)
    flipped = model.predict_maps(torch.zeros(1, 3, 65, 97), [sample(**metainfo)])[0]
    for got, expected in zip(flipped, plain, strict=True):
        assert torch.allclose(got, expected, atol=1e-4)


def test_augmentations_are_averaged():
    model = MODELS.build(config('small')).eval()
    # an untrained network has no heat
    model.merger.centers.update(threshold=-1.0, top_k=3)
    tta = MODELS.build(dict(type='mmrednet.PanopticTTAModel', module=model))
    assert isinstance(tta, PanopticTTAModel)
    images = torch.rand(2, 3, 64, 96)
    flags = (False, True)
    data = dict(
        inputs=[[image.flip(2) if flag else image for image in images] for flag in flags],
        data_samples=[
            [sample(shape=(64, 96), flip=flag, flip_direction='horizontal') for _ in images]
            for flag in flags
        ],
    )
    with torch.no_grad():
        results = tta.test_step(copy.deepcopy(data))
        maps = [
            model.predict_maps(torch.stack(data['inputs'][index]), data['data_samples'][index])
            for index in range(2)
        ]
    assert len(results) == 2
    for image in range(2):
        pairs = zip(maps[0][image], maps[1][image], strict=True)
        mean = ImageMaps(*((a + b) / 2 for a, b in pairs))
        expected = sample(shape=(64, 96))
        model.add_prediction(expected, mean)
        ids = results[image].pred_panoptic_seg.sem_seg
        assert torch.equal(ids, expected.pred_panoptic_seg.sem_seg)
        assert results[image].pred_segments_info == expected.pred_segments_info
        assert expected.pred_segments_info
    with pytest.raises(NotImplementedError, match='test_step'):
        tta.merge_preds([])


def test_operators_in_decoders_and_heads():
    operator = dict(type='mmrednet.Involution', kernel_size=3, group_channels=16)
    model = MODELS.build(config(decoder=dict(spatial_cfg=operator)))
    names = {name for name, module in model.named_modules() if isinstance(module, Involution)}
    assert len(names) == 2 * 3 + 3
    assert {'semantic_head.conv.depthwise', 'offset_head.conv.depthwise'} <= names
    model.eval()(torch.randn(1, 3, 64, 96))


def test_the_panoptic_map_of_an_image_traces():
    """The graph gives the same map for another image."""
    model = MODELS.build(config('small')).eval()
    model.merger.centers.update(top_k=8, kernel_size=3, threshold=0.0)
    network = PanopticInference(model)
    first, second = torch.randn(2, 1, 3, 64, 96)
    with torch.no_grad():
        program = torch.export.export(network, (first,)).module()
        trace = torch.jit.trace(network, (first,), check_trace=False)
        for image in (first, second):
            ids, category, area, score = network(image)
            present = area > 0
            for graph in (program, trace):
                got = graph(image)
                assert torch.equal(got[0], ids)
                found = got[2] > 0
                assert torch.equal(got[1][found], category[present])
                assert torch.allclose(got[3][found], score[present], atol=1e-5)
    assert isinstance(model.data_preprocessor, DetDataPreprocessor)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(variant='deeplab3'), 'variant must be one of'),
        (dict(decoder=dict(context='pool')), 'context must be one of'),
        (dict(decoder=dict(in_channels=[64, 128, 256])), 'must be given 3 feature maps'),
        (dict(decoder=dict(in_channels=[64])), 'at least two feature maps'),
        (dict(decoder=dict(conv='octave')), 'conv must be one of'),
        (
            dict(decoder=dict(conv='plain', spatial_cfg=dict(type='Involution'))),
            "conv must be 'separable'",
        ),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(config(**options)).eval()(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize('things', [[], [5], [-1, 2]])
def test_bad_things(things):
    with pytest.raises(ValueError, match='thing_classes must be some of the classes from 0 to 4'):
        MODELS.build(dict(config(), thing_classes=things))
