"""Networks as ONNX files, run by ONNX Runtime at sizes that were not those of the trace."""

import contextlib
import copy
import io
import json

import cv2
import numpy as np
import pytest
import torch
from benchmarks.narrow import CONFIGS, MODELS, build_model
from mmdet.structures import DetDataSample
from mmseg.models.utils import Upsample

from mmrednet import fuse
from mmrednet.backbones import MSCAN, RedNet
from mmrednet.commands import export as command
from mmrednet.export import capture, largest_error
from mmrednet.export.evaluation import ExportedModel
from mmrednet.export.exporting import ExportError, Target, verify
from mmrednet.export.formats import run
from mmrednet.export.networks import BackboneNetwork, network_of, with_whole_upsamples
from mmrednet.export.verification import matched, predict, sample_image

pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.usefixtures('one_thread')

DETECTOR = 'configs/shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
SEGMENTER = 'configs/streets/segnext_mscan-narrow_streets.py'
# an operator in the stem alone: a sixth of the time
SMALLER = [
    'model.backbone.spatial_cfg=None',
    'model.neck.spatial_cfg=None',
    'model.rpn_head.spatial_cfg=None',
]
SIZES = [(1, 75, 101), (3, 64, 83), (2, 96, 160)]


def backbones():
    yield RedNet(
        26,
        dict(type='Involution', kernel_size=3),
        base_channels=32,
        num_stages=1,
        strides=(2,),
        dilations=(1,),
        out_indices=(0,),
    )
    arch = dict(embed_dims=(8, 16), depths=(1, 1), mlp_ratios=(2, 2))
    yield MSCAN(arch, out_indices=(0, 1))


@pytest.mark.parametrize('index', [0, 1])
def test_backbones(index, tmp_path):
    from mmrednet.export.onnx_file import write_onnx

    model = list(backbones())[index].eval()
    network = BackboneNetwork(fuse(model), len(model.out_indices)).eval()
    path = tmp_path / 'backbone.onnx'
    write_onnx(capture(network, torch.zeros(2, 3, 64, 64)), path, network.output_names)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert [output.name for output in session.get_outputs()] == network.output_names
    for size in SIZES:
        image = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            expected = network(image)
        assert largest_error(session.run(None, {'image': image.numpy()}), expected) < 1e-4


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTER])
def test_networks_predict_what_models_predict(config):
    model, _ = build_model(config, {})
    network, task = network_of(model)
    for shape in ((128, 160), (117, 203)):
        image = sample_image(shape)
        expected = predict(model, task, image)
        with torch.no_grad():
            outputs = [output.numpy() for output in network(torch.from_numpy(image))]
        if task == 'detection':
            assert len(expected[0]) > 20
            assert matched(outputs, expected) == 1
        else:
            assert len(np.unique(expected[0])) > 1
            assert (outputs[0] == expected[0]).mean() > 0.999


def test_random_detectors_have_no_equal_scores():
    """Else the order of suppression, and with it the detections, would depend on rounding."""
    config, options = MODELS['Faster R-CNN']
    model, _ = build_model(CONFIGS / config, options)
    network, task = network_of(fuse(copy.deepcopy(model)))
    image = sample_image((96, 128), seed=12)
    with torch.no_grad():
        outputs = [output.numpy() for output in network(torch.from_numpy(image))]
    assert matched(outputs, predict(model, task, image)) == 1


def test_upsampling_of_fpn_heads_takes_any_size():
    module = Upsample(scale_factor=2, mode='bilinear', align_corners=False)
    network = with_whole_upsamples(torch.nn.Sequential(module).eval())
    program = capture(network, torch.zeros(2, 3, 8, 9))
    image = torch.randn(1, 3, 13, 7)
    torch.testing.assert_close(program.module()(image), module(image))


def save(model, path):
    torch.save(dict(meta={}, state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A detector, its exported file, and what the command printed."""
    folder = tmp_path_factory.mktemp('detector')
    model, _ = build_model(DETECTOR, dict.fromkeys(option.split('=')[0] for option in SMALLER))
    photo = sample_image((128, 160))[0].transpose(1, 2, 0)
    assert cv2.imwrite(str(folder / 'photo.png'), photo)
    out = folder / 'detector.onnx'
    arguments = [DETECTOR, save(model, folder / 'weights.pth'), '--to', 'onnx', '--out', str(out)]
    arguments += ['--int8', str(folder / 'photo.png'), '--cfg-options', *SMALLER]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command.main(arguments) == 0
    return model, out, printed.getvalue()


def test_the_command_exports_a_detector(detector):
    _, out, printed = detector
    assert 'checked with an image of 203 x 271: 0 of the detections' in printed
    description = json.loads(out.with_suffix('.json').read_text())
    assert description['outputs'] == ['boxes', 'scores', 'labels']
    assert description['input']['resize']['keep_ratio'] is True


def test_integers_take_a_quarter_of_the_size(detector):
    model, out, printed = detector
    path = out.with_suffix('.int8.onnx')
    assert f'{path}: 8-bit integers' in printed
    assert path.stat().st_size < 0.3 * out.stat().st_size
    image = sample_image((128, 160), seed=1)
    boxes, scores, _ = run('onnx', path)(image)
    expected = predict(model, 'detection', image)
    # detections are sorted by their scores; coordinates are computed in float32
    assert np.abs(scores[:5] - expected[1][:5]).max() < 0.1
    assert 0 < np.abs(boxes[0] - expected[0]).max(1).min() < 2


def samples_of(*sizes):
    return [DetDataSample(metainfo=dict(ori_shape=size)) for size in sizes]


def test_an_exported_file_in_the_place_of_its_model(detector):
    """Boxes are those of the original image, which is half as large here."""
    _, out, _ = detector
    image = sample_image((128, 160))
    expected = run('onnx', out)(image)
    inputs = [torch.from_numpy(image[0]).byte()] * 2
    data = dict(inputs=inputs, data_samples=samples_of((128, 160), (64, 80)))
    same, half = ExportedModel(out).test_step(data)
    for name, values in zip(('bboxes', 'scores', 'labels'), expected, strict=True):
        np.testing.assert_array_equal(same.pred_instances[name], values)
    torch.testing.assert_close(half.pred_instances.bboxes, same.pred_instances.bboxes / 2)


def test_a_file_cannot_be_trained_nor_be_missing(detector, tmp_path):
    with pytest.raises(ValueError, match="mode must be 'predict' for an exported file, got 'loss'"):
        ExportedModel(detector[1])([], [], mode='loss')
    with pytest.raises(FileNotFoundError, match=r'exported file with its \.json, no .*none\.onnx'):
        ExportedModel(tmp_path / 'none.onnx')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--to', 'openvino', '--int8', '.'], '--int8 needs --to onnx, got --to openvino'),
        (['--to', 'onnx', '--int8', 'none'], '--int8 must be an image or a folder of images'),
    ],
)
def test_wrong_photographs(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main([DETECTOR, 'none.pth', *arguments])
    assert message in capsys.readouterr().err


def test_a_file_that_differs_is_removed(tmp_path):
    path = tmp_path / 'segmenter.onnx'
    model, cfg = build_model(SEGMENTER, {})
    arguments = [SEGMENTER, save(model, tmp_path / 'weights.pth'), '--to', 'onnx']
    assert command.main([*arguments, '--out', str(path), '--shape', '64', '96']) == 0
    with torch.no_grad():
        model.decode_head.conv_seg.bias[3] += 100
    target = Target('onnx', 'portable', path, (64, 96))
    with pytest.raises(ExportError, match='of the pixels have another class'):
        verify(model, 'segmentation', target)
    assert not path.exists()
    assert not path.with_suffix('.json').exists()


def test_missing_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('mmrednet.export.formats.find_spec', lambda name: None)
    with pytest.raises(SystemExit):
        command.main([DETECTOR, 'none.pth', '--to', 'openvino'])
    assert "pip install 'mmrednet[openvino]'" in capsys.readouterr().err


def test_a_form_that_a_format_does_not_have(capsys):
    with pytest.raises(SystemExit):
        command.main([DETECTOR, 'none.pth', '--to', 'onnx', '--form', 'native'])
    assert '--to onnx has the form portable alone' in capsys.readouterr().err
