"""The ResNets of Stand-Alone Self-Attention in Vision Models (Ramachandran et al., NeurIPS
2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..layers.depth_wise import in_inference_layout
from ..layers.sasa import AttentionStem
from ..layers.spatial import SpatialConfig
from ..registry import MODELS
from .resnet import SpatialResNet


@MODELS.register_module()
class SASAResNet(SpatialResNet):
    """ResNet with attention in place of its 3x3 convolutions.

    Other arguments: see :class:`SpatialResNet`.

    Args:
        depth: Number of layers, 26, 38 or 50 in the paper.
        spatial_cfg: Config of the attention, or a list with one config per stage. ``[None, None,
            attention, attention]`` convolves in the first two stages, as in table 3 of the paper.
        stem: Kind of stem: 'conv' (the best networks of the paper) or 'attention' (full attention).

    Raises:
        ValueError: There is no such stem.
    """

    def __init__(
        self,
        depth: int = 50,
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = dict(type='StandAloneSelfAttention'),
        *,
        stem: str = 'conv',
        **kwargs: Any,
    ) -> None:
        if stem not in ('conv', 'attention'):
            raise ValueError(f"stem must be 'conv' or 'attention', got {stem!r}.")
        # before the base class, which builds the stem
        self.stem_type = stem
        super().__init__(depth, spatial_cfg, **kwargs)

    def make_stem(self, channels: int) -> None:
        """Build the stem: ResNet's, or attention over 4x4 windows."""
        if self.stem_type == 'conv':
            super().make_stem(channels)
        else:
            self.stem = AttentionStem(self.in_channels, channels, norm_cfg=self.norm_cfg)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem."""
        return super().stem_modules() if self.stem_type == 'conv' else (self.stem,)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, base_channels, H / 4, W / 4)."""
        if self.stem_type == 'conv':
            return super().forward_stem(x)
        # this stem returns contiguous maps, whatever the layout of the image
        return in_inference_layout(self.stem(x))
