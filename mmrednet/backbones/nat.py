"""Neighborhood Attention Transformer (Hassani et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial, per_stage
from ..registry import MODELS
from .base import CheckpointedBlock, PyramidBackbone, in_layout_of
from .recomputation import keeping_input

Dilations = Sequence[Sequence[int]]


class Variant(NamedTuple):
    """A published size.

    Args:
        width: Number of channels of the first level; each level has twice as many as the last.
        depths: Number of blocks of each level.
        mlp_ratio: Ratio between the hidden channels of the feed-forward networks and the width.
        layer_scale: Initial value of the scales of the branches, or None without scales.
        drop_path_rate: Probability that an image skips a branch of the last block, in the training
            on ImageNet-1K.
    """

    width: int
    depths: tuple[int, ...]
    mlp_ratio: float
    layer_scale: float | None
    drop_path_rate: float


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position by the mean and the variance of its channels."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvTokenizer(SafeModule):
    """Two 3x3 convolutions of stride 2 and a norm: the image to the first level at stride 4.

    Args:
        in_channels: Number of channels of the image.
        channels: Number of output channels.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, 2, 1),
            nn.Conv2d(channels // 2, channels, 3, 2, 1),
        )
        self.norm = PixelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, ceil(H / 4), ceil(W / 4))."""
        return self.norm(self.proj(x))


class ConvDownsampler(SafeModule):
    """A 3x3 convolution of stride 2 to twice as many channels, and a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
        self.norm = PixelNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 2 * C, ceil(H / 2), ceil(W / 2))."""
        return self.norm(self.reduction(x))


class FeedForward(SafeModule):
    """Linear layer to ``hidden`` channels, GELU and a linear layer back, at every position."""

    # layer and activation of which mmrednet.fuse may make one
    consecutive = ('fc1', 'act')

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        hidden = self.fc1(x.movedim(1, -1))
        return keeping_input(self.act, self.fc2, hidden).movedim(-1, 1)


class NATBlock(CheckpointedBlock):
    """Attention, then a feed-forward network, each in a residual branch that starts with a norm.

    Args:
        channels: Number of channels of the input and of the output.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        dilation: Dilation of the operator.
        mlp_ratio: Ratio between the hidden channels of the feed-forward network and ``channels``.
        layer_scale: Initial value of the scales of the branches, or None without scales.
        drop_path_rate: Probability that an image skips a branch.
        with_cp: True if the backward pass computes the block again, to save memory.
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_cfg: SpatialConfig,
        dilation: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path_rate: float,
        with_cp: bool,
    ) -> None:
        super().__init__(with_cp)
        self.gamma1: nn.Parameter | None = None
        self.gamma2: nn.Parameter | None = None
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((channels,), layer_scale))
            self.gamma2 = nn.Parameter(torch.full((channels,), layer_scale))
        self.norm1 = PixelNorm(channels)
        self.attn = build_spatial(spatial_cfg, channels, dilation=dilation)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.norm2 = PixelNorm(channels)
        self.mlp = FeedForward(channels, int(channels * mlp_ratio))

    def compute(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        x = x + self.drop_path(scaled(self.attn(self.norm1(x)), self.gamma1))
        return x + self.drop_path(scaled(self.mlp(self.norm2(x)), self.gamma2))


def scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    """Return (B, C, H, W) times a factor (C,) per channel, unless that is None."""
    return x if gamma is None else x * gamma[:, None, None]


class Level(SafeModule):
    """Blocks at one resolution, and the module that leads to the next level.

    Args:
        blocks: Blocks, one after another.
        downsample: Module that follows them, or None in the last level.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, which is an output of the backbone before its norm.

        ``downsample`` is applied by the backbone.
        """
        for block in self.blocks:
            x = block(x)
        return x


@MODELS.register_module()
class NAT(PyramidBackbone):
    """Neighborhood Attention Transformer. Other arguments: see :class:`PyramidBackbone`.

    The outputs are normalised, as in the authors' detectors and segmenters.

    Args:
        arch: Size: 'mini', 'tiny', 'small' or 'base', or a :class:`Variant`.
        spatial_cfg: Config of the operator, or a list with one config per level. The published one
            is neighbourhood attention of 7x7 with heads of 32 channels.
        dilations: Dilation of each block, one list per level. Default: 1 everywhere.
        in_channels: Number of channels of the image.
        drop_path_rate: Probability that an image skips a branch of the last block. It grows
            linearly from 0 at the first block. Default: that of the size.

    Raises:
        ValueError: ``arch`` has no such value, or ``dilations`` are not one per block.
    """

    archs: ClassVar[dict[str, Variant]] = {
        'mini': Variant(64, (3, 4, 6, 5), 3, None, 0.2),
        'tiny': Variant(64, (3, 4, 18, 5), 3, None, 0.2),
        'small': Variant(96, (3, 4, 18, 5), 2, 1e-5, 0.3),
        'base': Variant(128, (3, 4, 18, 5), 2, 1e-5, 0.5),
    }
    # what maps the image to the first level, and each level to the next
    embedding: ClassVar[type[nn.Module]] = ConvTokenizer
    downsampling: ClassVar[type[nn.Module]] = ConvDownsampler
    # name of the levels in the state dict
    levels_name: ClassVar[str] = 'levels'

    def __init__(
        self,
        arch: str | Variant = 'mini',
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = dict(type='NeighborhoodAttention'),
        *,
        dilations: Dilations | None = None,
        in_channels: int = 3,
        drop_path_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.arch = self._variant(arch)
        depths = self.arch.depths
        self.check_stages(len(depths))
        self.patch_embed = self.embedding(in_channels, self.arch.width)
        self.dilations = self._checked(dilations)
        rate = self.arch.drop_path_rate if drop_path_rate is None else drop_path_rate
        # on the CPU even if the network is built on the meta device
        drop_rates = torch.linspace(0, rate, sum(depths), device='cpu').tolist()
        operators = per_stage(spatial_cfg, len(depths))
        levels = nn.ModuleList()
        for index, depth in enumerate(depths):
            level_rates, drop_rates = drop_rates[:depth], drop_rates[depth:]
            levels.append(self._level(index, operators[index], level_rates))
        self.add_module(self.levels_name, levels)
        for index in self.out_indices:
            self.add_module(f'norm{index}', PixelNorm(self.width(index)))
        self._freeze()

    def _variant(self, arch: str | Variant) -> Variant:
        if isinstance(arch, str):
            if arch not in self.archs:
                raise ValueError(
                    f'arch must be one of {list(self.archs)} or a Variant, got {arch!r}.'
                )
            return self.archs[arch]
        return Variant(*arch)

    def _checked(self, dilations: Dilations | None) -> Dilations:
        depths = self.arch.depths
        if dilations is None:
            return [[1] * depth for depth in depths]
        if tuple(len(level) for level in dilations) != tuple(depths):
            raise ValueError(
                f'dilations must have one entry per block, {depths} in the levels, got {dilations}.'
            )
        return dilations

    def width(self, index: int) -> int:
        """Return the number of channels of a level."""
        return self.arch.width * 2**index

    def _level(self, index: int, operator: SpatialConfig, rates: Sequence[float]) -> Level:
        blocks = []
        for dilation, rate in zip(self.dilations[index], rates, strict=True):
            block = NATBlock(
                self.width(index),
                spatial_cfg=operator,
                dilation=dilation,
                mlp_ratio=self.arch.mlp_ratio,
                layer_scale=self.arch.layer_scale,
                drop_path_rate=rate,
                with_cp=self.with_cp,
            )
            blocks.append(block)
        is_last = index + 1 == len(self.arch.depths)
        return Level(blocks, None if is_last else self.downsampling(self.width(index)))

    def all_levels(self) -> nn.ModuleList:
        """Return the levels."""
        return getattr(self, self.levels_name)

    def init_weights(self) -> None:
        """Draw linear layers from a truncated normal distribution, as the authors do, unless
        ``init_cfg`` says otherwise.
        """
        if self.init_cfg is not None:
            super().init_weights()
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the embedding of the image."""
        return (self.patch_embed,)

    def frozen_modules(self) -> list[nn.Module]:
        """Return the stem, the levels that are frozen, and the norms of their outputs."""
        modules = list(self.stem_modules())
        for index in range(self.frozen_stages):
            modules.append(self.all_levels()[index])
            if index in self.out_indices:
                modules.append(getattr(self, f'norm{index}'))
        return modules

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, width, ceil(H / 4), ceil(W / 4))."""
        # linear layers read the channels of a position, which are neighbours in this layout
        return self.patch_embed(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map the image (B, 3, H, W) to the normalised feature maps of the levels in
        ``out_indices``.
        """
        features = self.forward_stem(x)
        outputs = []
        for index, level in enumerate(self.all_levels()):
            features = level(features)
            if index in self.out_indices:
                outputs.append(getattr(self, f'norm{index}')(features))
            downsample: Any = level.downsample
            if downsample is not None:
                features = downsample(features)
        return in_layout_of(x, outputs)
