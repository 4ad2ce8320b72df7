"""Feature Pyramid Networks for Object Detection (Lin et al., CVPR 2017), with any spatial operator
on its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule, build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial
from ..registry import MODELS

EXTRA_SOURCES = ('on_input', 'on_lateral', 'on_output')


@MODELS.register_module()
class SpatialFPN(SafeModule):
    """FPN whose 3x3 output convolutions may be any spatial operator.

    The default is involution, as in RedNet's detectors. With ``spatial_cfg=None`` it equals mmdet's
    FPN in its state-dict keys and outputs. As published, operators have no norm after them unless
    ``norm_cfg`` is given. Extra levels (RetinaNet's P6 and P7) stay 3x3 convolutions, unless
    ``spatial_extra_convs`` makes them operators of stride 2, as in SASA.

    Args:
        in_channels: Number of channels of each input feature map, from fine to coarse.
        out_channels: Number of channels of every output feature map.
        num_outs: Number of output feature maps. Those beyond the inputs are pooled, or convolved
            with ``add_extra_convs``.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        start_level: Index of the first input feature map to use.
        add_extra_convs: Source of the first extra level: 'on_input' (also True), 'on_lateral' or
            'on_output'. False pools instead.
        spatial_extra_convs: True if extra levels are operators. Their source must then be a
            lateral or an output, which have ``out_channels``.
        relu_before_extra_convs: True if there is a ReLU before the extra levels after the first.
        norm_cfg: Config of the norms after the laterals, operators and convolutions, and inside
            the operators. With None only operators that have norms of their own have any.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: The levels do not fit together, or ``add_extra_convs`` has no such value.
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
        # levels below start_level are ignored
        used = list(in_channels)[start_level:]
        if not used or num_outs < len(used):
            raise ValueError(
                f'num_outs must be at least the number of inputs from start_level on, {len(used)} '
                f'and at least 1, got {num_outs=}, {start_level=}, {in_channels=}.'
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
        self.in_channels, self.out_channels = list(in_channels), out_channels
        self.num_outs = num_outs
        self.start_level, self.relu_before_extra_convs = start_level, relu_before_extra_convs
        self.extra_source = EXTRA_SOURCES[0] if add_extra_convs is True else add_extra_convs
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
            for channels in used
        )
        self.fpn_convs = nn.ModuleList(self._output(spatial_cfg, norm_cfg) for _ in used)
        source = used[-1] if self.extra_source == 'on_input' else out_channels
        for _ in range(num_outs - len(used) if self.extra_source else 0):
            if spatial_extra_convs:
                self.fpn_convs.append(self._output(spatial_cfg, norm_cfg, stride=2))
            else:
                self.fpn_convs.append(self._convolution(source, 2, norm_cfg))
            # further levels are made of the one before
            source = out_channels

    def _convolution(self, in_channels: int, stride: int, norm_cfg: dict | None) -> nn.Module:
        options: dict[str, Any] = dict(padding=1, norm_cfg=norm_cfg, act_cfg=None)
        return ConvModule(in_channels, self.out_channels, 3, stride, **options)

    def _output(
        self, spatial_cfg: SpatialConfig, norm_cfg: dict | None, stride: int = 1
    ) -> nn.Module:
        if spatial_cfg is None:
            return self._convolution(self.out_channels, stride, norm_cfg)
        operator = build_spatial(spatial_cfg, self.out_channels, stride=stride, norm_cfg=norm_cfg)
        # published detectors have nothing between the operator and the heads
        if norm_cfg is None:
            return operator
        return nn.Sequential(operator, build_norm_layer(norm_cfg, self.out_channels)[1])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map feature maps (B, in_channels[l], H_l, W_l) to ``num_outs`` feature maps of
        ``out_channels``.

        Raises:
            ValueError: The number of inputs differs from that of ``in_channels``.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'inputs must be {len(self.in_channels)} maps, one per in_channels, got '
                f'{len(inputs)}.'
            )
        used = inputs[self.start_level :]
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, used, strict=True)]
        for level in range(len(laterals) - 1, 0, -1):
            size = laterals[level - 1].shape[-2:]
            coarse = F.interpolate(laterals[level], size=size, mode='nearest')
            laterals[level - 1] = laterals[level - 1] + coarse
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        if not self.extra_source:
            while len(outputs) < self.num_outs:
                # every second pixel, as in Faster R-CNN's P6
                outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
            return tuple(outputs)
        sources = dict(on_input=used[-1], on_lateral=laterals[-1], on_output=outputs[-1])
        x = sources[str(self.extra_source)]
        for index, conv in enumerate(self.fpn_convs[len(laterals) :]):
            x = conv(F.relu(x) if index and self.relu_before_extra_convs else x)
            outputs.append(x)
        return tuple(outputs)
