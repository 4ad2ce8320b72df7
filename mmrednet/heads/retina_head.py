"""The head of RetinaNet (Lin et al., ICCV 2017) with any spatial operator."""

from __future__ import annotations

from typing import Any

from mmdet.models import RetinaHead
from mmengine.model import Sequential, bias_init_with_prob
from torch import nn

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial


class SpatialRetinaHead(SafeModule, RetinaHead):
    """RetinaNet's head whose 3x3 convolutions are spatial operators, as in table 2 of SASA.

    Each of the stacked convolutions becomes an operator and a ReLU. Each of the predicting ones
    becomes an operator and a 1x1 convolution, which mixes the heads of an attention.

    Args:
        num_classes: Number of classes of the objects.
        in_channels: Number of channels of the input feature maps. It must equal ``feat_channels``,
            because an operator keeps the number of channels.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        feat_channels: Number of channels of the operators.
        init_cfg: Initialisation, see mmengine's BaseModule.
        **kwargs: Keyword arguments of mmdet's RetinaHead.

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
                f'channels, got {in_channels=}, {feat_channels=}.'
            )
        # before the base class, which calls `_init_layers`
        self.spatial_cfg = spatial_cfg
        super().__init__(
            num_classes, in_channels, feat_channels=feat_channels, init_cfg=init_cfg, **kwargs
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        self.cls_convs, self.reg_convs = self._tower(), self._tower()
        for name in ('retina_cls', 'retina_reg'):
            setattr(self, name, self._predictor(getattr(self, name).out_channels))

    def _operator(self) -> nn.Module:
        options: dict[str, Any] = dict(norm_cfg=self.norm_cfg, bias=True)
        return build_spatial(self.spatial_cfg, self.feat_channels, **options)

    def _tower(self) -> nn.ModuleList:
        layers = [
            Sequential(self._operator(), nn.ReLU(inplace=True)) for _ in range(self.stacked_convs)
        ]
        return nn.ModuleList(layers)

    def _predictor(self, out_channels: int) -> nn.Module:
        return Sequential(self._operator(), nn.Conv2d(self.feat_channels, out_channels, 1))

    def init_weights(self) -> None:
        """Initialise, and give every class the initial probability 0.01 (section 4.1 of the paper
        on RetinaNet).
        """
        super().init_weights()
        # mmdet initialises a convolution of this name, which is the second layer here
        nn.init.constant_(self.retina_cls[1].bias, bias_init_with_prob(0.01))
