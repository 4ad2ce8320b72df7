"""Rethinking Atrous Convolution for Semantic Image Segmentation (Chen et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.safe_module import SafeModule
from .convolutions import CONVOLUTIONS, SeparableConv, projection

POOL_LAYERS = ('norm', 'bias', 'plain')


class ASPP(SafeModule):
    r"""Parallel dilated convolutions and the mean of the map, joined by a 1x1 convolution.

    .. math:: y = P\big[\, C_1(x), C_3^{d_1}(x), C_3^{d_2}(x), C_3^{d_3}(x), \mathrm{pool}(x)
              \,\big]

    Args:
        in_channels: Number of input channels.
        out_channels: Number of channels of each branch and of the output.
        dilations: Dilations of the 3x3 convolutions. Default: (6, 12, 18), for a stride of 16.
        conv: Kind of the 3x3 convolutions, 'plain' or 'separable'. Default: 'plain'.
        pool_size: Size (height, width) of the windows of the pooling, which are one element apart.
            Default: None, the whole map.
        pool_layer: What the 1x1 convolution after the pooling has: a 'norm', a 'bias', or neither
            ('plain'). Default: 'norm'.
        dropout: Probability of dropping an element of the output. Default: 0.1.
        align_corners: True if corners are aligned where the pooled map is resized. Default: True.
        norm_cfg: Config of the norms.

    Raises:
        ValueError: An argument has no such value.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dilations: Sequence[int] = (6, 12, 18),
        conv: str = 'plain',
        pool_size: tuple[int, int] | None = None,
        pool_layer: str = 'norm',
        dropout: float = 0.1,
        align_corners: bool = True,
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        if conv not in CONVOLUTIONS:
            raise ValueError(f'conv must be one of {CONVOLUTIONS}, got {conv!r}.')
        if pool_layer not in POOL_LAYERS:
            raise ValueError(f'pool_layer must be one of {POOL_LAYERS}, got {pool_layer!r}.')
        self.pool_size, self.align_corners = pool_size, align_corners
        self.convs = nn.ModuleList([projection(in_channels, out_channels, norm_cfg)])
        for dilation in dilations:
            if conv == 'separable':
                layer: nn.Module = SeparableConv(
                    in_channels, out_channels, kernel_size=3, dilation=dilation, norm_cfg=norm_cfg
                )
            else:
                options = dict(padding=dilation, dilation=dilation, norm_cfg=norm_cfg)
                layer = ConvModule(in_channels, out_channels, 3, **options)
            self.convs.append(layer)
        self.pool_conv = nn.Conv2d(in_channels, out_channels, 1, bias=pool_layer == 'bias')
        self.pool_norm = nn.Identity()
        if pool_layer == 'norm':
            self.pool_norm = build_norm_layer(norm_cfg, out_channels)[1]
        self.project = projection((len(dilations) + 2) * out_channels, out_channels, norm_cfg)
        self.dropout = nn.Dropout(dropout)

    def pool(self, x: Tensor) -> Tensor:
        """Return the means of windows of (B, C, H, W), or of the whole map as (B, C, 1, 1)."""
        if self.pool_size is None:
            return x.mean((2, 3), keepdim=True)
        # a window is not larger than the map
        size = [min(pair) for pair in zip(self.pool_size, x.shape[2:], strict=True)]
        return F.avg_pool2d(x, size, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        pooled = F.relu(self.pool_norm(self.pool_conv(self.pool(x))))
        pooled = F.interpolate(
            pooled, x.shape[2:], mode='bilinear', align_corners=self.align_corners
        )
        branches = [conv(x) for conv in self.convs]
        return self.dropout(self.project(torch.cat([*branches, pooled], 1)))
