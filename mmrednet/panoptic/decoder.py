"""The decoder of Panoptic-DeepLab (Cheng et al., CVPR 2020), and that of Axial-DeepLab (Wang et
al., ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig
from .aspp import ASPP
from .convolutions import conv_block, projection

CONTEXTS = ('aspp', 'projection')


class PanopticDecoder(SafeModule):
    r"""Context of the coarsest feature map, fused with finer ones step by step.

    .. math:: y_L = \mathrm{context}(x_L), \qquad y_l = F_l\big[\, \mathrm{up}(y_{l+1}), P_l(x_l)
              \,\big]

    The feature maps x run from fine (l = 1) to coarse (l = L). P is a 1x1 convolution, F a 5x5
    depth-wise separable convolution. Semantic and instance branches have a decoder each.

    Args:
        in_channels: Number of channels of each feature map, from fine to coarse.
        channels: Number of channels of every fused map and of the output.
        low_channels: Number of channels of each projected map, from fine to coarse; those beyond
            the feature maps are not used.
        context: What the coarsest map goes through: 'aspp', or 'projection', the 1x1 convolution
            of Axial-DeepLab. Default: 'aspp'.
        context_channels: Number of channels of the context. Default: 256.
        conv: Kind of the fusions, 'separable' or 'plain'. Default: 'separable'.
        spatial_cfg: Config of the operator in place of the depth-wise convolutions of the fusions.
            Default: None, the convolution.
        projection_first: True if a projected map stands before the upsampled one. Default: False.
        align_corners: True if corners are aligned in upsampling. Default: True.
        norm_cfg: Config of the norms.
        **aspp: Further keyword arguments of :class:`ASPP`; ``aspp_conv`` is its ``conv``.

    Raises:
        ValueError: There are not enough feature maps or ``low_channels``, or an argument has no
            such value.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        low_channels: Sequence[int],
        *,
        context: str = 'aspp',
        context_channels: int = 256,
        conv: str = 'separable',
        spatial_cfg: SpatialConfig = None,
        projection_first: bool = False,
        align_corners: bool = True,
        norm_cfg: dict,
        aspp_conv: str = 'plain',
        **aspp: Any,
    ) -> None:
        super().__init__()
        levels = len(in_channels) - 1
        if levels < 1 or len(low_channels) < levels:
            raise ValueError(
                'in_channels must name at least two feature maps, and low_channels one number for '
                f'each but the coarsest, got {in_channels=}, {low_channels=}.'
            )
        if context not in CONTEXTS:
            raise ValueError(f'context must be one of {CONTEXTS}, got {context!r}.')
        self.projection_first, self.align_corners = projection_first, align_corners
        if context == 'aspp':
            self.context: nn.Module = ASPP(
                in_channels[-1],
                context_channels,
                conv=aspp_conv,
                align_corners=align_corners,
                norm_cfg=norm_cfg,
                **aspp,
            )
        else:
            self.context = projection(in_channels[-1], context_channels, norm_cfg)
        self.projections, self.fusions = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            low = low_channels[level]
            # the coarsest of these joins the context, the others a fused map
            high = context_channels if level == levels - 1 else channels
            self.projections.append(projection(in_channels[level], low, norm_cfg))
            options: dict[str, Any] = dict(conv=conv, spatial_cfg=spatial_cfg, norm_cfg=norm_cfg)
            self.fusions.append(conv_block(high + low, channels, **options))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map feature maps (B, in_channels[l], H_l, W_l) to (B, channels, H_1, W_1).

        Raises:
            ValueError: The number of feature maps differs from that of ``in_channels``.
        """
        levels = len(self.projections)
        if len(features) != levels + 1:
            raise ValueError(
                f'the decoder must be given {levels + 1} feature maps, one for each of '
                f'in_channels, got {len(features)}. Check out_indices of the backbone.'
            )
        y = self.context(features[-1])
        for level in reversed(range(levels)):
            low = self.projections[level](features[level])
            y = F.interpolate(y, low.shape[2:], mode='bilinear', align_corners=self.align_corners)
            y = self.fusions[level](torch.cat([low, y] if self.projection_first else [y, low], 1))
        return y
