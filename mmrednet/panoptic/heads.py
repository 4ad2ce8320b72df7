"""The heads of Panoptic-DeepLab (Cheng et al., CVPR 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig
from .convolutions import conv_block


class PanopticHead(SafeModule):
    """A convolution with norm and ReLU, and a 1x1 convolution to the predictions.

    Args:
        in_channels: Number of input channels.
        channels: Number of channels before the last convolution.
        out_channels: Number of predictions per element.
        conv: Kind of the first convolution, see :func:`conv_block`. Default: 'separable'.
        spatial_cfg: Config of the operator in place of the depth-wise convolution. Default: None.
        norm_cfg: Config of the norms.
        init_cfg: Initialisation of the last convolution. Default: a normal distribution of standard
            deviation 0.01, cut at twice that, as in deeplab2.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        *,
        conv: str = 'separable',
        spatial_cfg: SpatialConfig = None,
        norm_cfg: dict,
        init_cfg: dict = dict(type='TruncNormal', std=0.01, a=-0.02, b=0.02),
    ) -> None:
        super().__init__(dict(init_cfg, override=dict(name='predictor')))
        self.conv = conv_block(
            in_channels,
            channels,
            conv=conv,
            spatial_cfg=spatial_cfg,
            norm_cfg=norm_cfg,
            # the first of two plain convolutions keeps its input's channels
            width=in_channels,
        )
        self.predictor = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.predictor(self.conv(x))
