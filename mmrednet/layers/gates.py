"""Gates over channels and over pixels: SE (Hu et al., CVPR 2018) and CBAM (Woo et al., ECCV
2018)."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..checkpoints.formats import rename
from .gates_formats import CBAM_NAMES, SE_NAMES
from .spatial import cell_average, spatial_operator


class ChannelMLP(BaseModule):
    """Two 1x1 convolutions with an activation between them.

    Args:
        channels: C, of the input and of the output.
        hidden: channels between.
        bias: whether both have biases.
        act_cfg: the activation.
        init_cfg: see mmengine's BaseModule.
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
    """Return channels / reduction_ratio, rounded to a multiple of the divisor but to no less than
    90 % of it.
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
    r"""Squeeze and excitation: one factor for each channel, made of the means of all channels.

    .. math:: y = x \odot s, \qquad s = \sigma(W_2 \, \mathrm{ReLU}(W_1 \, \bar x))

    (equations 2 and 3 of the paper). Keys: ``fc1`` and ``fc2``, 1x1 convolutions as in timm; files
    with ``fc.0`` and ``fc.2`` (linear layers) or ``conv1.conv`` and ``conv2.conv`` (mmpretrain)
    load too.

    Args:
        channels: C, of the input and of the output.
        reduction_ratio: r; C / r hidden channels.
        divisor: the hidden channels are rounded to a multiple of it (8 in timm's layer).
        bias: whether both layers have biases.
        act_cfg: the activation between them.
        stride: with a stride the result is averaged over s x s.
        dilation: has no effect: every pixel is seen anyway.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: ``reduction_ratio`` or ``divisor`` is not positive.
    """

    _abbr_ = 'se_layer'

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

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(x * self.gate(x))


@spatial_operator
class CBAM(BaseModule):
    r"""A factor for each channel, then one for each pixel, made of means and of maxima.

    .. math:: y = x' \odot \sigma(\mathrm{norm}(\mathrm{conv}_{k \times k}[\max_c x', \bar x'_c])),
    \qquad
              x' = x \odot \sigma(\mathrm{MLP}(\bar x) + \mathrm{MLP}(\max x))

    (equations 2 and 3 of the paper). The official files, with linear layers
    ``ChannelGate.mlp.{1,3}`` and ``SpatialGate.spatial``, and timm's, with ``channel.fc{1,2}`` and
    ``spatial.conv``, load.

    Args:
        channels: C, of the input and of the output.
        reduction_ratio: r; C / r hidden channels.
        divisor: the hidden channels are rounded to a multiple of it.
        kernel_size: odd k of the gate over pixels.
        convention: 'official' (batch norm behind the convolution, which sees [max, mean]) or
            'tutorial' (a bias in place of the norm, [mean, max]); timm's layer is 'official' with
            ``spatial_order='mean_max'``.
        spatial_order: 'max_mean' or 'mean_max', where it differs from that of the convention.
        bias: whether the layers over channels have biases.
        act_cfg: the activation between them.
        stride: with a stride the result is averaged over s x s.
        dilation: distance of the taps of the gate over pixels.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: an argument has no such value.
    """

    _abbr_ = 'cbam'

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
        official = convention == 'official'
        self.spatial = nn.Sequential()
        self.spatial.add_module(
            'conv',
            nn.Conv2d(
                2,
                1,
                kernel_size,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                bias=not official,
            ),
        )
        if official:
            self.spatial.add_module('bn', nn.BatchNorm2d(1, momentum=0.01))
        self.pool = cell_average(stride)
        self.register_load_state_dict_pre_hook(_rename_gate_keys)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Return the factors (B, C, 1, 1)."""
        return (
            self.channel(x.mean((2, 3), keepdim=True)) + self.channel(x.amax((2, 3), keepdim=True))
        ).sigmoid()

    def spatial_gate(self, x: Tensor) -> Tensor:
        """Return the factors (B, 1, H, W) for what the gate over channels has let through."""
        largest, mean = x.amax(1, keepdim=True), x.mean(1, keepdim=True)
        return self.spatial(
            torch.cat([largest, mean] if self.max_first else [mean, largest], 1)
        ).sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the product (B, C, H, W) of both factors."""
        channel = self.channel_gate(x)
        return channel * self.spatial_gate(x * channel)

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
