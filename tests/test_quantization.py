"""Which layers of an ONNX file become integers, and how files are timed."""

import json

import cv2
import numpy as np
import pytest
from benchmarks import time_exports

from mmrednet.commands import export as command
from mmrednet.export.exporting import ExportError, Target
from mmrednet.export.quantization import nodes_of, quantize

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


@pytest.fixture
def layers(tmp_path):
    """A file with two convolutions, one after the other, and a photograph."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for name, source, result in (('stem.conv', 'image', 'x'), ('head.conv_cls', 'x', 'scores')):
        weight = generator.standard_normal((3, 3, 1, 1)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f'{name}.weight'))
        nodes.append(onnx.helper.make_node('Conv', [source, f'{name}.weight'], [result], name))
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 'h', 'w'])
        for name in ('image', 'scores')
    ]
    graph = onnx.helper.make_graph(nodes, 'layers', values[:1], values[1:], weights)
    opset = [onnx.helper.make_opsetid('', 18)]
    path = tmp_path / 'layers.onnx'
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    description = dict(
        task='classification',
        format='onnx',
        input=dict(resize=None, shape=None),
        outputs=['scores'],
    )
    path.with_suffix('.json').write_text(json.dumps(description))
    photo = tmp_path / 'photo.png'
    assert cv2.imwrite(str(photo), generator.integers(0, 256, (16, 24, 3), np.uint8))
    return path, photo


def integer_layers(path):
    names = {weight.name for weight in onnx.load(path).graph.initializer}
    return {name for name in ('stem.conv', 'head.conv_cls') if f'{name}.weight_quantized' in names}


@pytest.mark.parametrize(
    ('patterns', 'expected'),
    [
        ([], {'stem.conv', 'head.conv_cls'}),
        (['stem.conv'], {'head.conv_cls'}),
        (['head.*'], {'stem.conv'}),
        (['*_cls', 'stem.*'], set()),
    ],
)
def test_layers_that_stay_in_float32(layers, tmp_path, patterns, expected):
    path, photo = layers
    out = tmp_path / 'out' / 'layers.int8.onnx'
    quantize(path, [photo], out, patterns)
    assert integer_layers(out) == expected
    assert out.with_suffix('.json').read_text() == path.with_suffix('.json').read_text()


def test_a_pattern_that_fits_no_layer(layers):
    path, photo = layers
    message = r"float_layers must fit layers such as stem\.conv, head\.conv_cls, got 'conv'"
    with pytest.raises(ValueError, match=message):
        nodes_of(path, ['stem.*', 'conv'])
    target = Target('onnx', 'portable', path, None)
    with pytest.raises(ExportError, match=f'no file with 8-bit integers: {message}'):
        command.write_integers(None, 'classification', target, [photo], ['conv'])


def test_float_layers_need_integers(capsys):
    with pytest.raises(SystemExit):
        command.main(['none.py', 'none.pth', '--to', 'onnx', '--int8-float', 'stem.conv'])
    assert '--int8-float needs --int8' in capsys.readouterr().err


def test_photographs_are_found_in_folders_of_folders(layers, tmp_path, capsys):
    path, photo = layers
    folder = tmp_path / 'train' / 'elsewhere'
    folder.mkdir(parents=True)
    image = photo.rename(folder / 'photo.PNG')
    assert command.photographs(tmp_path / 'train') == command.photographs(image) == [image]
    image.unlink()
    with pytest.raises(SystemExit):
        command.main(['none.py', 'none.pth', '--to', 'onnx', '--int8', str(tmp_path / 'train')])
    assert f'must be an image or a folder of images, got {tmp_path}' in capsys.readouterr().err


def test_other_exports_do_not_count_as_the_size_of_a_file(tmp_path):
    path = tmp_path / 'model.onnx'
    for ending in ('.onnx', '.onnx.data', '.json', '.int8.onnx', '.aoti.pt2', '.aoti.ops.so'):
        (tmp_path / f'model{ending}').write_bytes(bytes(2**20))
    assert command._size(path, 'onnx') == '2.0 MiB'
    assert command._size(tmp_path / 'model.int8.onnx', 'onnx') == '1.0 MiB'
    assert command._size(tmp_path / 'model.aoti.pt2', 'aoti') == '2.0 MiB'


def test_files_are_timed_in_alternation(layers, monkeypatch, capsys):
    path, photo = layers
    runs = []
    clock = iter(range(100))

    class Recorded(time_exports.Model):
        def __init__(self, file, threads):
            super().__init__(file, threads)
            assert threads == 1
            # the first file takes one second, the second two
            delay = len(runs)
            runs.append('open')
            compute = self.run

            def run(image):
                assert compute(image)[0].shape == image.shape
                runs.append(delay)
                return next(clock) if delay else None

            self.run = run

    monkeypatch.setattr(time_exports, 'Model', Recorded)
    monkeypatch.setattr(time_exports.time, 'process_time', lambda: next(clock))
    time_exports.main([str(path), str(path), str(photo), '--rounds', '2'])
    assert runs == ['open', 'open', *[0, 1] * (time_exports.WARMUP + 2)]
    assert capsys.readouterr().out == 'layers.onnx: 1000.00 ms\nlayers.onnx: 2000.00 ms\n'
    with pytest.raises(SystemExit):
        time_exports.main([str(path), str(photo), '--rounds', '0'])
    assert '--rounds must be positive, got 0' in capsys.readouterr().err
