"""The region proposal head of mmdet (Ren et al., NeurIPS 2015) with any spatial operator."""

from __future__ import annotations

from typing import Any

from mmdet.models import RPNHead
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial


class SpatialRPNHead(SafeModule, RPNHead):
    """RPN head whose 3x3 convolutions are spatial operators.

    The default is one involution, as in RedNet's detectors. Of several operators each has a ReLU.
    With ``spatial_cfg=None`` the head equals mmdet's RPNHead in its state-dict keys and outputs.

    Args:
        in_channels: Number of channels of the input feature maps. It must equal ``feat_channels``,
            because an operator keeps the number of channels.
        feat_channels: Number of channels of the operators.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`; None is the
            3x3 convolution.
        num_convs: Number of operators.
        **kwargs: Keyword arguments of mmdet's RPNHead.

    Raises:
        ValueError: ``in_channels`` and ``feat_channels`` differ, or ``num_convs`` is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int = 256,
        *,
        spatial_cfg: SpatialConfig = dict(type='Involution'),
        num_convs: int = 1,
        **kwargs: Any,
    ) -> None:
        if in_channels != feat_channels:
            raise ValueError(
                'in_channels and feat_channels must be equal: a spatial operator keeps the '
                f'channels, got {in_channels=}, {feat_channels=}.'
            )
        if num_convs < 1:
            raise ValueError(f'num_convs must be at least 1, got {num_convs=}.')
        # before the base class, which calls `_init_layers`
        self.spatial_cfg = spatial_cfg
        super().__init__(
            in_channels=in_channels, feat_channels=feat_channels, num_convs=num_convs, **kwargs
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.spatial_cfg is None:
            # mmdet's own convolutions
            return
        operators = [
            build_spatial(self.spatial_cfg, self.feat_channels) for _ in range(self.num_convs)
        ]
        if self.num_convs == 1:
            # its ReLU is in mmdet's forward
            self.rpn_conv = operators[0]
        else:
            self.rpn_conv = nn.Sequential(*(nn.Sequential(x, nn.ReLU()) for x in operators))

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
