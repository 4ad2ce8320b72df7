"""Looking inside: kernel maps are the sums of the kernels that the network applied."""

import numpy as np
import pytest
import torch
from torch import nn

from mmrednet.analysis import draw_kernel_maps, kernel_maps
from mmrednet.backbones import RedNet
from mmrednet.layers import Involution


def test_maps_are_sums_of_kernels():
    first, second = Involution(16), Involution(16, kernel_size=3, stride=2, group_channels=4)
    model = nn.Sequential(first, nn.ReLU(), second).double().eval()
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64)
    maps = kernel_maps(model, x)
    assert list(maps) == ['0', '2']
    torch.testing.assert_close(maps['0'], first.generate(first.conv1(x)).sum(2))
    torch.testing.assert_close(
        maps['2'], second.generate(second.conv1(second.pool(first(x).relu()))).sum(2)
    )
    assert maps['2'].shape == (2, 4, 4, 3)
    assert not first.conv2._forward_hooks


def test_every_involution_of_a_backbone_is_seen():
    maps = kernel_maps(RedNet(26, base_channels=32), torch.randn(2, 3, 32, 32))
    assert len(maps) == 1 + 8
    assert maps['layer4.0.conv2'].shape == (2, 16, 1, 1)


def test_a_model_without_involution_is_refused():
    with pytest.raises(
        ValueError, match='model must have at least one Involution, Conv2d has none'
    ):
        kernel_maps(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))


def test_heat_is_laid_over_the_image():
    image = np.full((32, 64, 3), 128, np.uint8)
    heat = torch.zeros(1, 2, 4, 8)
    heat[..., 4:] = 1
    picture = draw_kernel_maps(image, {'layer1': heat}, height=64)
    # two panels with captions and a gap, and a legend of one line
    assert picture.shape == (64 + 20 + 4 + 26, 2 * 128 + 4, 3)
    # blue (channel 0 of BGR) where the kernels sum to little, red where they sum to much
    left, right = picture[20:84, 132:172].mean((0, 1)), picture[20:84, 220:].mean((0, 1))
    assert left[0] > left[2] + 30
    assert right[2] > right[0] + 30
