"""Attention maps made by large depth-wise convolutions: LKA of VAN and MSCA of SegNeXt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from .attention import Gate
from .depth_wise import DepthWiseConv2d
from .safe_module import SafeModule
from .spatial import cell_average, spatial_operator


class ConvolutionalAttention(SafeModule):
    """Multiply the input by a map that convolutions make of it.

    With a stride s the product is averaged over s x s. At the border of an odd feature map the
    average covers what lies on the map.

    Args:
        stride: Distance between neighbouring outputs.
        init_cfg: Initialisation, see mmengine's BaseModule.
    """

    def __init__(self, stride: int, init_cfg: dict | list[dict] | None) -> None:
        super().__init__(init_cfg)
        self.pool = cell_average(stride)

    @abstractmethod
    def gate(self, x: Tensor) -> Tensor:
        """Return the attention map, of the shape of the input (B, C, H, W)."""

    def attention(self, x: Tensor) -> Gate:
        """Return the factors (B, C, H, W) that multiply (B, C, H, W), before any pool."""
        return Gate(self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(self.gate(x) * x)


@spatial_operator
class LargeKernelAttention(ConvolutionalAttention):
    r"""Large kernel attention of Visual Attention Network (Guo et al., CVM 2023).

    .. math:: y = \mathrm{Conv}_{1 \times 1}(\mathrm{DW\text{-}D}(\mathrm{DW}(x))) \odot x

    (equations 2 and 3 of the paper): a K x K kernel becomes a depth-wise one of 2d - 1, a
    depth-wise one of ceil(K / d) with dilation d, and a 1x1 convolution. K = 21 and d = 3 are the
    published ones; table 10 of the paper compares (7, 2), (14, 3), (21, 3) and (28, 4).

    Args:
        channels: Number of channels of the input and of the output.
        kernel_size: Size K of the kernel that is decomposed.
        kernel_dilation: Dilation d of the decomposition.
        stride: Distance between neighbouring outputs.
        dilation: Factor of the distance between neighbouring taps, for all kernels.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: K and d leave a kernel without a centre.
    """

    example: ClassVar[dict] = dict(kernel_size=9)

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 21,
        kernel_dilation: int = 3,
        stride: int = 1,
        dilation: int = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(stride, init_cfg)
        if kernel_dilation < 1 or kernel_size < 1:
            raise ValueError(
                f'kernel_size and kernel_dilation must be positive, got {kernel_size=}, '
                f'{kernel_dilation=}.'
            )
        dense_size, dilated_size = 2 * kernel_dilation - 1, -(-kernel_size // kernel_dilation)
        # the same padding on both sides needs an even sum of both
        if dilation * kernel_dilation * (dilated_size - 1) % 2:
            raise ValueError(
                f'ceil(kernel_size / kernel_dilation) must be odd or kernel_dilation even, '
                f'got {kernel_size=}, {kernel_dilation=}.'
            )
        # the names in the published checkpoints
        dense, dilated = (dense_size, dense_size), (dilated_size, dilated_size)
        self.conv0 = DepthWiseConv2d(channels, dense, dilation)
        self.conv_spatial = DepthWiseConv2d(channels, dilated, dilation * kernel_dilation)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        """Return the attention map, of the shape of the input (B, C, H, W)."""
        return self.conv1(self.conv_spatial(self.conv0(x)))


@spatial_operator
class MultiScaleConvAttention(ConvolutionalAttention):
    r"""Multi-scale convolutional attention of SegNeXt (Guo et al., NeurIPS 2022).

    .. math:: y = \mathrm{Conv}_{1 \times 1}\Big(\sum_{i=0}^{n}
    \mathrm{Scale}_i(\mathrm{DW}(x))\Big) \odot x

    (equations 1 and 2 of the paper): Scale 0 is the identity, each other is two depth-wise strips,
    1 x k and k x 1.

    Args:
        channels: Number of channels of the input and of the output.
        kernel_size: Size of the first depth-wise kernel, an odd number.
        strip_sizes: Length k of every pair of strips, odd numbers.
        stride: Distance between neighbouring outputs.
        dilation: Factor of the distance between neighbouring taps, for all kernels.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: A size is even, or there is no strip.
    """

    example: ClassVar[dict] = dict(kernel_size=3, strip_sizes=(3, 5))

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 5,
        strip_sizes: Sequence[int] = (7, 11, 21),
        stride: int = 1,
        dilation: int = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(stride, init_cfg)
        if not strip_sizes or any(size % 2 == 0 for size in (kernel_size, *strip_sizes)):
            raise ValueError(
                f'kernel_size and strip_sizes must be odd, with at least one strip, '
                f'got {kernel_size=}, {strip_sizes=}.'
            )
        self.strips = len(strip_sizes)
        # the names in the published checkpoints, where the 1x1 convolution after three pairs of
        # strips is conv3
        self.conv0 = DepthWiseConv2d(channels, (kernel_size, kernel_size), dilation)
        for index, size in enumerate(strip_sizes):
            self.add_module(f'conv{index}_1', DepthWiseConv2d(channels, (1, size), dilation))
            self.add_module(f'conv{index}_2', DepthWiseConv2d(channels, (size, 1), dilation))
        self.add_module(f'conv{self.strips}', nn.Conv2d(channels, channels, 1))

    def gate(self, x: Tensor) -> Tensor:
        """Return the attention map, of the shape of the input (B, C, H, W)."""
        features = total = self.conv0(x)
        for index in range(self.strips):
            row, column = getattr(self, f'conv{index}_1'), getattr(self, f'conv{index}_2')
            total = total + column(row(features))
        return getattr(self, f'conv{self.strips}')(total)
