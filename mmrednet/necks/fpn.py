"""Feature Pyramid Networks for Object Detection (Lin et al., CVPR 2017), with any spatial operator
on its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
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
    FPN in its arguments, state-dict keys and outputs. As published, operators have neither a norm
    nor an activation after them unless ``norm_cfg`` or ``act_cfg`` is given. Extra levels
    (RetinaNet's P6 and P7) stay 3x3 convolutions, unless ``spatial_extra_convs`` makes them
    operators of stride 2, as in SASA.

    Args:
        in_channels: Number of channels of each input feature map, from fine to coarse.
        out_channels: Number of channels of every output feature map.
        num_outs: Number of output feature maps. Those beyond the inputs are pooled, or convolved
            with ``add_extra_convs``.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        start_level: Index of the first input feature map to use.
        end_level: Index of the last input feature map to use. -1 is the last one. Before any
            other there is no extra level.
        add_extra_convs: Source of the first extra level: 'on_input' (also True), 'on_lateral' or
            'on_output'. False pools instead.
        spatial_extra_convs: True if extra levels are operators. Their source must then be a
            lateral or an output, which have ``out_channels``.
        relu_before_extra_convs: True if there is a ReLU before the extra levels after the first.
        no_norm_on_lateral: True if the laterals have no norm.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms after the laterals, operators and convolutions, and inside
            the operators. With None only operators that have norms of their own have any.
        act_cfg: Config of the activations after the laterals, operators and convolutions.
        upsample_cfg: Keyword arguments of :func:`torch.nn.functional.interpolate`, such as
            ``dict(mode='bilinear')``. Without a ``scale_factor`` a feature map gets the size of
            the next finer one.
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
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        spatial_extra_convs: bool = False,
        relu_before_extra_convs: bool = False,
        no_norm_on_lateral: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        upsample_cfg: dict = dict(mode='nearest'),
        init_cfg: dict | list[dict] | None = dict(
            type='Xavier', layer='Conv2d', distribution='uniform'
        ),
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels, self.out_channels = list(in_channels), out_channels
        self.num_outs = num_outs
        self.start_level, self.end_level = start_level, end_level
        self.relu_before_extra_convs = relu_before_extra_convs
        self.conv_cfg, self.norm_cfg, self.act_cfg = conv_cfg, norm_cfg, act_cfg
        self.upsample_cfg = dict(upsample_cfg)
        _check_extra_convs(add_extra_convs, spatial_extra_convs)
        self.extra_source = EXTRA_SOURCES[0] if add_extra_convs is True else add_extra_convs
        used = self._used(self.in_channels)
        self._check_outs(len(used))
        lateral_norm = None if no_norm_on_lateral else norm_cfg
        self.lateral_convs = nn.ModuleList(
            self._convolution(channels, 1, norm_cfg=lateral_norm) for channels in used
        )
        self.fpn_convs = nn.ModuleList(self._output(spatial_cfg) for _ in used)
        source = used[-1] if self.extra_source == 'on_input' else out_channels
        for _ in range(num_outs - len(used) if self.extra_source else 0):
            if spatial_extra_convs:
                self.fpn_convs.append(self._output(spatial_cfg, stride=2))
            else:
                self.fpn_convs.append(self._convolution(source, 3, 2, norm_cfg=norm_cfg))
            # further levels are made of the one before
            source = out_channels

    def _used(self, levels: Sequence[Any]) -> Sequence[Any]:
        """Return what belongs to the levels from ``start_level`` to ``end_level``."""
        # mmdet's end_level is the last level itself, and not the one after it
        stop = len(self.in_channels) if self.end_level == -1 else self.end_level + 1
        return levels[self.start_level : stop]

    def _check_outs(self, inputs: int) -> None:
        """Raise a ValueError if the levels do not fit together.

        Args:
            inputs: Number of input feature maps that are used.
        """
        last = len(self.in_channels) - 1
        levels = f'start_level={self.start_level}, end_level={self.end_level}'
        if not -1 <= self.end_level <= last:
            raise ValueError(f'end_level must be from -1 to {last}, got {levels}.')
        if not inputs or self.num_outs < inputs:
            raise ValueError(
                'num_outs must be at least the number of inputs from start_level on, '
                f'{inputs} and at least 1, got num_outs={self.num_outs}, {levels}, '
                f'in_channels={self.in_channels}.'
            )
        if self.end_level not in (-1, last) and self.num_outs > inputs:
            raise ValueError(
                f'num_outs must be the number of inputs from start_level to end_level, {inputs}, '
                'because there are extra levels after the last input alone, got '
                f'num_outs={self.num_outs}, {levels}.'
            )

    def _convolution(
        self, in_channels: int, size: int, stride: int = 1, *, norm_cfg: dict | None
    ) -> nn.Module:
        return ConvModule(
            in_channels,
            self.out_channels,
            size,
            stride,
            padding=size // 2,
            conv_cfg=self.conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=self.act_cfg,
            inplace=False,
        )

    def _output(self, spatial_cfg: SpatialConfig, stride: int = 1) -> nn.Module:
        channels, norm_cfg = self.out_channels, self.norm_cfg
        if spatial_cfg is None:
            return self._convolution(channels, 3, stride, norm_cfg=norm_cfg)
        operator = build_spatial(spatial_cfg, channels, stride=stride, norm_cfg=norm_cfg)
        # published detectors have nothing between the operator and the heads
        following = []
        if norm_cfg is not None:
            following.append(build_norm_layer(norm_cfg, channels)[1])
        if self.act_cfg is not None:
            following.append(build_activation_layer(self.act_cfg))
        return nn.Sequential(operator, *following) if following else operator

    def _upsample(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return a coarse feature map in the size of a finer one."""
        # torch takes either a factor or a size
        size = None if 'scale_factor' in self.upsample_cfg else fine.shape[-2:]
        return F.interpolate(coarse, size=size, **self.upsample_cfg)

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
        used = self._used(inputs)
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, used, strict=True)]
        for level in range(len(laterals) - 1, 0, -1):
            fine = laterals[level - 1]
            laterals[level - 1] = fine + self._upsample(laterals[level], fine)
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


def _check_extra_convs(source: bool | str, is_spatial: bool) -> None:
    """Raise a ValueError if extra levels have no such source, or operators cannot have it."""
    if source not in (False, True, *EXTRA_SOURCES):
        raise ValueError(
            f'add_extra_convs must be a bool or one of {EXTRA_SOURCES}, got {source!r}.'
        )
    if is_spatial and source not in EXTRA_SOURCES[1:]:
        raise ValueError(
            f'spatial_extra_convs needs add_extra_convs to be one of {EXTRA_SOURCES[1:]}, '
            f'got {source!r}.'
        )
