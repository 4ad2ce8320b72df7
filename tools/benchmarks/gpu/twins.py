"""RedNet-50 and ResNet-50 in torch alone, for GPU machines without the mm packages.

They are alike except for the spatial operator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrednet.ops import Window, local_involution

BLOCKS = (3, 4, 6, 3)


class Involution(nn.Module):
    """Involution 7x7 in groups of 16 channels, its generator reduced by four."""

    def __init__(self, channels: int, stride: int = 1, kernel: int = 7) -> None:
        super().__init__()
        self.groups, self.stride, self.window = channels // 16, stride, Window(kernel, stride)
        self.reduce = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels // 4)
        self.generate = nn.Conv2d(channels // 4, self.groups * kernel**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        pooled = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        hidden = F.relu(self.norm(self.reduce(pooled)))
        return local_involution(
            x.unflatten(1, (self.groups, 16)),
            hidden,
            self.generate.weight.flatten(1),
            self.generate.bias,
            self.window,
        ).flatten(1, 2)


class Bottleneck(nn.Module):
    """ResNet's bottleneck: 1x1 convolution, 3x3 convolution or involution, 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int, involves: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        if involves:
            self.conv2 = Involution(width, stride)
        else:
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if inputs == 4 * width and stride == 1:
            self.downsample = nn.Identity()
        else:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, 4 * width, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x), inplace=True)


class Twin(nn.Module):
    """The whole network. The stem of RedNet has an involution between two 3x3 convolutions."""

    def __init__(self, involves: bool, blocks: tuple[int, ...] = BLOCKS) -> None:
        super().__init__()
        if involves:
            parts = [
                nn.Conv2d(3, 32, 3, 2, 1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU(inplace=True),
                Involution(32),
                nn.BatchNorm2d(32),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 64, 3, 1, 1, bias=False),
            ]
        else:
            parts = [nn.Conv2d(3, 64, 7, 2, 3, bias=False)]
        self.stem = nn.Sequential(
            *parts, nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        layers, inputs = [], 64
        for stage, count in enumerate(blocks):
            for block in range(count):
                # the first block of a stage halves the map; the stem did so for the first stage
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(inputs, 64 << stage, stride, involves))
                inputs = 256 << stage
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to the last stage's (B, 2048, ceil(H / 32), ceil(W / 32))."""
        return self.layers(self.stem(x))


def twins() -> dict[str, nn.Module]:
    """Return the two networks, ResNet-50 first."""
    return {'ResNet-50, twin': Twin(False), 'RedNet-50, twin': Twin(True)}


def of_the_stack() -> dict[str, nn.Module]:
    """Return mmdet's ResNet-50 and RedNet-50.

    Raises:
        ImportError: An mm package is missing.
    """
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    cfgs = {
        'ResNet-50, mmdet': dict(type='ResNet', depth=50),
        'RedNet-50': dict(type='mmrednet.RedNet', depth=50),
    }
    return {name: MODELS.build(cfg) for name, cfg in cfgs.items()}


def total(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the sum of the means of all outputs, as a loss that has gradients everywhere."""
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    return sum(output.float().mean() for output in outputs)
