"""Involution: Inverting the Inherence of Convolution for Visual Recognition (Li et al., CVPR
2021)."""

from __future__ import annotations

from typing import Any, ClassVar

from mmcv.cnn import ConvModule
from torch import Tensor

from ..ops import Window, local_aggregate, local_involution
from ..ops.involution import finish
from .attention import TapWeights
from .groups import join_groups
from .plain import plain_pointwise
from .safe_module import SafeModule
from .spatial import cell_average, spatial_operator


@spatial_operator
class Involution(SafeModule):
    r"""Let every position generate the kernel that sums its neighbours.

    .. math:: y_{i,c} = \sum_{j \in K \times K} W_{i,j,\lceil c/D \rceil} \, x_{i+j,c}, \qquad
              W_i = W_1 \sigma(\mathrm{BN}(W_0 x_i))

    (equations 4 and 6 of the paper). The D channels of a group share a kernel. With a stride s the
    kernels are generated from the s x s average of the input. At the border of an odd feature map
    the average covers what lies on the map.

    Args:
        channels: Number of channels C of the input and of the output.
        kernel_size: Size K of the kernels, an odd number.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps.
        group_channels: Number of neighbouring channels D that share a kernel.
        reduction_ratio: Ratio r between C and the hidden channels of the kernel generator.
        norm_cfg: Norm between the two layers of the generator.
        act_cfg: Activation between the two layers of the generator.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: The channels cannot be divided, or the kernel size is even.
    """

    example: ClassVar[dict] = dict(kernel_size=3, group_channels=8)
    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        stride: int = 1,
        dilation: int = 1,
        group_channels: int = 16,
        reduction_ratio: int = 4,
        norm_cfg: dict | None = dict(type='BN'),
        act_cfg: dict | None = dict(type='ReLU'),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if channels < 1 or group_channels < 1 or channels % group_channels:
            raise ValueError(
                f'group_channels must divide channels, got {channels=}, {group_channels=}.'
            )
        if reduction_ratio < 1 or channels < reduction_ratio:
            raise ValueError(
                f'reduction_ratio must be between 1 and channels, got {channels=}, '
                f'{reduction_ratio=}.'
            )
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size=}.')
        self.groups, self.group_channels = channels // group_channels, group_channels
        self.window = Window(kernel_size, stride, dilation)
        # as published, the kernel of a strided output is made of the average of its cell
        self.pool = cell_average(stride)
        hidden = channels // reduction_ratio
        # conv1.conv, conv1.bn and conv2.conv are the names in the published checkpoints
        self.conv1 = ConvModule(channels, hidden, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.conv2 = ConvModule(hidden, self.groups * self.window.taps, 1, act_cfg=None)
        # buffers without a value are not in the state dict: `fold` sets them
        self.register_buffer('scale', None)
        self.register_buffer('shift', None)
        self.relu = False

    def generate(self, hidden: Tensor) -> Tensor:
        """Return the kernels (B, G, K * K, Ho, Wo) that the output of ``conv1`` generates."""
        return self.conv2(hidden).unflatten(1, (self.groups, self.window.taps))

    def attention(self, x: Tensor) -> TapWeights:
        """Return the kernels that are applied to (B, C, H, W)."""
        kernels = self.generate(self.conv1(self.pool(x)))
        return TapWeights(kernels, self.window, sums_to_one=False)

    def fold(self, scale: Tensor, shift: Tensor, *, relu: bool) -> None:
        """Let ``forward`` return ``scale * y + shift``, channel by channel, with a ReLU if asked.

        :func:`mmrednet.fuse` calls this with the norm and the activation behind the layer.
        """
        self.scale, self.shift, self.relu = scale, shift, relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        value = x.unflatten(1, (self.groups, self.group_channels))
        hidden = self.conv1(self.pool(x))
        if convolution := plain_pointwise(self.conv2):
            # one operator, which generates kernels where they are used and stores none
            weight, bias = convolution.weight.flatten(1), convolution.bias
            affine: dict[str, Any] = dict(scale=self.scale, shift=self.shift, relu=self.relu)
            out = local_involution(value, hidden, weight, bias, self.window, **affine)
        else:
            out = local_aggregate(value, self.generate(hidden), self.window)
            if self.scale is not None and self.shift is not None:
                out = finish(out, self.scale, self.shift, self.relu)
        return join_groups(out)
