"""The convolutions of Panoptic-DeepLab's decoders and heads (Cheng et al., CVPR 2020)."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial

CONVOLUTIONS = ('separable', 'plain')


class SeparableConv(SafeModule):
    """A spatial operator on every channel, and a 1x1 convolution, each with a norm and a ReLU.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Size of the depth-wise convolution. Default: 5.
        dilation: Distance between neighbouring taps. Default: 1.
        spatial_cfg: Config of the operator in place of the depth-wise convolution, see
            :func:`mmrednet.layers.build_spatial`. Default: None, the convolution.
        norm_cfg: Config of the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 5,
        dilation: int = 1,
        spatial_cfg: SpatialConfig = None,
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        if spatial_cfg is None:
            padding = dilation * (kernel_size // 2)
            options: dict[str, Any] = dict(
                padding=padding, dilation=dilation, groups=in_channels, bias=False
            )
            self.depthwise: nn.Module = nn.Conv2d(in_channels, in_channels, kernel_size, **options)
        else:
            self.depthwise = build_spatial(
                spatial_cfg, in_channels, dilation=dilation, norm_cfg=norm_cfg
            )
        self.bn1 = build_norm_layer(norm_cfg, in_channels)[1]
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = build_norm_layer(norm_cfg, out_channels)[1]
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        x = self.relu(self.bn1(self.depthwise(x)))
        return self.relu(self.bn2(self.pointwise(x)))


def projection(in_channels: int, out_channels: int, norm_cfg: dict | None) -> ConvModule:
    """Return a 1x1 convolution, norm and ReLU."""
    return ConvModule(in_channels, out_channels, 1, norm_cfg=norm_cfg)


def conv_block(
    in_channels: int,
    out_channels: int,
    *,
    conv: str,
    spatial_cfg: SpatialConfig,
    norm_cfg: dict,
    width: int | None = None,
) -> nn.Module:
    """Return what fuses feature maps and what starts a head.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        conv: Kind of convolution: 'separable' is one 5x5 depth-wise separable convolution, 'plain'
            two 3x3 convolutions.
        spatial_cfg: Config of the operator in place of the depth-wise convolution.
        norm_cfg: Config of the norms.
        width: Number of channels between the plain convolutions. Default: ``out_channels``.

    Raises:
        ValueError: ``conv`` has no such value, or plain convolutions are given an operator.
    """
    if conv not in CONVOLUTIONS:
        raise ValueError(f'conv must be one of {CONVOLUTIONS}, got {conv!r}.')
    if conv == 'separable':
        return SeparableConv(in_channels, out_channels, spatial_cfg=spatial_cfg, norm_cfg=norm_cfg)
    if spatial_cfg is not None:
        raise ValueError(
            "spatial_cfg replaces depth-wise convolutions, so conv must be 'separable', got "
            f'{conv=}, {spatial_cfg=}.'
        )
    width = width or out_channels
    return Sequential(
        ConvModule(in_channels, width, 3, padding=1, norm_cfg=norm_cfg),
        ConvModule(width, out_channels, 3, padding=1, norm_cfg=norm_cfg),
    )
