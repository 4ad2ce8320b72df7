"""The contract of a spatial operator, the table of all operators, and how a config names one.

An operator is a module ``Layer(channels, *, stride=1, dilation=1, ...)`` that maps (B, channels, H,
W) to (B, channels, ceil(H / stride), ceil(W / stride)) for any H and W. It may stand in place of a
3x3 convolution.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_conv_layer
from mmengine.logging import print_log
from mmengine.model import Sequential
from torch import Tensor, nn

from ..ops.tracing import leaf_module
from ..registry import MODELS
from ..spelling import nearest
from .attention import Attention
from .safe_module import NamingMeta

SpatialConfig = dict | None


class GroupsError(ValueError):
    """The groups of a GroupNorm do not divide the channels inside an operator."""


# every registered operator by its name
OPERATORS: dict[str, type[nn.Module]] = {}


def spatial_operator(layer: type[nn.Module]) -> type[nn.Module]:
    """Register an operator, for ``spatial_cfg``, ``conv_cfg`` and ``plugins`` of stock ResNets.

    The operator is entered in ``OPERATORS``, the table that tests and documentation go through.
    ``torch.fx`` records it as one node.
    Stock ResNets call the number of channels of a plugin ``in_channels``; the constructor of a
    registered operator takes it under both names.

    Args:
        layer: A class with an attribute ``example``: the keyword arguments of a small instance of
            16 channels, with which tests run the contract.

    Raises:
        TypeError: The class has no ``example``.
    """
    if not isinstance(getattr(layer, 'example', None), dict):
        raise TypeError(
            f'{layer.__name__}.example must be a dict, the keyword arguments of a small instance '
            f'such as dict(kernel_size=3), got {getattr(layer, "example", None)!r}.'
        )
    # mmcv builds a plugin by its `in_channels`
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
    layer.forward = leaf_module(layer.forward)  # type: ignore[method-assign]
    MODELS.register_module()(layer)
    OPERATORS[layer.__name__] = layer
    return layer


def cell_average(stride: int) -> nn.Module:
    """Return the average pooling over cells of stride x stride.

    At the border of an odd feature map a cell averages what lies on the map.
    """
    # rounding down would drop the last rows of an odd map, which the window of an operator sees
    return nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()


def per_stage(
    spatial_cfg: SpatialConfig | Sequence[SpatialConfig], stages: int
) -> Sequence[SpatialConfig]:
    """Return one operator config per stage; a single config is used for all stages.

    Raises:
        ValueError: A list has another number of configs.
    """
    if spatial_cfg is None or isinstance(spatial_cfg, dict):
        return [spatial_cfg] * stages
    if len(spatial_cfg) != stages:
        raise ValueError(f'spatial_cfg must have one entry per stage, {stages}, got {spatial_cfg}.')
    return spatial_cfg


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
        cfg: Config such as ``dict(type='Involution', kernel_size=7)``; None is the 3x3 convolution.
        channels: Number of channels of the input and of the output.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps.
        norm_cfg: Norm of the surrounding network. Operators with norms use it unless ``cfg`` has
            a ``norm_cfg`` of its own. Where the groups of a GroupNorm do not divide the channels
            inside the operator, their number is halved until it does, which is logged.
        bias: True if the 3x3 convolution has a bias; operators ignore it.

    Raises:
        TypeError: ``cfg`` is not a dict with a ``type``.
        KeyError: No operator is registered under that type.
        ValueError: No number of groups of a GroupNorm fits, or another argument is wrong.
    """
    if cfg is None:
        options = dict(stride=stride, padding=dilation, dilation=dilation, bias=bias)
        return build_conv_layer(None, channels, channels, 3, **options)
    layer = _operator_class(cfg)
    arguments = dict(cfg, type=layer, channels=channels, stride=stride, dilation=dilation)
    # operators without norms have no such argument
    if norm_cfg is None or 'norm_cfg' not in inspect.signature(layer).parameters:
        return MODELS.build(arguments)
    if 'norm_cfg' in cfg:
        return _build_with_norm(arguments)
    return _build_with_fitted_norm(arguments, norm_cfg)


def _build_with_norm(arguments: dict) -> nn.Module:
    """Build an operator with norms.

    Raises:
        GroupsError: The groups of a GroupNorm do not divide the channels.
    """
    try:
        return MODELS.build(arguments)
    except ValueError as error:
        # torch's error names no layer
        if 'num_groups' not in str(error):
            raise
        raise GroupsError(
            f'norm_cfg={dict(arguments["norm_cfg"])} does not fit the norms inside '
            f'{arguments["type"].__name__} of {arguments["channels"]} channels: {error}.'
        ) from error


def _build_with_fitted_norm(arguments: dict, norm_cfg: dict) -> nn.Module:
    """Build an operator whose norm is that of the network around it, with the groups that fit.

    Raises:
        GroupsError: No number of groups fits.
    """
    fitted = dict(norm_cfg)
    while True:
        try:
            layer = _build_with_norm(dict(arguments, norm_cfg=fitted))
        except GroupsError:
            if fitted.get('num_groups', 1) < 2:
                raise
            fitted['num_groups'] //= 2
            continue
        if fitted != norm_cfg:
            print_log(
                f'{type(layer).__name__} of {arguments["channels"]} channels has norms of '
                f'{fitted["num_groups"]} groups inside, because the channels there are not '
                f'divisible by those of {norm_cfg}.',
                'current',
            )
        return layer


def _operator_class(cfg: dict) -> Any:
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(
            "spatial_cfg must be None (a 3x3 convolution) or a dict with the key 'type', got "
            f'{cfg!r}.'
        )
    name = cfg['type']
    if not isinstance(name, str):
        return name
    try:
        layer = MODELS.get(name)
    except KeyError:
        layer = None
    if layer is None:
        match = nearest(name.rpartition('.')[2], OPERATORS)
        raise KeyError(
            "spatial_cfg.type must be a registered operator such as 'Involution', got "
            f'{name!r}{f"; did you mean {match!r}?" if match else "."}'
        )
    return layer


@spatial_operator
class OperatorChain(Sequential, metaclass=NamingMeta):
    """Apply operators one after another, such as attention along rows and then along columns.

    Args:
        channels: Number of channels of the input and of the output.
        operators: Configs of the operators. The last one has the stride.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps of every operator.
        norm_cfg: Norm of the operators that have norms.

    Raises:
        ValueError: There is no operator.
    """

    example: ClassVar[dict] = dict(
        operators=[
            dict(type='StandAloneSelfAttention', kernel_size=3, num_heads=2),
            dict(type='Involution', kernel_size=3, group_channels=8),
        ]
    )

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
        strides = [1] * (len(operators) - 1) + [stride]
        super().__init__(
            *(
                build_spatial(cfg, channels, stride=step, dilation=dilation, norm_cfg=norm_cfg)
                for cfg, step in zip(operators, strides, strict=True)
            )
        )

    def attention(self, x: Tensor) -> tuple[Attention, ...]:
        """Return what each operator applies to its input, in the order of their application."""
        attentions: list[Attention] = []
        for operator in self:
            attention = operator.attention(x)
            # an operator may have several parts too
            is_part = isinstance(attention, Attention)
            attentions += [attention] if is_part else attention
            x = operator(x)
        return tuple(attentions)
