"""The mask head of Mask R-CNN (He et al., ICCV 2017) with any spatial operator."""

from __future__ import annotations

from typing import Any

from mmdet.models import FCNMaskHead
from mmengine.model import ModuleList, Sequential
from torch import nn

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial


class SpatialFCNMaskHead(SafeModule, FCNMaskHead):
    """Mask head whose 3x3 convolutions are spatial operators, each with a ReLU.

    The default is involution, as in RedNet's detectors.

    Args:
        in_channels: Number of channels of the RoI features. It must equal ``conv_out_channels``,
            because an operator keeps the number of channels.
        conv_out_channels: Number of channels of the operators.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        **kwargs: Keyword arguments of mmdet's FCNMaskHead.

    Raises:
        ValueError: ``in_channels`` and ``conv_out_channels`` differ.
    """

    def __init__(
        self,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        *,
        spatial_cfg: SpatialConfig = dict(type='Involution'),
        **kwargs: Any,
    ) -> None:
        if in_channels != conv_out_channels:
            raise ValueError(
                'in_channels and conv_out_channels must be equal: a spatial operator keeps the '
                f'channels, got {in_channels=}, {conv_out_channels=}.'
            )
        # the base class builds upsampling and predictor; its convolutions are replaced
        super().__init__(in_channels=in_channels, conv_out_channels=conv_out_channels, **kwargs)
        self.convs = ModuleList(
            Sequential(
                build_spatial(spatial_cfg, conv_out_channels, norm_cfg=self.norm_cfg, bias=True),
                nn.ReLU(),
            )
            for _ in range(self.num_convs)
        )
