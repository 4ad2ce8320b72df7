"""The region proposal head of mmdet (Ren et al., NeurIPS 2015) with any spatial operator."""

from __future__ import annotations

from typing import Any

from mmdet.models import RPNHead
from mmengine.structures import InstanceData
from torch import Tensor

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial


class SpatialRPNHead(SafeModule, RPNHead):
    """RPN head whose 3x3 convolution is a spatial operator.

    The default is involution, as in RedNet's detectors.

    Args:
        in_channels: Number of channels of the input feature maps. It must equal ``feat_channels``,
            because an operator keeps the number of channels.
        feat_channels: Number of channels of the operator.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`; None is the
            3x3 convolution.
        **kwargs: Keyword arguments of mmdet's RPNHead.

    Raises:
        ValueError: ``in_channels`` and ``feat_channels`` differ, or ``num_convs`` is not 1.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int = 256,
        *,
        spatial_cfg: SpatialConfig = dict(type='Involution'),
        **kwargs: Any,
    ) -> None:
        if in_channels != feat_channels:
            raise ValueError(
                'in_channels and feat_channels must be equal: a spatial operator keeps the '
                f'channels, got {in_channels=}, {feat_channels=}.'
            )
        if kwargs.get('num_convs', 1) != 1:
            raise ValueError(
                f'num_convs must be 1 with a spatial operator, got num_convs={kwargs["num_convs"]}.'
            )
        # before the base class, which calls `_init_layers`
        self.spatial_cfg = spatial_cfg
        super().__init__(in_channels=in_channels, feat_channels=feat_channels, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.rpn_conv = build_spatial(self.spatial_cfg, self.feat_channels, bias=True)

    def _predict_by_feat_single(
        self,
        cls_score_list: list[Tensor],
        bbox_pred_list: list[Tensor],
        score_factor_list: list[Tensor],
        mlvl_priors: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> InstanceData:
        # mmdet squeezes the scores of a level, and fails where it has a single one. Given twice,
        # its box is suppressed once.
        scores, boxes, priors = [], [], []
        for score, box, prior in zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True):
            times = 2 if len(prior) == 1 else 1
            scores.append(score.repeat(1, 1, times))
            boxes.append(box.repeat(1, 1, times))
            priors.append(prior.repeat(times, 1))
        return super()._predict_by_feat_single(
            scores, boxes, score_factor_list, priors, *args, **kwargs
        )
