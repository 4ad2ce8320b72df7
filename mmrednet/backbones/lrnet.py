"""Local Relation Networks (Hu et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.recomputed_maps import recomputed_conv_module, recomputed_map
from ..layers.spatial import SpatialConfig, build_spatial
from ..registry import MODELS
from .resnet import SpatialResNet


class LocalRelationStem(Sequential):
    """1x1 convolution with a norm and a ReLU, local relation, norm and ReLU.

    At full resolution the output of the convolution is the largest map of the network, and takes
    little time to compute. With ``recompute_norms`` the backward pass computes it again.
    """

    # the children are applied one after another, as mmrednet.fuse needs to know
    consecutive = ('0', '1', '2', '3')

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        reduce, relation, norm, relu = self
        return recomputed_map(relation(recomputed_conv_module(x, reduce)), norm, relu)


@MODELS.register_module()
class LRNet(SpatialResNet):
    """ResNet with local relation layers in the stem and in every bottleneck.

    The paper does not state the widths of its networks. They follow from the number of parameters
    of depth 50. Other arguments: see :class:`SpatialResNet`.

    Args:
        depth: Number of layers: 26 (two blocks in every stage), 50 or 101.
        spatial_cfg: Config of the operator of the stages.
        operator_channels: Number of channels of the operators of the first stage.
        recompute_norms: True if the backward pass computes batch norms again, see
            :class:`PyramidBackbone`. Here it saves a third of the memory.
    """

    block_counts = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

    def __init__(
        self,
        depth: int = 50,
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = dict(type='LocalRelation'),
        *,
        operator_channels: int | None = 100,
        recompute_norms: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            depth,
            spatial_cfg,
            operator_channels=operator_channels,
            recompute_norms=recompute_norms,
            **kwargs,
        )

    def make_stem(self, channels: int) -> None:
        """Build the stem: 1x1 convolution, 7x7 local relation of stride 2, pooling of stride 2."""
        # the local relation layer takes the place of ResNet's 7x7 convolution
        self.stem = LocalRelationStem(
            ConvModule(
                self.in_channels, channels, 1, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg
            ),
            build_spatial(dict(type='LocalRelation'), channels, stride=2),
            build_norm_layer(self.norm_cfg, channels)[1],
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem."""
        return (self.stem,)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, base_channels, H / 4, W / 4)."""
        return self.maxpool(self.stem(x))
