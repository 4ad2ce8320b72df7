"""Gates over channels and over pixels: SE (Hu et al., CVPR 2018) and CBAM (Woo et al., ECCV
2018)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from ..checkpoints.formats import rename
from .attention import Gate
from .gates_formats import CBAM_NAMES, SE_NAMES
from .safe_module import SafeModule
from .spatial import cell_average, spatial_operator


class ChannelMLP(SafeModule):
    """Two 1x1 convolutions with an activation between them.

    Args:
        channels: Number of channels of the input and of the output.
        hidden: Number of channels between the convolutions.
        bias: True if both convolutions have a bias.
        act_cfg: Config of the activation.
        init_cfg: Initialisation, see mmengine's BaseModule.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        bias: bool,
        act_cfg: dict,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


def _reduced(channels: int, reduction_ratio: int, divisor: int) -> int:
    """Return channels / reduction_ratio, rounded to a multiple of the divisor.

    As in timm, rounding takes away no more than 10 %.
    """
    if reduction_ratio < 1 or divisor < 1:
        raise ValueError(
            f'reduction_ratio and divisor must be at least 1, got {reduction_ratio=}, {divisor=}.'
        )
    target = channels / reduction_ratio
    rounded = max(divisor, int(target + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * target else rounded


@spatial_operator
class SE(ChannelMLP):
    r"""Squeeze and excitation: multiply each channel by a factor made of the channels' means.

    .. math:: y = x \odot s, \qquad s = \sigma(W_2 \, \mathrm{ReLU}(W_1 \, \bar x))

    (equations 2 and 3 of the paper). The state-dict keys are ``fc1`` and ``fc2``, 1x1 convolutions
    as in timm. Files with ``fc.0`` and ``fc.2`` (linear layers) or ``conv1.conv`` and
    ``conv2.conv`` (mmpretrain) load too.

    Args:
        channels: Number of channels C of the input and of the output.
        reduction_ratio: Ratio r between C and the hidden channels.
        divisor: Divisor of the number of hidden channels (8 in timm's layer).
        bias: True if both layers have a bias.
        act_cfg: Config of the activation between the layers.
        stride: Stride s: the result is averaged over s x s.
        dilation: Without effect, since every factor depends on all pixels.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: ``reduction_ratio`` or ``divisor`` is not positive.
    """

    _abbr_ = 'se_layer'
    example: ClassVar[dict] = dict(reduction_ratio=4)

    def __init__(
        self,
        channels: int,
        *,
        reduction_ratio: int = 16,
        divisor: int = 1,
        bias: bool = True,
        act_cfg: dict = dict(type='ReLU'),
        stride: int = 1,
        dilation: int = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            channels, _reduced(channels, reduction_ratio, divisor), bias, act_cfg, init_cfg
        )
        self.pool = cell_average(stride)
        self.register_load_state_dict_pre_hook(_rename_gate_keys)

    def gate(self, x: Tensor) -> Tensor:
        """Return the factors (B, C, 1, 1)."""
        return super().forward(x.mean((2, 3), keepdim=True)).sigmoid()

    def attention(self, x: Tensor) -> Gate:
        """Return the factors (B, C, 1, 1) that multiply (B, C, H, W), before any pool."""
        return Gate(self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(x * self.gate(x))


@spatial_operator
class CBAM(SafeModule):
    r"""Multiply each channel and then each pixel by a factor made of means and maxima.

    .. math:: y = x' \odot \sigma(\mathrm{norm}(\mathrm{conv}_{k \times k}[\max_c x', \bar x'_c])),
    \qquad
              x' = x \odot \sigma(\mathrm{MLP}(\bar x) + \mathrm{MLP}(\max x))

    (equations 2 and 3 of the paper). The official files, with linear layers
    ``ChannelGate.mlp.{1,3}`` and ``SpatialGate.spatial``, and timm's, with ``channel.fc{1,2}`` and
    ``spatial.conv``, load.

    Args:
        channels: Number of channels C of the input and of the output.
        reduction_ratio: Ratio r between C and the hidden channels.
        divisor: Divisor of the number of hidden channels.
        kernel_size: Kernel size k of the gate over pixels, an odd number.
        convention: Form of the gate over pixels: 'official' (a convolution of [max, mean] and a
            batch norm) or 'tutorial' (a convolution of [mean, max] with a bias). timm's layer is
            'official' with ``spatial_order='mean_max'``.
        spatial_order: Order 'max_mean' or 'mean_max', if it differs from that of the convention.
        bias: True if the layers over channels have a bias.
        act_cfg: Config of the activation between the layers over channels.
        stride: Stride s: the result is averaged over s x s.
        dilation: Distance between neighbouring taps of the gate over pixels.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: An argument has no such value.
    """

    _abbr_ = 'cbam'
    example: ClassVar[dict] = dict(reduction_ratio=4, kernel_size=3)

    def __init__(
        self,
        channels: int,
        *,
        reduction_ratio: int = 16,
        divisor: int = 1,
        kernel_size: int = 7,
        convention: str = 'official',
        spatial_order: str | None = None,
        bias: bool = True,
        act_cfg: dict = dict(type='ReLU'),
        stride: int = 1,
        dilation: int = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        orders = {'official': 'max_mean', 'tutorial': 'mean_max'}
        if convention not in orders:
            raise ValueError(f'convention must be one of {list(orders)}, got {convention!r}.')
        if spatial_order not in (None, *orders.values()):
            raise ValueError(
                f'spatial_order must be one of {list(orders.values())}, got {spatial_order!r}.'
            )
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size=}.')
        self.max_first = (spatial_order or orders[convention]) == 'max_mean'
        self.channel = ChannelMLP(
            channels, _reduced(channels, reduction_ratio, divisor), bias, act_cfg
        )
        has_norm = convention == 'official'
        padding = dilation * (kernel_size // 2)
        self.spatial = nn.Sequential()
        self.spatial.add_module(
            'conv',
            nn.Conv2d(2, 1, kernel_size, padding=padding, dilation=dilation, bias=not has_norm),
        )
        if has_norm:
            # the momentum of the official code
            self.spatial.add_module('bn', nn.BatchNorm2d(1, momentum=0.01))
        self.pool = cell_average(stride)
        self.register_load_state_dict_pre_hook(_rename_gate_keys)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Return the factors (B, C, 1, 1)."""
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (self.channel(mean) + self.channel(largest)).sigmoid()

    def spatial_gate(self, x: Tensor) -> Tensor:
        """Return the factors (B, 1, H, W) for the output of the gate over channels."""
        largest, mean = x.amax(1, keepdim=True), x.mean(1, keepdim=True)
        statistics = [largest, mean] if self.max_first else [mean, largest]
        return self.spatial(torch.cat(statistics, 1)).sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the product (B, C, H, W) of both factors."""
        channel = self.channel_gate(x)
        return channel * self.spatial_gate(x * channel)

    def attention(self, x: Tensor) -> Gate:
        """Return the factors (B, C, H, W) that multiply (B, C, H, W), before any pool."""
        return Gate(self.gate(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(x * self.gate(x))


def _rename_gate_keys(
    layer: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Give the names of other projects ours; a linear layer's matrix is the kernel of a 1x1
    convolution.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = rename(key[len(prefix) :], SE_NAMES + CBAM_NAMES)
        value = state_dict.pop(key)
        if isinstance(value, Tensor) and value.dim() == 2:
            value = value[:, :, None, None]
        state_dict[prefix + name] = value
