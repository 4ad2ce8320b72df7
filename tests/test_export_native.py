"""Native operators in processes that know neither mmrednet nor, in OpenVINO, torch."""

import subprocess
import sys

import pytest
import torch
from operators import EXAMPLES

from mmrednet.export import capture, largest_error
from mmrednet.export.formats import FORMATS, library_beside
from mmrednet.export.formats import run as run_file
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
# run where mmrednet cannot be imported
WITHOUT_MMREDNET = """
import sys
sys.modules['mmrednet'] = None
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


class Families(torch.nn.Module):
    """One layer of each family with operators of ours, side by side."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(build_spatial(EXAMPLES[name], 16) for name in FAMILIES)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


@built
def test_a_package_runs_without_mmrednet(tmp_path):
    torch.manual_seed(0)
    network = Families().eval()
    package = tmp_path / 'layers.aoti.pt2'
    program = capture(network, torch.zeros(2, 16, 24, 24))
    FORMATS['aoti'].write(program, package, FAMILIES, 'native')
    image = torch.randn(1, 16, 17, 23)
    torch.save(image, tmp_path / 'image.pth')
    outputs = tmp_path / 'outputs.pth'
    run(PACKAGE, library_beside(package), package, tmp_path / 'image.pth', outputs)
    with torch.no_grad():
        expected = network(image)
    for name, output, reference in zip(FAMILIES, torch.load(outputs), expected, strict=True):
        assert largest_error([output], [reference]) < 1e-5, name
    # and where mmrednet is imported
    assert largest_error(run_file('aoti', package)(image.numpy()), expected) < 1e-5
