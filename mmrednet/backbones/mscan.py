"""MSCAN, the encoder of SegNeXt (Guo et al., NeurIPS 2022): VAN's stages with multi-scale
attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.spatial import SpatialConfig
from ..registry import MODELS
from .van import VAN, Architecture


class TwoConvStem(Sequential):
    """Two 3x3 convolutions of stride 2, each with a norm, and an activation between them."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__()
        half = out_channels // 2
        # the name in the published checkpoints
        self.proj = Sequential(
            nn.Conv2d(in_channels, half, 3, 2, 1),
            build_norm_layer(norm_cfg, half)[1],
            build_activation_layer(act_cfg),
            nn.Conv2d(half, out_channels, 3, 2, 1),
            build_norm_layer(norm_cfg, out_channels)[1],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / 4), ceil(W / 4))."""
        return self.proj(x)


@MODELS.register_module()
class MSCAN(VAN):
    """VAN with another stem, multi-scale convolutional attention, and layer norms with 1e-5.

    Other arguments: see :class:`VAN`.

    Args:
        arch: Size: 'tiny', 'small', 'base' or 'large' (table 2 of the paper), or a dict as in VAN.
    """

    # the two papers chose the same widths and depths
    archs: ClassVar[dict[str, Architecture]] = {
        'tiny': VAN.archs['b0'],
        'small': VAN.archs['b1'],
        'base': VAN.archs['b2'],
        'large': VAN.archs['b3'],
    }

    def __init__(
        self,
        arch: str | Architecture = 'tiny',
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = dict(type='MultiScaleConvAttention'),
        *,
        stage_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, spatial_cfg, stage_norm_eps=stage_norm_eps, **kwargs)

    def make_stem(self, channels: int) -> nn.Module:
        """Return the module that maps the image to the first stage's channels at stride 4."""
        return TwoConvStem(self.in_channels, channels, self.norm_cfg, self.act_cfg)
