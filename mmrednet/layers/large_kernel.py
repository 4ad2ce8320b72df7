"""Attention maps made by large depth-wise convolutions: LKA of VAN and MSCA of SegNeXt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from .spatial import cell_average, spatial_operator


class ConvolutionalAttention(BaseModule):
    """Multiply the input by a map that convolutions make of it; with a stride, average the product.

    Windows of an odd map that reach beyond it average what is there.

    Args:
        stride: distance of neighbouring outputs.
        init_cfg: see mmengine's BaseModule.
    """

    def __init__(self, stride: int, init_cfg: dict | list[dict] | None) -> None:
        super().__init__(init_cfg)
        self.pool = cell_average(stride)

    @abstractmethod
    def gate(self, x: Tensor) -> Tensor:
        """Return the attention map, of the shape of the input (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(self.gate(x) * x)


class DepthWiseConv2d(nn.Conv2d):
    """Depth-wise convolution of stride 1 that keeps the size of its input.

    On a CPU one with dilation d, for which there is no fast kernel, becomes one without on the d x
    d maps that its taps
    see apart: positions whose distance is a multiple of d. A trace records the convolution itself.

    Args:
        channels: of the input and of the output.
        kernel_size: (rows, columns).
        dilation: distance of neighbouring taps.
    """

    def __init__(self, channels: int, kernel_size: tuple[int, int], dilation: int = 1) -> None:
        padding = (dilation * (kernel_size[0] - 1) // 2, dilation * (kernel_size[1] - 1) // 2)
        super().__init__(
            channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        step = self.dilation[0]
        even = any(size % 2 == 0 for size in self.kernel_size)
        if (
            step == 1
            or even
            or x.device.type != 'cpu'
            or torch.jit.is_tracing()
            or torch.compiler.is_compiling()
        ):
            return super().forward(x)
        height, width = x.shape[-2:]
        parts = _apart(F.pad(x, (0, -width % step, 0, -height % step)), step)
        padding = [size // 2 for size in self.kernel_size]
        result = F.conv2d(parts, self.weight, self.bias, padding=padding, groups=self.groups)
        return _together(result, step)[..., :height, :width]


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _apart(x: Tensor, step: int) -> Tensor:
    """Return the maps (B * step * step, C, H / step, W / step) that a map consists of, laid out as
    it is.
    """
    cells = x.unflatten(3, (-1, step)).unflatten(2, (-1, step))
    if _channels_last(x):
        return cells.permute(0, 3, 5, 2, 4, 1).flatten(0, 2).movedim(-1, 1)
    return cells.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def _together(x: Tensor, step: int) -> Tensor:
    """Undo :func:`_apart`."""
    parts = x.unflatten(0, (-1, step, step))
    if _channels_last(x):
        return parts.permute(0, 4, 1, 5, 2, 3).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
    return parts.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


@spatial_operator
class LargeKernelAttention(ConvolutionalAttention):
    r"""Large kernel attention of Visual Attention Network (Guo et al., CVM 2023).

    .. math:: y = \mathrm{Conv}_{1 \times 1}(\mathrm{DW\text{-}D}(\mathrm{DW}(x))) \odot x

    (equations 2 and 3 of the paper): a K x K kernel becomes a depth-wise one of 2d - 1, a
    depth-wise one of ceil(K / d) with dilation d, and a 1x1 convolution. K = 21 and d = 3 are the
    published ones; table 10 of the paper compares (7, 2), (14, 3), (21, 3) and (28, 4).

    Args:
        channels: C, of the input and of the output.
        kernel_size: K.
        kernel_dilation: d, of the decomposition.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps; all kernels are spread by it.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: K and d leave a kernel without a centre.
    """

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
        near, far = 2 * kernel_dilation - 1, -(-kernel_size // kernel_dilation)
        if dilation * kernel_dilation * (far - 1) % 2:
            raise ValueError(
                f'ceil(kernel_size / kernel_dilation) must be odd or kernel_dilation even, '
                f'got {kernel_size=}, {kernel_dilation=}.'
            )
        # the names in the published checkpoints
        self.conv0 = DepthWiseConv2d(channels, (near, near), dilation)
        self.conv_spatial = DepthWiseConv2d(channels, (far, far), dilation * kernel_dilation)
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
        channels: C, of the input and of the output.
        kernel_size: odd size of the first depth-wise kernel.
        strip_sizes: odd k of every pair of strips.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps; all kernels are spread by it.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: a size is even, or there is no strip.
    """

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
        near = total = self.conv0(x)
        for index in range(self.strips):
            total = total + getattr(self, f'conv{index}_2')(getattr(self, f'conv{index}_1')(near))
        return getattr(self, f'conv{self.strips}')(total)
