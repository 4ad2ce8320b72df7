"""Operators of ours in OpenVINO: each node of the extension against the operator in torch."""

import io
import subprocess
import sys

import pytest
import torch

from mmrednet import ops
from mmrednet.backbones import SASAResNet
from mmrednet.commands import export as command
from mmrednet.export import capture, largest_error, native_nodes, openvino_extension
from mmrednet.export.formats import FORMATS, library_beside
from mmrednet.export.networks import BackboneNetwork
from mmrednet.ops import Window, _first_use, axial
from mmrednet.ops.attention import bias_by_place

HIDDEN, OUTPUTS = 5, 4


def involution_case(affine):
    window = Window(3, 2)
    value, hidden = torch.randn(2, 3, 4, 13, 18), torch.randn(2, 5, 7, 9)
    weight, bias = torch.randn(27, 5), torch.randn(27)
    if not affine:
        node = native_nodes.involution(value, hidden, weight, bias, list(window))
        return node, ops.local_involution(value, hidden, weight, bias, window)
    scale, shift = torch.randn(12), torch.randn(12)
    tensors = (value, hidden, weight, None, scale, shift)
    node = native_nodes.involution_affine(*tensors, True, list(window))
    affine_options = dict(scale=scale, shift=shift, relu=True)
    return node, ops.local_involution(value, hidden, weight, None, window, **affine_options)


def maps(value_channels=6):
    channels = (4, 4, value_channels)
    return [torch.randn(2, 3, count, 13, 18) for count in channels]


def attention_case(has_tables):
    window, tensors, tables = Window(5), maps(), [None] * 3
    if has_tables:
        tables = [torch.randn(3, 2, 5), torch.randn(3, 2, 5), torch.randn(3, 25)]
    node = native_nodes.attention(*tensors, *tables, list(window))
    options = dict(zip(('rows', 'columns', 'bias'), tables, strict=True))
    return node, ops.local_attention(*tensors, window, **options)


def shifted_case():
    window, tensors, bias = Window(5, border='shift'), maps(), torch.randn(3, 81)
    by_place = bias_by_place(bias, window)
    node = native_nodes.attention(*tensors, None, None, by_place, list(window))
    return node, ops.local_attention(*tensors, window, bias=bias)


def difference_case():
    window, tensors, bias = Window(3), maps(), torch.randn(3, 9)
    node = native_nodes.difference_attention(*tensors, bias, list(window))
    return node, ops.local_difference_attention(*tensors, window, bias=bias)


def axial_case(adds_positions, terms, span, value_position):
    lines, relative = torch.randn(2, 2, 10, 5, 11), torch.randn(10, 13)
    scale = torch.randn(len(terms), 2)
    position_scale = torch.randn(2, 4) if adds_positions else None
    tensors = (lines, relative, scale, torch.zeros_like(scale), position_scale)
    options = (3, terms, span, value_position, 1 << 30)
    return native_nodes.axial_attention(*tensors, *options), axial.attention(*tensors, *options)


def vector_case(relation, patchwise):
    window, channels = Window(3), 6
    query, key = torch.randn(2, channels, 9, 14), torch.randn(2, channels, 9, 14)
    features = channels * (10 if patchwise else 1)
    outputs = OUTPUTS * (9 if patchwise else 1)
    sizes = [(features,), (features,), (HIDDEN, features), (HIDDEN,), (HIDDEN,)]
    gamma = [torch.randn(size) for size in (*sizes, (outputs, HIDDEN), (outputs,))]
    position_channels = 0 if patchwise else 2
    arguments = [query, key, torch.randn(2, 8, 9, 14), *gamma]
    arguments += [relation, patchwise, position_channels, list(window)]
    expected = torch.ops.mmrednet.vector_attention(*arguments)
    return native_nodes.vector_attention(*arguments), expected


CASES = {
    'involution': (involution_case, False),
    'involution, norm and ReLU': (involution_case, True),
    'attention': (attention_case, False),
    'attention with tables': (attention_case, True),
    'neighbourhood attention': (shifted_case,),
    'difference attention': (difference_case,),
    'axial attention': (axial_case, False, [0, 1, 2], 0, True),
    'axial attention, added positions': (axial_case, True, [0, 1, 2], 0, True),
    'axial attention, a span': (axial_case, False, [0], 5, False),
    'subtraction': (vector_case, 'subtraction', False),
    'summation': (vector_case, 'summation', False),
    'hadamard': (vector_case, 'hadamard', False),
    'patchwise': (vector_case, 'concatenation', True),
}


@pytest.fixture
def core():
    openvino = pytest.importorskip('openvino')
    pytest.importorskip('onnx')
    result = openvino.Core()
    result.add_extension(str(openvino_extension.build_extension()))
    return result


def onnx_of(node):
    """Return an ONNX file with a node; feature maps may have any batch, height and width."""
    from onnx import TensorProto, helper

    inputs = []
    for index, tensor in enumerate(node.inputs):
        sizes = list(tensor.shape)
        if tensor.dim() > 3:
            sizes = [f'b{index}', *sizes[1:-2], f'h{index}', f'w{index}']
        inputs.append(helper.make_tensor_value_info(f'x{index}', TensorProto.FLOAT, sizes))
    names = [value.name for value in inputs]
    proto = helper.make_node(node.type, names, ['y'], domain='mmrednet', **node.attributes)
    output = helper.make_tensor_value_info('y', TensorProto.FLOAT, None)
    graph = helper.make_graph([proto], 'node', inputs, [output])
    opsets = [helper.make_opsetid('', 18), helper.make_opsetid('mmrednet', 1)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


def first_images(tensors, count):
    """Return the first images of feature maps, and the other tensors as they are."""
    results = []
    for tensor in tensors:
        results.append(tensor[:count].contiguous() if tensor.dim() > 3 else tensor.contiguous())
    return results


@pytest.mark.parametrize('name', CASES)
def test_a_node_computes_what_the_operator_computes(name, core):
    torch.manual_seed(0)
    make, *options = CASES[name]
    node, expected = make(*options)
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 2}
    model = core.compile_model(core.read_model(io.BytesIO(onnx_of(node))), 'CPU', options)
    for count in (2, 1):
        outputs = model([tensor.numpy() for tensor in first_images(node.inputs, count)])
        assert largest_error(outputs.values(), [expected[:count]]) < 1e-6


def test_wrong_sizes_are_errors(core):
    node, _ = involution_case(False)
    model = core.compile_model(core.read_model(io.BytesIO(onnx_of(node))), 'CPU')
    tensors = [tensor.numpy() for tensor in node.inputs]
    tensors[1] = tensors[1][..., :-1].copy()
    with pytest.raises(RuntimeError, match='a window has other outputs than the tensors say'):
        model(tensors)


WITHOUT_TORCH = """
import sys
for name in ('torch', 'mmrednet'):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from runtime import run_openvino
from pathlib import Path
outputs = run_openvino(Path(sys.argv[2]), 1)(np.load(sys.argv[3]))
np.save(sys.argv[4], outputs[0])
"""


def test_a_model_runs_without_torch(core, tmp_path):
    pytest.importorskip('onnxscript')
    import numpy as np

    from mmrednet.export import runtime

    torch.manual_seed(0)
    stage = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    spatial = dict(type='StandAloneSelfAttention', kernel_size=3, num_heads=2)
    network = BackboneNetwork(SASAResNet(26, spatial, base_channels=16, **stage).eval(), 1)
    network.eval()
    path = tmp_path / 'model.xml'
    program = capture(network, torch.zeros(2, 3, 64, 64))
    FORMATS['openvino'].write(program, path, network.output_names, 'native')
    assert library_beside(path).is_file()
    assert 'type="LocalAttention" version="mmrednet"' in path.read_text()
    image = torch.randn(1, 3, 61, 83)
    np.save(tmp_path / 'image.npy', image.numpy())
    arguments = [runtime.__file__.rpartition('/')[0], path, tmp_path / 'image.npy', tmp_path / 'y']
    process = [sys.executable, '-c', WITHOUT_TORCH, *map(str, arguments)]
    result = subprocess.run(process, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = network(image)
    assert largest_error([np.load(tmp_path / 'y.npy')], expected) < 1e-5


def test_a_build_without_openvino_or_compiler_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(openvino_extension, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit) as caught:
        command.main(['--build-ops'])
    assert caught.value.code == 1
    assert "not installed: pip install 'mmrednet[openvino]'" in capsys.readouterr().err

    monkeypatch.setattr(openvino_extension, 'openvino_folder', lambda: tmp_path)
    monkeypatch.setattr(openvino_extension, 'version', lambda name: '1')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(_first_use.BuildError, match='no C\\+\\+ compiler'):
        openvino_extension.build_extension()
    # a compiler that finds no headers
    monkeypatch.setenv('CXX', 'c++')
    with pytest.raises(_first_use.BuildError, match='compilation failed: .*openvino'):
        openvino_extension.build_extension()
    assert not openvino_extension.cached_extension().exists()
