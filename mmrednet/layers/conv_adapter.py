"""Operators where a stock model builds a convolution, through ``conv_cfg`` or ``dcn`` with
``stage_with_dcn``.
"""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops.window import to_pair
from ..registry import MODELS
from .spatial import SpatialConfig, build_spatial

IntPair = int | tuple[int, int]


class OperatorConv(BaseModule):
    """An operator with the attributes of a convolution, which mmcv's ConvModule reads.

    Where the number of channels changes, a 1x1 convolution changes it before the operator.

    Args: see :func:`SpatialConv`.
    """

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
        self.in_channels, self.out_channels, self.kernel_size = (
            in_channels,
            out_channels,
            kernel_size,
        )
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
def SpatialConv(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair = 1,  # noqa: N802
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    bias: bool = True,
    *,
    spatial_cfg: SpatialConfig = dict(type='Involution'),
    replaces: int = 3,
) -> nn.Module:
    """Build an operator in place of a convolution, or the convolution where its kernel has another
    size.

    ``conv_cfg=dict(type='mmrednet.SpatialConv', spatial_cfg=dict(type='Involution'))`` replaces the
    3x3 convolutions of a stock model and leaves the others as they are; so does ``dcn=dict(...)``
    with ``stage_with_dcn``.

    Args:
        in_channels: of the input.
        out_channels: of the output; if they differ, a 1x1 convolution precedes the operator.
        kernel_size: of the convolution that the model asks for.
        stride: of the convolution, and of the operator.
        padding: of the convolution; it must keep the size at stride 1, as operators do.
        dilation: of the convolution, and of the operator.
        groups: of the convolution; operators share weights in ways of their own, so it must be 1.
        bias: whether one is added.
        spatial_cfg: the operator, see :func:`mmrednet.layers.build_spatial`.
        replaces: the kernel size that is replaced.

    Raises:
        ValueError: the convolution has groups, or no counterpart of its stride, dilation or
            padding.
    """
    kernel, strides, dilations = (
        to_pair('kernel_size', kernel_size, 1),
        to_pair('stride', stride, 1),
        to_pair('dilation', dilation, 1),
    )
    if kernel != (replaces, replaces) or spatial_cfg is None:
        return nn.Conv2d(
            in_channels, out_channels, kernel, strides, padding, dilations, groups, bias
        )
    where = f'conv_cfg.spatial_cfg={spatial_cfg} (or dcn.spatial_cfg)'
    if groups != 1:
        raise ValueError(
            f'{where} cannot replace a convolution with groups: groups must be 1, got {groups=}, '
            f'{in_channels=}.'
        )
    if strides[0] != strides[1] or dilations[0] != dilations[1]:
        raise ValueError(
            f'{where} needs one number for both directions, got {stride=}, {dilation=}.'
        )
    same = (dilations[0] * (kernel[0] // 2),) * 2
    if (
        not isinstance(padding, str)
        and to_pair('padding', padding, 0) != same
        or padding == 'valid'
    ):
        raise ValueError(
            f'{where} keeps the size of a map: padding must be {same[0]}, got {padding=}, '
            f'{kernel_size=}, '
            f'{dilation=}.'
        )
    try:
        return OperatorConv(
            in_channels, out_channels, kernel, strides[0], dilations[0], bias, spatial_cfg
        )
    except (TypeError, ValueError) as error:
        raise type(error)(
            f'{where} cannot stand for a {in_channels} to {out_channels} convolution: {error}'
        ) from error
