"""Dilated Neighborhood Attention Transformers, DiNAT and DiNAT_s (Hassani and Shi, 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers.neighborhood import pad_end
from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig
from ..registry import MODELS
from .nat import NAT, Dilations, PixelNorm, Variant


def _repeated(pattern: Sequence[int], depth: int) -> list[int]:
    """Return the first ``depth`` numbers of a pattern that is repeated."""
    return [pattern[index % len(pattern)] for index in range(depth)]


@MODELS.register_module()
class DiNAT(NAT):
    """Dilated Neighborhood Attention Transformer. Other arguments: see :class:`NAT`.

    Args:
        arch: Size: 'mini', 'tiny', 'small', 'base' or 'large', or a :class:`Variant`.
        spatial_cfg: Config of the operator, or a list with one config per level.
        dilations: Dilation of each block, one list per level; or the name of a published choice:
            'imagenet_224', 'imagenet_384', 'coco', 'ade20k' (512x512) or 'ade20k_640'.
        kwargs: Other arguments of :class:`NAT`.

    Raises:
        ValueError: ``arch`` or ``dilations`` have no such value, or are not one per block.
    """

    archs: ClassVar[dict[str, Variant]] = {
        **NAT.archs,
        # without scales of the branches, unlike NAT-Small
        'small': Variant(96, (3, 4, 18, 5), 2, None, 0.3),
        'large': Variant(192, (3, 4, 18, 5), 2, None, 0.35),
    }
    # the pattern of each level, repeated over its blocks
    published_dilations: ClassVar[dict[str, Dilations]] = {
        'imagenet_224': ((1, 8, 1), (1, 4), (1, 2), (1,)),
        'imagenet_384': ((1, 13, 1), (1, 6), (1, 3), (1,)),
        'coco': ((1, 28, 1), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)),
        'ade20k': ((1, 16, 1), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)),
        'ade20k_640': (
            (1, 20, 1),
            (1, 5, 1, 10),
            (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
            (1, 2),
        ),
    }

    def __init__(
        self,
        arch: str | Variant = 'mini',
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = dict(type='NeighborhoodAttention'),
        *,
        dilations: str | Dilations = 'imagenet_224',
        **kwargs: Any,
    ) -> None:
        # `_checked` takes names too
        choice: Any = dilations
        super().__init__(arch, spatial_cfg, dilations=choice, **kwargs)

    def _checked(self, dilations: str | Dilations | None) -> Dilations:
        if not isinstance(dilations, str):
            return super()._checked(dilations)
        if dilations not in self.published_dilations:
            raise ValueError(
                f'dilations must be one of {list(self.published_dilations)} or one list per '
                f'level, got {dilations!r}.'
            )
        patterns = self.published_dilations[dilations]
        return [
            _repeated(pattern, depth)
            for pattern, depth in zip(patterns, self.arch.depths, strict=True)
        ]


class PatchEmbed(SafeModule):
    """One 4x4 convolution of stride 4 and a norm: the image to the first level, as in Swin.

    Args:
        in_channels: Number of channels of the image.
        channels: Number of output channels.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 4, 4)
        self.norm = PixelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, ceil(H / 4), ceil(W / 4))."""
        return self.norm(self.proj(padded(x, 4)))


class PatchMerging(SafeModule):
    """Join the channels of each 2x2 positions, and map them to twice as many channels as one had.

    Args:
        channels: Number of channels of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 2 * C, ceil(H / 2), ceil(W / 2))."""
        x = padded(x, 2)
        # the published weights have the positions column by column
        parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        joined = torch.cat(parts, 1).movedim(1, -1)
        return self.reduction(self.norm(joined)).movedim(-1, 1)


def padded(x: Tensor, step: int) -> Tensor:
    """Return (B, C, H, W) with zeros at its end, so that ``step`` divides H and W."""
    return pad_end(x, -x.shape[-2] % step, -x.shape[-1] % step)


def _with_second(dilations: Dilations, second: Sequence[int]) -> Dilations:
    """Return the dilations of four levels with others in the second one."""
    first, _, *later = dilations
    return (first, second, *later)


@MODELS.register_module()
class DiNATs(DiNAT):
    """DiNAT_s: dilated neighbourhood attention in the layout of Swin. Other arguments: see
    :class:`NAT`.

    The image is cut into patches of 4x4, and a level begins with patches of 2x2 of the last one.

    Args:
        arch: Size: 'tiny', 'small', 'base' or 'large', or a :class:`Variant`.
        kwargs: Other arguments of :class:`DiNAT`.
    """

    archs: ClassVar[dict[str, Variant]] = {
        'tiny': Variant(96, (2, 2, 6, 2), 4, None, 0.2),
        'small': Variant(96, (2, 2, 18, 2), 4, None, 0.3),
        'base': Variant(128, (2, 2, 18, 2), 4, None, 0.5),
        'large': Variant(192, (2, 2, 18, 2), 4, None, 0.35),
    }
    embedding: ClassVar[type[nn.Module]] = PatchEmbed
    downsampling: ClassVar[type[nn.Module]] = PatchMerging
    levels_name: ClassVar[str] = 'layers'
    published_dilations: ClassVar[dict[str, Dilations]] = {
        **DiNAT.published_dilations,
        # the second level has two blocks, of which the last one has the largest dilation
        'coco': _with_second(DiNAT.published_dilations['coco'], (1, 14)),
        'ade20k': _with_second(DiNAT.published_dilations['ade20k'], (1, 8)),
        'ade20k_640': _with_second(DiNAT.published_dilations['ade20k_640'], (1, 10)),
    }

    def __init__(self, arch: str | Variant = 'tiny', **kwargs: Any) -> None:
        super().__init__(arch, **kwargs)
