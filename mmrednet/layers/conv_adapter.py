"""Operators in place of the convolutions of a stock model, by ``conv_cfg`` or ``dcn``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.window import IntPair, to_pair
from ..registry import MODELS
from .safe_module import SafeModule
from .spatial import SpatialConfig, build_spatial


class OperatorConv(SafeModule):
    """An operator with the attributes of a convolution, which mmcv's ConvModule reads.

    If the number of channels changes, a 1x1 convolution before the operator changes it. Arguments:
    see :func:`SpatialConv`.
    """

    # attributes of a convolution that ConvModule copies
    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: int,
        dilation: int,
        bias: bool,
        spatial_cfg: dict,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = kernel_size
        self.stride, self.dilation, self.groups = (stride, stride), (dilation, dilation), 1
        self.padding = (dilation * (kernel_size[0] // 2), dilation * (kernel_size[1] // 2))
        self.project = None
        if in_channels != out_channels:
            self.project = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.operator = build_spatial(spatial_cfg, out_channels, stride=stride, dilation=dilation)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        result = self.operator(x if self.project is None else self.project(x))
        return result if self.bias is None else result + self.bias[:, None, None]


@MODELS.register_module()
def SpatialConv(  # noqa: N802
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    bias: bool = True,
    *,
    spatial_cfg: SpatialConfig = dict(type='Involution'),
    replaces: int = 3,
) -> nn.Module:
    """Build an operator in place of a convolution of a stock model.

    ``conv_cfg=dict(type='mmrednet.SpatialConv', spatial_cfg=dict(type='Involution'))`` replaces the
    3x3 convolutions of a model. Convolutions of other sizes stay as they are. ``dcn=dict(...)``
    with ``stage_with_dcn`` does the same for some stages of a ResNet. The function is registered in
    place of a class, because it returns one of two classes.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels. If it differs from ``in_channels``, a 1x1
            convolution precedes the operator.
        kernel_size: Kernel size of the convolution.
        stride: Stride of the convolution and of the operator.
        padding: Padding of the convolution. It must keep the size at stride 1, as operators do.
        dilation: Dilation of the convolution and of the operator.
        groups: Number of groups of the convolution. It must be 1, because operators share weights
            in ways of their own.
        bias: True if a bias is added.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        replaces: Kernel size of the convolutions that are replaced.

    Raises:
        ValueError: The convolution has groups, or a stride, dilation or padding that operators do
            not have.
    """
    kernel = to_pair('kernel_size', kernel_size, 1)
    strides, dilations = to_pair('stride', stride, 1), to_pair('dilation', dilation, 1)
    if kernel != (replaces, replaces) or spatial_cfg is None:
        return nn.Conv2d(
            in_channels, out_channels, kernel, strides, padding, dilations, groups, bias
        )
    key = f'conv_cfg.spatial_cfg={spatial_cfg} (or dcn.spatial_cfg)'
    if groups != 1:
        raise ValueError(
            f'{key} cannot replace a convolution with groups: groups must be 1, got {groups=}, '
            f'{in_channels=}.'
        )
    if strides[0] != strides[1] or dilations[0] != dilations[1]:
        raise ValueError(f'{key} needs one number for both directions, got {stride=}, {dilation=}.')
    same = dilations[0] * (kernel[0] // 2)
    # a word such as 'same' has no numbers to compare
    pads = padding if isinstance(padding, str) else to_pair('padding', padding, 0)
    if pads not in ('same', (same, same)):
        raise ValueError(
            f'{key} keeps the size of a map: padding must be {same}, got {padding=}, '
            f'{kernel_size=}, {dilation=}.'
        )
    # errors of the operator name its arguments; the user wrote the config key
    try:
        return OperatorConv(
            in_channels, out_channels, kernel, strides[0], dilations[0], bias, spatial_cfg
        )
    except (TypeError, ValueError) as error:
        raise type(error)(
            f'{key} cannot stand for a {in_channels} to {out_channels} convolution: {error}'
        ) from error
