"""The contract of a spatial operator, what may stand in place of a 3x3 convolution, and how a
config names one.

An operator is a registered module ``Layer(channels, *, stride=1, dilation=1, norm_cfg=..., ...)``
that maps (B, channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride)) for any H and W.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_conv_layer
from mmengine.model import Sequential
from torch import nn

from ..registry import MODELS

SpatialConfig = dict | None


def spatial_operator(layer: type[nn.Module]) -> type[nn.Module]:
    """Register an operator, and let stock ResNets use it as a plugin: they name the channels
    ``in_channels``.
    """
    construct = layer.__init__

    @functools.wraps(construct)
    def __init__(
        self: nn.Module,
        channels: int | None = None,
        *,
        in_channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        if (channels is None) == (in_channels is None):
            raise TypeError(
                f'{layer.__name__} must be given channels, or in_channels when it is a plugin, '
                f'got {channels=}, {in_channels=}.'
            )
        construct(self, in_channels if channels is None else channels, **kwargs)

    layer.__init__ = __init__  # type: ignore[method-assign]
    return MODELS.register_module()(layer)


def cell_average(stride: int) -> nn.Module:
    """Return the mean over cells of stride x stride; those that reach beyond an odd map average
    what is there.
    """
    return nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()


def per_stage(
    spatial_cfg: SpatialConfig | Sequence[SpatialConfig], stages: int
) -> Sequence[SpatialConfig]:
    """Return one operator per stage: a single config stands for all.

    Raises:
        ValueError: a list has another number of configs.
    """
    configs = (
        [spatial_cfg] * stages
        if spatial_cfg is None or isinstance(spatial_cfg, dict)
        else spatial_cfg
    )
    if len(configs) != stages:
        raise ValueError(f'spatial_cfg must have one entry per stage, {stages}, got {spatial_cfg}.')
    return configs


def build_spatial(
    cfg: SpatialConfig,
    channels: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    norm_cfg: dict | None = None,
    bias: bool = False,
) -> nn.Module:
    """Build the spatial operator that a config names.

    Args:
        cfg: ``dict(type='Involution', kernel_size=7)``, say; None is the 3x3 convolution.
        channels: C, of the input and of the output.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps.
        norm_cfg: the norm that the network around it uses; for operators that have norms, unless
            ``cfg`` states one.
        bias: whether the 3x3 convolution, for which no norm stands in, has one.

    Raises:
        TypeError: ``cfg`` is not a dict with a ``type``.
        KeyError: no operator is registered under that type.
    """
    if cfg is None:
        return build_conv_layer(
            None,
            channels,
            channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            bias=bias,
        )
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(
            "spatial_cfg must be None (a 3x3 convolution) or a dict with the key 'type', got "
            f'{cfg!r}.'
        )
    layer = MODELS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    if layer is None:
        raise KeyError(
            "spatial_cfg.type must be a registered operator such as 'Involution', got "
            f'{cfg["type"]!r}.'
        )
    arguments = dict(cfg, type=layer, channels=channels, stride=stride, dilation=dilation)
    if norm_cfg is not None and 'norm_cfg' in inspect.signature(layer).parameters:
        arguments.setdefault('norm_cfg', norm_cfg)
    return MODELS.build(arguments)


@spatial_operator
class OperatorChain(Sequential):
    """Operators one behind the other, as attention along rows and then along columns.

    Args:
        channels: C, of the input and of the output.
        operators: configs of the operators; the last one has the stride.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps, of all of them.
        norm_cfg: of the operators that have norms.

    Raises:
        ValueError: there is no operator.
    """

    def __init__(
        self,
        channels: int,
        *,
        operators: Sequence[SpatialConfig],
        stride: int = 1,
        dilation: int = 1,
        norm_cfg: dict | None = None,
    ) -> None:
        if not operators:
            raise ValueError(f'operators must have at least one config, got {operators}.')
        super().__init__(
            *(
                build_spatial(
                    cfg,
                    channels,
                    stride=stride if index == len(operators) - 1 else 1,
                    dilation=dilation,
                    norm_cfg=norm_cfg,
                )
                for index, cfg in enumerate(operators)
            )
        )
