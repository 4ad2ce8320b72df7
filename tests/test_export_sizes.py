"""ONNX files of layers whose sizes the export does not know: regions, pooled maps, positions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmrednet import fuse
from mmrednet.export import capture, largest_error
from mmrednet.export.formats import blocking_message
from mmrednet.export.onnx_file import write_onnx
from mmrednet.export.pooling import adaptive_average, blocking_pools, pools_of_any_size
from mmrednet.layers import build_spatial

pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.usefixtures('one_thread')
# rows and columns of bins of UPerNet and PSPNet, some that differ, and all rows
BINS = [1, 2, 3, 6, (2, 5), (None, 4)]


def session_of(network, path, example, **options):
    """Export a network of one output, and return ONNX Runtime's session of the file."""
    program = capture(network, example, **options)
    write_onnx(program, path, ['output'])
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


class Regions(nn.Module):
    """An operator over the images whose mean is positive, as a mask head's over regions."""

    def __init__(self):
        super().__init__()
        self.layer = build_spatial(dict(type='Involution', kernel_size=3, group_channels=4), 8)

    def forward(self, image):
        index = (image.mean((1, 2, 3)) > 0).nonzero().flatten()
        return (self.layer(image.index_select(0, index)),)


def test_the_number_of_regions_is_that_of_the_image(tmp_path):
    network = fuse(Regions().eval())
    session = session_of(network, tmp_path / 'regions.onnx', torch.zeros(6, 8, 9, 9), dynamic=False)
    for signs in ([1, -1, 1, 1, -1, 1], [-1, -1, 1, -1, -1, -1], [1] * 6, [-1] * 6):
        image = torch.rand(6, 8, 9, 9) * torch.tensor(signs)[:, None, None, None]
        with torch.no_grad():
            expected = network(image)
        assert len(expected[0]) == signs.count(1)
        assert largest_error(session.run(None, {'image': image.numpy()}), expected) < 1e-5


@pytest.mark.parametrize('bins', BINS)
def test_averages_of_bins(bins):
    for size in ((7, 11), (2, 3), (12, 1), (1123, 1187)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        expected = F.adaptive_avg_pool2d(x, bins)
        torch.testing.assert_close(adaptive_average(x, expected.shape[2:]), expected)


class Pyramid(nn.Module):
    """Pooled maps at the size of the map, as in the pyramid of PSPNet and UPerNet."""

    def forward(self, image):
        pooled = [F.adaptive_avg_pool2d(image, bins) for bins in (1, 2, 6)]
        return (torch.cat([F.interpolate(x, image.shape[2:], mode='bilinear') for x in pooled]),)


def test_pooled_maps_of_other_sizes_than_in_the_export(tmp_path):
    network = Pyramid().eval()
    session = session_of(network, tmp_path / 'pyramid.onnx', torch.zeros(2, 3, 16, 16))
    for size in ((1, 3, 4, 7), (3, 3, 31, 22), (2, 3, 16, 16)):
        image = torch.randn(size)
        outputs = session.run(None, {'image': image.numpy()})
        assert largest_error(outputs, network(image)) < 1e-5


class Columns(nn.Module):
    """The column of the largest element, as of the centres of a heat map."""

    def forward(self, image):
        return (image.flatten(1).argmax(1) % image.shape[3],)


def test_positions_in_maps_of_any_width(tmp_path):
    network = Columns().eval()
    session = session_of(network, tmp_path / 'columns.onnx', torch.zeros(2, 1, 16, 16))
    image = torch.rand(5, 1, 7, 9)
    (columns,) = session.run(None, {'image': image.numpy()})
    assert columns.tolist() == network(image)[0].tolist()


POOLS = {
    'max': nn.MaxPool2d(2, ceil_mode=True),
    'overlapping': nn.MaxPool2d((3, 5), (2, 3), (1, 2), ceil_mode=True),
    'average': nn.AvgPool2d((2, 3), ceil_mode=True),
    'without padding': nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
    'rounded down': nn.MaxPool2d(2),
    'adaptive': nn.AdaptiveAvgPool2d((2, 3)),
}


@pytest.mark.parametrize('name', POOLS)
def test_pooling_that_rounds_no_size_up(name):
    network = nn.Sequential(POOLS[name], nn.Conv2d(3, 2, 1), POOLS[name]).double().eval()
    program = capture(network, torch.zeros(2, 3, 9, 9, dtype=torch.float64))
    rounded = pools_of_any_size(program)
    assert blocking_pools(program) == 0
    pools = [node for node in rounded.graph.nodes if 'pool2d' in str(node.target)]
    assert bool(pools) == (name != 'adaptive')
    # the last argument would be ceil_mode
    assert not any(True in node.args for node in pools)
    for size in ((9, 12), (10, 11), (13, 17)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(rounded.module()(x), network(x))


@pytest.mark.parametrize(
    'pool',
    [
        nn.MaxPool2d(2, 3, ceil_mode=True),
        nn.MaxPool2d(3, 2, dilation=2, ceil_mode=True),
        nn.AvgPool2d(3, 1, 1, ceil_mode=True),
        nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
    ],
    ids=str,
)
def test_pooling_that_a_package_cannot_have(pool):
    image = torch.zeros(2, 3, 9, 9)
    program = capture(nn.Sequential(nn.Conv2d(3, 3, 1), pool).eval(), image)
    message = 'pooling with ceil_mode for images of any size (1)'
    assert message in blocking_message(program, 'aoti', 'native')
    assert blocking_message(program, 'onnx', 'portable') is None
    one = capture(nn.Sequential(nn.Conv2d(3, 3, 1), pool).eval(), image, dynamic=False)
    assert blocking_message(one, 'aoti', 'native') is None
