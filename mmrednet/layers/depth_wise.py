"""Depth-wise convolution as a module, and with an activation behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import depthwise_conv2d, onednn
from ..ops.tracing import is_captured, leaf_module
from .plain import is_plain


class DepthWiseConv2d(nn.Conv2d):
    """Depth-wise convolution of stride 1 that keeps the size of its input.

    Args:
        channels: Number of channels of the input and of the output.
        kernel_size: Rows and columns of the kernel.
        dilation: Distance between neighbouring taps.
    """

    def __init__(self, channels: int, kernel_size: tuple[int, int], dilation: int = 1) -> None:
        padding = (dilation * (kernel_size[0] - 1) // 2, dilation * (kernel_size[1] - 1) // 2)
        options: dict[str, Any] = dict(padding=padding, dilation=dilation, groups=channels)
        super().__init__(channels, channels, kernel_size, **options)

    @leaf_module
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return super().forward(x) if _takes_torch(self, x) else _convolve(self, x, gelu=False)


def activated(activation: nn.Module, convolution: nn.Module, x: Tensor) -> Tensor:
    """Return ``activation(convolution(x))``.

    GELU behind a depth-wise convolution is computed with it, and keeps nothing for the backward
    pass, unless one of the modules has to be called.
    """
    is_gelu = is_plain(activation, nn.GELU) and getattr(activation, 'approximate', '') == 'none'
    if not is_gelu or not is_plain(convolution, DepthWiseConv2d):
        return activation(convolution(x))
    if is_captured(x) or not _is_supported(convolution, x):
        return activation(convolution(x))
    if _is_faster_in_torch(convolution, x):
        layer: Any = convolution
        return onednn.depthwise_conv2d(x, layer.weight, layer.bias, layer.padding, 'gelu')
    return _convolve(convolution, x, gelu=True)


def in_fast_layout(image: Tensor) -> Tensor:
    """Return an image in the layout in which a CPU computes depth-wise and 1x1 convolutions
    fastest, channels-last. What a network makes of it keeps the layout.
    """
    if is_captured(image) or image.dim() != 4 or image.device.type != 'cpu':
        return image
    return image.contiguous(memory_format=torch.channels_last)


def in_inference_layout(image: Tensor) -> Tensor:
    """Return an image in the layout of :func:`in_fast_layout` where no gradients are recorded."""
    return image if torch.is_grad_enabled() else in_fast_layout(image)


def _takes_torch(convolution: nn.Module, x: Tensor) -> bool:
    """Return whether torch's convolution computes a layer, as on other devices than the CPU."""
    if is_captured(x) or not _is_supported(convolution, x):
        return True
    return _is_faster_in_torch(convolution, x)


def _is_supported(convolution: nn.Module, x: Tensor) -> bool:
    is_supported = x.dim() == 4 and convolution.padding_mode == 'zeros'
    return is_supported and x.device.type == 'cpu'


def _is_faster_in_torch(convolution: nn.Module, x: Tensor) -> bool:
    """Return whether oneDNN, which torch calls, is faster, a GELU behind it included.

    It is not in training, where its gradients are slow, with a dilation, and in the contiguous
    layout, which it copies to another and back. In bfloat16 it does not return from some kernels.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled('cpu'):
        return False
    is_float = x.dtype == torch.float32 and convolution.weight.dtype == torch.float32
    is_fast_layout = x.is_contiguous(memory_format=torch.channels_last)
    return is_float and is_fast_layout and convolution.dilation == (1, 1)


def _convolve(convolution: Any, x: Tensor, *, gelu: bool) -> Tensor:
    return depthwise_conv2d(
        x,
        convolution.weight,
        convolution.bias,
        padding=convolution.padding,
        dilation=convolution.dilation,
        gelu=gelu,
    )
