"""Small backbones of every family, and a training of a few steps."""

import torch

from mmrednet import backbones
from mmrednet.backbones import AxialResNet, LRNet, RedNet, SASAResNet, SpatialResNet
from mmrednet.backbones.nat import Variant

RESNET = dict(base_channels=32, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
ARCH = dict(embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
# width, depths, mlp_ratio, layer_scale, drop_path_rate
NAT_ARCH = Variant(32, (1, 1, 1, 1), 2, 1e-5, 0.0)
BACKBONES = {
    'SpatialResNet': lambda **options: SpatialResNet(26, **RESNET, **options),
    'RedNet': lambda **options: RedNet(26, **RESNET, **options),
    'SASAResNet': lambda **options: SASAResNet(26, **RESNET, **options),
    'LRNet': lambda **options: LRNet(26, **RESNET, operator_channels=20, **options),
    'SAN': lambda **options: backbones.SAN(10, base_channels=32, **options),
    'AxialResNet': lambda **options: AxialResNet(0.25, 26, input_size=32, **options),
    'NAT': lambda **options: backbones.NAT(NAT_ARCH, **options),
    'DiNAT': lambda **options: backbones.DiNAT(NAT_ARCH, **options),
    'DiNATs': lambda **options: backbones.DiNATs(NAT_ARCH, **options),
    'VAN': lambda **options: backbones.VAN(ARCH, **options),
    'MSCAN': lambda **options: backbones.MSCAN(ARCH, **options),
}


def train(model, image, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        # the same layers drop out in all models
        torch.manual_seed(0)
        optimizer.zero_grad()
        sum(output.square().mean() for output in model(image)).backward()
        optimizer.step()
    return model.state_dict()


def assert_equal_states(state, expected):
    assert list(state) == list(expected)
    assert not [key for key, value in expected.items() if not torch.equal(state[key], value)]
