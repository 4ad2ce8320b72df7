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

PUBLISHED = dict(type='MultiScaleConvAttention')
# kernels of the published operator, as mmseg writes them
PUBLISHED_SIZES = (5, (1, 7), (1, 11), (1, 21))


class TwoConvStem(Sequential):
    """Two convolutions of stride 2, each with a norm, and an activation between them."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__()
        half = out_channels // 2
        # the name in the published checkpoints
        self.proj = Sequential(
            nn.Conv2d(in_channels, half, size, 2, size // 2),
            build_norm_layer(norm_cfg, half)[1],
            build_activation_layer(act_cfg),
            nn.Conv2d(half, out_channels, size, 2, size // 2),
            build_norm_layer(norm_cfg, out_channels)[1],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / 4), ceil(W / 4))."""
        return self.proj(x)


@MODELS.register_module()
class MSCAN(VAN):
    """VAN with another stem, multi-scale convolutional attention, and layer norms with 1e-5.

    Other arguments: see :class:`VAN`. Those of mmseg's MSCAN give the network of mmseg's configs.

    Args:
        arch: Size: 'tiny', 'small', 'base' or 'large' (table 2 of the paper), or a dict as in VAN.
        spatial_cfg: Config of the operator, or a list with one config per stage.
        attention_kernel_sizes: Size of the first kernel of the published operator, and the (1, k)
            of each pair of strips, as in mmseg. Default: None, those of ``spatial_cfg``.
        attention_kernel_paddings: Paddings of ``attention_kernel_sizes``, as in mmseg: half the
            sizes, which keep the size of a feature map.
        patch_sizes: Size of the patches of each stage, odd numbers. The first is the size of both
            convolutions of the stem.

    Raises:
        ValueError: As for VAN. Or ``attention_kernel_sizes`` are no such sizes, are given together
            with ``spatial_cfg``, or have other paddings.
    """

    # the two papers chose the same widths and depths
    archs: ClassVar[dict[str, Architecture]] = {
        'tiny': VAN.archs['b0'],
        'small': VAN.archs['b1'],
        'base': VAN.archs['b2'],
        'large': VAN.archs['b3'],
    }
    default_patch_sizes: ClassVar[tuple[int, ...]] = (3, 3, 3, 3)

    def __init__(
        self,
        arch: str | Architecture = 'tiny',
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = PUBLISHED,
        *,
        attention_kernel_sizes: Sequence[Any] | None = None,
        attention_kernel_paddings: Sequence[Any] | None = None,
        stage_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        if attention_kernel_sizes is not None:
            if spatial_cfg != PUBLISHED:
                raise ValueError(
                    'attention_kernel_sizes and spatial_cfg must not both be given, got '
                    f'{attention_kernel_sizes=}, {spatial_cfg=}.'
                )
            spatial_cfg = attention_of(attention_kernel_sizes)
        _check_paddings(attention_kernel_sizes, attention_kernel_paddings)
        super().__init__(arch, spatial_cfg, stage_norm_eps=stage_norm_eps, **kwargs)

    def make_stem(self, channels: int) -> nn.Module:
        """Return the module that maps the image to the first stage's channels at stride 4."""
        size = self.patch_sizes[0]
        return TwoConvStem(self.in_channels, channels, size, self.norm_cfg, self.act_cfg)


def attention_of(sizes: Sequence[Any]) -> dict[str, Any]:
    """Return the config of the published operator with kernels of mmseg's ``sizes``, such as
    ``[5, [1, 7], [1, 11], [1, 21]]``.

    Raises:
        ValueError: They are no size and strips of height 1.
    """
    first, *strips = sizes
    if not isinstance(first, int) or not all(len(s) == 2 and s[0] == 1 for s in strips):
        raise ValueError(
            'attention_kernel_sizes must be a size and the (1, k) of each pair of strips, such as '
            f'[5, [1, 7], [1, 11], [1, 21]], got {sizes}.'
        )
    return dict(PUBLISHED, kernel_size=first, strip_sizes=[strip[1] for strip in strips])


def _check_paddings(sizes: Sequence[Any] | None, paddings: Sequence[Any] | None) -> None:
    if paddings is None:
        return
    first, *strips = PUBLISHED_SIZES if sizes is None else sizes
    expected = [first // 2, *([0, strip[1] // 2] for strip in strips)]
    if [*paddings[:1], *(list(padding) for padding in paddings[1:])] != expected:
        raise ValueError(
            'attention_kernel_paddings must be half of attention_kernel_sizes, '
            f'{expected}, got {paddings}.'
        )
