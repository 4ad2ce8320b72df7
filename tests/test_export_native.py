"""Native operators in processes that know neither mmrednet nor, in OpenVINO, torch."""

import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS
from operators import EXAMPLES
from torch._inductor import config as inductor

from mmrednet import fuse
from mmrednet.engine import load_config
from mmrednet.export import capture, largest_error
from mmrednet.export.formats import FORMATS, library_beside
from mmrednet.export.formats import run as run_file
from mmrednet.export.networks import network_of
from mmrednet.export.verification import predict, sample_image
from mmrednet.layers import build_spatial
from mmrednet.ops import _native

built = pytest.mark.skipif(bool(_native.MISSING), reason=str(_native.MISSING))
OPERATORS = (
    'aggregate',
    'correlate',
    'involution',
    'involution_affine',
    'attention',
    'difference_attention',
    'axial_attention',
    'vector_attention',
    'depthwise',
    'nms',
    'roi_align',
)
FAMILIES = (
    'Involution',
    'StandAloneSelfAttention',
    'LocalRelation',
    'SANPairwise',
    'SANPatchwise',
    'AxialAttention',
    'LargeKernelAttention',
    'MultiScaleConvAttention',
)
OUTPUTS = (*FAMILIES, 'halved twice', 'bins')
# half of the time of a package is that of the compiler for what calls the kernels
WRAPPER_O0 = {'aot_inductor.compile_wrapper_opt_level': 'O0'}
# the demo's detector with one stage and two levels, and involution in the stem alone
DETECTOR = 'configs/shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
NARROW = {
    'model.backbone.spatial_cfg': None,
    'model.backbone.num_stages': 1,
    'model.backbone.strides': (1,),
    'model.backbone.dilations': (1,),
    'model.backbone.out_indices': (0,),
    'model.neck.spatial_cfg': None,
    'model.neck.in_channels': [128],
    'model.neck.num_outs': 2,
    'model.rpn_head.spatial_cfg': None,
    'model.rpn_head.anchor_generator.strides': [4, 8],
    'model.roi_head.bbox_roi_extractor.featmap_strides': [4, 8],
    'model.roi_head.bbox_head.fc_out_channels': 32,
}
# run where neither mmrednet nor mmcv can be imported
WITHOUT_MMREDNET = """
import sys
sys.modules['mmrednet'] = sys.modules['mmcv'] = None
import torch
"""
SCHEMAS = """
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    print(getattr(torch.ops.mmrednet, name).default._schema)
"""
PACKAGE = """
library, package, image, outputs = sys.argv[1:]
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
torch.save(model(torch.load(image)), outputs)
"""
# what Python defines takes the place of what the library defined
TAKE_OVER = """
torch.ops.load_library(sys.argv[1])
value, hidden, weight = torch.randn(1, 1, 4, 5, 5), torch.randn(1, 2, 5, 5), torch.randn(9, 2)
result = torch.ops.mmrednet.involution(value, hidden, weight, None, [3, 3, 1, 1, 1, 1, 1, 1])
del sys.modules['mmrednet']
from mmrednet.ops import Window, local_involution
again = local_involution(value.requires_grad_(), hidden, weight, None, Window(3))
assert torch.equal(again, result)
again.sum().backward()
assert value.grad.abs().sum() > 0
"""


def run(code, *arguments):
    command = [sys.executable, '-c', WITHOUT_MMREDNET + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@built
def test_the_library_defines_the_operators_of_inference():
    lines = run(SCHEMAS, _native.loaded[-1], *OPERATORS).splitlines()
    expected = [str(getattr(torch.ops.mmrednet, name).default._schema) for name in OPERATORS]
    assert lines == expected


@built
def test_mmrednet_takes_the_operators_over():
    run(TAKE_OVER, _native.loaded[-1])
    run(TAKE_OVER_DETECTION, _native.loaded[-1])


PROGRAM = """
library, program, image, outputs = sys.argv[1:]
torch.ops.load_library(library)
with torch.inference_mode():
    torch.save(torch.export.load(program).module()(torch.load(image)), outputs)
"""
# operators of detectors stay the library's until mmrednet.export is imported
TAKE_OVER_DETECTION = """
torch.ops.load_library(sys.argv[1])
del sys.modules['mmrednet'], sys.modules['mmcv']
import mmrednet.ops
boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.5]]), torch.tensor([0.3, 0.7])
for _ in range(2):
    assert torch.ops.mmrednet.nms(boxes, scores, 0.5, 2).tolist() == [1]
    import mmrednet.export
with torch.device('meta'):
    pooled = torch.ops.mmrednet.roi_align(
        torch.zeros(1, 3, 5, 5), torch.zeros(2, 4), 7, 1.0, 0, True
    )
assert pooled.shape == (2, 3, 7, 7)
"""


def test_a_package_without_compiled_kernels_compiles_them(tmp_path, monkeypatch):
    library = tmp_path / 'kernels.so'
    library.write_text('kernels')
    program = capture(build_spatial(EXAMPLES['Involution'], 16).eval(), torch.zeros(2, 16, 8, 8))
    monkeypatch.setattr(torch._inductor, 'aoti_compile_and_package', lambda *_, **__: None)
    monkeypatch.setattr(_native, 'loaded', [])
    monkeypatch.setattr(_native, 'MISSING', 'not built')
    monkeypatch.setattr(_native, '_compile_once', lambda: _native.loaded.append(library))
    package = tmp_path / 'layer.aoti.pt2'
    FORMATS['aoti'].write(program, package, ['y'], 'native')
    assert library_beside(package).read_text() == 'kernels'


class Families(torch.nn.Module):
    """One layer of each family with operators of ours, side by side."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(build_spatial(EXAMPLES[name], 16) for name in FAMILIES)
        self.halve = torch.nn.MaxPool2d(2, ceil_mode=True)
        self.bins = torch.nn.AdaptiveAvgPool2d((2, 3))

    def forward(self, x):
        # rounded up in another way than the size of the example
        return *(layer(x) for layer in self.layers), self.halve(self.halve(x)) + 1, self.bins(x)


@built
def test_a_package_runs_without_mmrednet(tmp_path):
    torch.manual_seed(0)
    network = Families().eval()
    package = tmp_path / 'layers.aoti.pt2'
    program = capture(network, torch.zeros(2, 16, 24, 24))
    with inductor.patch(WRAPPER_O0):
        FORMATS['aoti'].write(program, package, OUTPUTS, 'native')
    image = torch.randn(1, 16, 17, 23)
    torch.save(image, tmp_path / 'image.pth')
    outputs = tmp_path / 'outputs.pth'
    run(PACKAGE, library_beside(package), package, tmp_path / 'image.pth', outputs)
    with torch.no_grad():
        expected = network(image)
    for name, output, reference in zip(OUTPUTS, torch.load(outputs), expected, strict=True):
        assert largest_error([output], [reference]) < 1e-5, name
    # and where mmrednet is imported
    assert largest_error(run_file('aoti', package)(image.numpy()), expected) < 1e-5


class Pooled(torch.nn.Module):
    """Involution, and the features of the boxes that suppression leaves."""

    def __init__(self):
        super().__init__()
        self.layer = build_spatial(EXAMPLES['Involution'], 16)

    def forward(self, x):
        x = self.layer(x)
        corners, sizes = x[0, :4].flatten(1).t().abs().split(2, 1)
        boxes = torch.cat([corners, corners + sizes], 1) * 5
        index = torch.ops.mmrednet.nms(boxes, x[0, 4].flatten(), 0.5, 50)
        boxes = boxes.index_select(0, index)
        return boxes, torch.ops.mmrednet.roi_align(x, boxes, 3, 1.0, 0, True)


@built
def test_a_program_runs_with_the_library_alone(tmp_path):
    torch.manual_seed(0)
    network = Pooled().eval()
    program = tmp_path / 'pooled.pt2'
    FORMATS['exported-program'].write(
        capture(network, torch.zeros(1, 16, 24, 24)), program, ['boxes', 'features'], 'native'
    )
    image = torch.randn(1, 16, 17, 23)
    torch.save(image, tmp_path / 'image.pth')
    outputs = tmp_path / 'outputs.pth'
    run(PROGRAM, _native.loaded[-1], program, tmp_path / 'image.pth', outputs)
    with torch.no_grad():
        expected = network(image)
    assert 10 < len(expected[0]) <= 50
    assert largest_error(torch.load(outputs), expected) < 1e-6


def narrow_detector():
    cfg = load_config(DETECTOR, options=NARROW)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    model.init_weights()
    # scores that differ from each other, as those of a trained model
    for layer in (model.rpn_head.rpn_cls, model.roi_head.bbox_head.fc_cls):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model.eval()


@built
def test_the_package_of_a_detector_runs_without_mmrednet(tmp_path):
    torch.manual_seed(0)
    model = narrow_detector()
    network, task = network_of(fuse(model))
    image = sample_image((64, 96))
    program = capture(network, torch.from_numpy(image), dynamic=False)
    package = tmp_path / 'detector.aoti.pt2'
    with inductor.patch(WRAPPER_O0):
        FORMATS['aoti'].write(program, package, network.output_names, 'native')
    torch.save(torch.from_numpy(image), tmp_path / 'image.pth')
    outputs = tmp_path / 'outputs.pth'
    run(PACKAGE, library_beside(package), package, tmp_path / 'image.pth', outputs)
    expected = predict(model, task, image)
    assert len(expected[0]) > 20
    assert largest_error(torch.load(outputs), expected) < 1e-4
