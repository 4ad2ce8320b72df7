"""RedNet, the network of Involution (Li et al., CVPR 2021), section 3.3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.spatial import SpatialConfig, build_spatial
from ..registry import MODELS
from .resnet import SpatialResNet


@MODELS.register_module()
class RedNet(SpatialResNet):
    """ResNet with involution in the stem and in every bottleneck.

    Other arguments: see :class:`SpatialResNet`.

    Args:
        depth: Number of layers: 26, 38, 50, 101 or 152.
        spatial_cfg: Config of the operator of the stages; the published one is a 7x7 involution.
        stem_kernel_size: Kernel size of the involution in the stem. The published detectors and
            segmenters have 7, the published classifiers and so their checkpoints 3.
    """

    def __init__(
        self,
        depth: int = 50,
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = dict(type='Involution'),
        *,
        stem_kernel_size: int = 7,
        **kwargs: Any,
    ) -> None:
        self.stem_kernel_size = stem_kernel_size
        super().__init__(depth, spatial_cfg, **kwargs)

    def make_stem(self, channels: int) -> None:
        """Build the stem: convolution of stride 2, involution, convolution, pooling of stride 2."""
        half = channels // 2
        norm_cfg = self.norm_cfg
        configs = dict(conv_cfg=self.conv_cfg, norm_cfg=norm_cfg)
        # a Sequential whose indices are in the published keys
        involution = dict(type='Involution', kernel_size=self.stem_kernel_size)
        self.stem = Sequential(
            ConvModule(self.in_channels, half, 3, stride=2, padding=1, **configs),
            build_spatial(involution, half, norm_cfg=norm_cfg),
            build_norm_layer(norm_cfg, half)[1],
            nn.ReLU(inplace=True),
            ConvModule(half, channels, 3, padding=1, **configs),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem."""
        return (self.stem,)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, base_channels, H / 4, W / 4)."""
        return self.maxpool(self.stem(x))
