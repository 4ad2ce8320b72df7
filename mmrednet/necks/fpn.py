"""Feature Pyramid Networks for Object Detection (Lin et al., CVPR 2017), with any spatial operator
on its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.spatial import SpatialConfig, build_spatial
from ..registry import MODELS

EXTRA_SOURCES = ('on_input', 'on_lateral', 'on_output')


@MODELS.register_module()
class SpatialFPN(BaseModule):
    """FPN whose 3x3 output convolutions may be any spatial operator, involution by default as in
    RedNet's detectors.

    With ``spatial_cfg=None`` it is the FPN of mmdet, in names and in values. As published, nothing
    is added around the operator, unless ``norm_cfg`` asks for norms. Extra levels (RetinaNet's P6
    and P7) stay 3x3 convolutions, unless ``spatial_extra_convs`` makes them operators of stride 2,
    as in SASA.

    Args:
        in_channels: of the input maps, from fine to coarse.
        out_channels: of every output map.
        num_outs: how many maps to return; those beyond the inputs are pooled, or convolved with
            ``add_extra_convs``.
        spatial_cfg: the operator on the outputs, see :func:`mmrednet.layers.build_spatial`.
        start_level: the first input map to use.
        add_extra_convs: False, or the source of the first extra level: 'on_input' (also True),
            'on_lateral' or 'on_output'.
        spatial_extra_convs: whether extra levels are operators; their source must then be a lateral
            or an output, which have ``out_channels``.
        relu_before_extra_convs: whether extra levels after the first see their input through a
            ReLU.
        norm_cfg: behind the laterals, the operators and the convolutions, and inside the operators;
            where it is None there are norms inside the operators alone, their own.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: the levels do not fit together, or ``add_extra_convs`` has no such value.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        *,
        spatial_cfg: SpatialConfig = dict(type='Involution'),
        start_level: int = 0,
        add_extra_convs: bool | str = False,
        spatial_extra_convs: bool = False,
        relu_before_extra_convs: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = dict(
            type='Xavier', layer='Conv2d', distribution='uniform'
        ),
    ) -> None:
        super().__init__(init_cfg)
        used = list(in_channels)[start_level:]
        if not used or num_outs < len(used):
            raise ValueError(
                f'num_outs must be at least the number of inputs from start_level on, {len(used)} '
                'and '
                f'at least 1, got {num_outs=}, {start_level=}, {in_channels=}.'
            )
        if add_extra_convs not in (False, True, *EXTRA_SOURCES):
            raise ValueError(
                f'add_extra_convs must be a bool or one of {EXTRA_SOURCES}, got '
                f'{add_extra_convs!r}.'
            )
        if spatial_extra_convs and add_extra_convs not in EXTRA_SOURCES[1:]:
            raise ValueError(
                f'spatial_extra_convs needs add_extra_convs to be one of {EXTRA_SOURCES[1:]}, '
                f'got {add_extra_convs!r}.'
            )
        self.in_channels, self.out_channels, self.num_outs = (
            list(in_channels),
            out_channels,
            num_outs,
        )
        self.start_level, self.relu_before_extra_convs = start_level, relu_before_extra_convs
        self.extra_source = EXTRA_SOURCES[0] if add_extra_convs is True else add_extra_convs
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
            for channels in used
        )
        self.fpn_convs = nn.ModuleList(self._output(spatial_cfg, norm_cfg) for _ in used)
        if self.extra_source:
            source = used[-1] if self.extra_source == 'on_input' else out_channels
            for _ in range(num_outs - len(used)):
                if spatial_extra_convs:
                    self.fpn_convs.append(self._output(spatial_cfg, norm_cfg, stride=2))
                    continue
                self.fpn_convs.append(
                    ConvModule(
                        source,
                        out_channels,
                        3,
                        stride=2,
                        padding=1,
                        norm_cfg=norm_cfg,
                        act_cfg=None,
                    )
                )
                source = out_channels

    def _output(
        self, spatial_cfg: SpatialConfig, norm_cfg: dict | None, stride: int = 1
    ) -> nn.Module:
        if spatial_cfg is None:
            return ConvModule(
                self.out_channels, self.out_channels, 3, stride, 1, norm_cfg=norm_cfg, act_cfg=None
            )
        operator = build_spatial(spatial_cfg, self.out_channels, stride=stride, norm_cfg=norm_cfg)
        if norm_cfg is None:
            return operator
        return nn.Sequential(operator, build_norm_layer(norm_cfg, self.out_channels)[1])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map the pyramid of (B, in_channels[l], H_l, W_l) to ``num_outs`` maps of
        ``out_channels``.

        Raises:
            ValueError: the number of inputs differs from that of ``in_channels``.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'inputs must be {len(self.in_channels)} maps, one per in_channels, got '
                f'{len(inputs)}.'
            )
        used = inputs[self.start_level :]
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, used, strict=True)]
        for level in range(len(laterals) - 1, 0, -1):
            above = F.interpolate(
                laterals[level], size=laterals[level - 1].shape[-2:], mode='nearest'
            )
            laterals[level - 1] = laterals[level - 1] + above
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        if not self.extra_source:
            while len(outputs) < self.num_outs:
                outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
            return tuple(outputs)
        last = {'on_input': used[-1], 'on_lateral': laterals[-1], 'on_output': outputs[-1]}[
            str(self.extra_source)
        ]
        for index, conv in enumerate(self.fpn_convs[len(laterals) :]):
            last = conv(F.relu(last) if index and self.relu_before_extra_convs else last)
            outputs.append(last)
        return tuple(outputs)
