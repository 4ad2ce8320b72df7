"""Linear layers and 1x1 convolutions that apply the activation behind them, for inference.

:func:`mmrednet.fuse` puts them in the place of torch's. Names and parameters stay the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from ..ops import onednn
from ..ops.tracing import leaf_module


class FusedLinear(nn.Linear):
    """A linear layer and the activation behind it: ``act(x W^T + b)``.

    Its ``activation`` is a key of :data:`mmrednet.ops.onednn.ACTIVATIONS`.
    """

    activation: str

    @classmethod
    def of(cls, layer: nn.Linear, activation: str) -> Self:
        """Return the fused layer with the parameters of a layer."""
        fused = cls(layer.in_features, layer.out_features, device='meta')
        _adopt(fused, layer, activation)
        return fused

    @leaf_module
    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return onednn.linear(x, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        """Return the sizes and the activation."""
        return f'{super().extra_repr()}, activation={self.activation}'


class FusedConv2d(nn.Conv2d):
    """A 1x1 convolution and the activation behind it: ``act(W x_i + b)`` at every output i.

    Its ``activation`` is a key of :data:`mmrednet.ops.onednn.ACTIVATIONS`.
    """

    activation: str

    @classmethod
    def of(cls, layer: nn.Conv2d, activation: str) -> Self:
        """Return the fused layer with the parameters of a layer."""
        channels = (layer.in_channels, layer.out_channels)
        fused = cls(*channels, 1, layer.stride, device='meta')  # type: ignore[arg-type]
        _adopt(fused, layer, activation)
        return fused

    @leaf_module
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        layer: Any = (self.weight, self.bias, self.activation, self.stride)
        return onednn.pointwise_conv2d(x, *layer)

    def extra_repr(self) -> str:
        """Return the sizes and the activation."""
        return f'{super().extra_repr()}, activation={self.activation}'


def _adopt(fused: Any, layer: Any, activation: str) -> None:
    """Give a fused layer the parameters of a layer and its activation."""
    fused.weight, fused.bias = layer.weight, layer.bias
    fused.activation = activation
    fused.train(layer.training)
