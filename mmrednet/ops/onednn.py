"""Linear layers and convolutions with an activation behind them, each as one call of oneDNN.

Torch's own functions compute the activation in a pass over memory of its own. They also give
matrices of linear layers to a BLAS, and 1x1 convolutions to kernels that are slower on maps of many
positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from .tracing import is_captured
from .transforms import is_transformed

# definitions, and the names by which oneDNN knows them: its GELU is the exact one if the
# algorithm is 'none'
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'none': lambda x: x,
    'relu': F.relu,
    'gelu': F.gelu,
}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = 'none') -> Tensor:
    """Return ``act(x W^T + b)``: ``F.linear``, and an activation behind it.

    Args:
        x: Tensor (..., C).
        weight: Matrix W (D, C).
        bias: Summand b (D,), or None.
        activation: Key of :data:`ACTIVATIONS`. Default: none.

    Returns:
        Tensor (..., D).
    """
    if not is_captured(x) and _fits(x, weight) and can_compute(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], 'none')
    return ACTIVATIONS[activation](F.linear(x, weight, bias))


def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = 'none',
    stride: Sequence[int] = (1, 1),
) -> Tensor:
    """Return ``act(F.conv2d(x, weight, bias, stride))`` for a kernel of 1x1.

    On a channels-last map it is a linear layer of the positions.

    Args:
        x: Feature map (B, C, H, W).
        weight: Kernel (D, C, 1, 1).
        bias: Summand (D,), or None.
        activation: Key of :data:`ACTIVATIONS`. Default: none.
        stride: Distance between neighbouring outputs, vertical and horizontal. Default: 1.

    Returns:
        (B, D, Ho, Wo), in the layout of ``x``.
    """
    # the strides of a view would become conditions of a program
    is_fast = not is_captured(x) and _has_channels_last(x, weight.shape[1])
    if is_fast and can_compute(x, weight, bias):
        positions = x[..., :: stride[0], :: stride[1]].movedim(1, -1)
        # a part of the channels or of the positions is copied, which a convolution would do too
        pixels, matrix = positions.contiguous(), weight.flatten(1)
        return linear(pixels, matrix, bias, activation).movedim(-1, 1)
    return ACTIVATIONS[activation](F.conv2d(x, weight, bias, stride))


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    activation: str = 'none',
) -> Tensor:
    """Return ``act(F.conv2d(x, weight, bias, padding=padding, groups=C))``.

    Args:
        x: Feature map (B, C, H, W), channels-last.
        weight: Kernels (C, 1, Kh, Kw).
        bias: Summand (C,) of each channel, or None.
        padding: Zeros around the map, vertical and horizontal.
        activation: Key of :data:`ACTIVATIONS`. Default: none.

    Returns:
        (B, C, Ho, Wo), channels-last.
    """
    groups = len(weight)
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
    if is_channels_last and x.shape[1] == groups and can_compute(x, weight, bias):
        sizes = ([1, 1], [1, 1], groups)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, list(padding), *sizes, activation, [], 'none'
        )
    return ACTIVATIONS[activation](F.conv2d(x, weight, bias, padding=padding, groups=groups))


def can_compute(x: Tensor, *parameters: Tensor | None) -> bool:
    """Return whether oneDNN's functions, which have no gradients, can compute a layer.

    Args:
        x: Input.
        parameters: Weight and bias of the layer, or None.
    """
    if is_captured(x) or torch.is_autocast_enabled('cpu') or not _is_supported(x.dtype):
        return False
    tensors = [x, *(parameter for parameter in parameters if parameter is not None)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    # a tensor of another class may have functions of its own
    are_plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
    are_alike = all(tensor.is_cpu and tensor.dtype == x.dtype for tensor in tensors)
    return are_plain and are_alike and x.numel() > 0 and not is_transformed(tensors)


def _has_channels_last(x: Tensor, channels: int) -> bool:
    """Return whether the channels of a position lie together, and are as many as stated."""
    if x.dim() != 4 or x.shape[1] != channels:
        return False
    strides = x.stride()
    return strides[1] == 1 and strides[3] >= channels


def _fits(x: Tensor, matrix: Tensor) -> bool:
    # oneDNN's errors do not name the sizes
    is_matrix = x.dim() > 1 and x.shape[-1] == matrix.shape[1]
    return is_matrix and x.is_contiguous()


def _is_supported(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch._C._get_mkldnn_enabled():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _has_bfloat16())


@functools.cache
def _has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


if torch.backends.mkldnn.is_available():
    # two per multiply-add, as torch counts
    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _linear_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _convolution_flops(
        x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
    ) -> int:
        return 2 * math.prod(out_shape) * math.prod(weight[1:])
