"""Involution: Inverting the Inherence of Convolution for Visual Recognition (Li et al., CVPR
2021)."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor

from ..ops import Window, local_involution
from .one_pass import one_pass, takes_affine
from .spatial import cell_average, spatial_operator


@spatial_operator
class Involution(BaseModule):
    r"""Let every position generate the kernel that sums its neighbours.

    .. math:: y_{i,c} = \sum_{j \in K \times K} W_{i,j,\lceil c/D \rceil} \, x_{i+j,c}, \qquad
              W_i = W_1 \sigma(\mathrm{BN}(W_0 x_i))

    (equations 4 and 6 of the paper), where the D channels of a group share a kernel. With a stride
    the kernels are generated from the s x s average of the input; windows of an odd map that reach
    beyond it average what is there.

    Args:
        channels: C, of the input and of the output.
        kernel_size: odd K; a kernel has K * K weights.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps.
        group_channels: D, how many neighbouring channels share a kernel.
        reduction_ratio: r; the generator has C / r hidden channels.
        norm_cfg: the norm between the generator's two layers.
        act_cfg: the activation between them.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: the channels cannot be divided, or the kernel size is even.
    """

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
        self.groups = channels // group_channels
        self.window = Window(kernel_size, stride, dilation)
        self.pool = cell_average(stride)
        # conv1.conv, conv1.bn and conv2.conv are the names in the published checkpoints
        self.conv1 = ConvModule(
            channels, channels // reduction_ratio, 1, norm_cfg=norm_cfg, act_cfg=act_cfg
        )
        self.conv2 = ConvModule(
            channels // reduction_ratio, self.groups * self.window.taps, 1, act_cfg=None
        )

    def generate(self, hidden: Tensor) -> Tensor:
        """Return the kernels (B, G, K * K, Ho, Wo) that the output of ``conv1`` generates;
        ``forward`` stores none.
        """
        return self.conv2(hidden).unflatten(1, (self.groups, self.window.taps))

    @takes_affine
    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        relu: bool = False,
    ) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)).

        ``scale`` and ``shift`` (C,) and ``relu`` are of a norm and an activation behind it, see
        :func:`mmrednet.ops.local_involution`.
        """
        value = x.unflatten(1, (self.groups, x.shape[1] // self.groups))
        generator = self.conv2.conv
        return local_involution(
            value,
            one_pass(self.pool(x), self.conv1),
            generator.weight.flatten(1),
            generator.bias,
            self.window,
            scale=scale,
            shift=shift,
            relu=relu,
        ).flatten(1, 2)
