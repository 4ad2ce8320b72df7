"""The head of RetinaNet (Lin et al., ICCV 2017) with any spatial operator."""

from __future__ import annotations

from typing import Any

from mmdet.models import RetinaHead
from mmengine.model import Sequential, bias_init_with_prob
from torch import nn

from ..layers.spatial import SpatialConfig, build_spatial


class SpatialRetinaHead(RetinaHead):
    """RetinaNet's head whose 3x3 convolutions are spatial operators, as in table 2 of SASA.

    Each of the stacked convolutions becomes an operator and a ReLU; each predicting one an operator
    and a 1x1 convolution, which mixes the heads of an attention.

    Args:
        num_classes: of the objects.
        in_channels: of the maps; an operator keeps their number, so it must equal
            ``feat_channels``.
        spatial_cfg: the operator, see :func:`mmrednet.layers.build_spatial`.
        feat_channels: of the features.
        init_cfg: see mmengine's BaseModule.
        **kwargs: see mmdet's RetinaHead.

    Raises:
        ValueError: ``in_channels`` and ``feat_channels`` differ.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        spatial_cfg: SpatialConfig = dict(type='StandAloneSelfAttention'),
        feat_channels: int = 256,
        init_cfg: dict | list[dict] | None = dict(type='Normal', layer='Conv2d', std=0.01),
        **kwargs: Any,
    ) -> None:
        if in_channels != feat_channels:
            raise ValueError(
                'in_channels and feat_channels must be equal: a spatial operator keeps the '
                'channels, '
                f'got {in_channels=}, {feat_channels=}.'
            )
        self.spatial_cfg = spatial_cfg
        super().__init__(
            num_classes, in_channels, feat_channels=feat_channels, init_cfg=init_cfg, **kwargs
        )

    def _init_layers(self) -> None:
        super()._init_layers()

        def operator() -> nn.Module:
            return build_spatial(
                self.spatial_cfg, self.feat_channels, norm_cfg=self.norm_cfg, bias=True
            )

        for name in ('cls_convs', 'reg_convs'):
            setattr(
                self,
                name,
                nn.ModuleList(
                    Sequential(operator(), nn.ReLU(inplace=True)) for _ in range(self.stacked_convs)
                ),
            )
        for name in ('retina_cls', 'retina_reg'):
            setattr(
                self,
                name,
                Sequential(
                    operator(), nn.Conv2d(self.feat_channels, getattr(self, name).out_channels, 1)
                ),
            )

    def init_weights(self) -> None:
        """Initialise, and let every class begin with the probability 0.01 (section 4.1 of the
        RetinaNet paper).
        """
        super().init_weights()
        nn.init.constant_(self.retina_cls[1].bias, bias_init_with_prob(0.01))
