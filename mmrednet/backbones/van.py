"""Visual Attention Network (Guo et al., CVM 2023): convolutional attention on overlapping
patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import Sequential
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.depth_wise import DepthWiseConv2d, activated, in_fast_layout
from ..layers.recomputed_maps import recomputed_map
from ..layers.safe_module import SafeModule
from ..layers.spatial import SpatialConfig, build_spatial, per_stage
from ..ops.tracing import is_open
from ..registry import MODELS
from .base import CheckpointedBlock, PyramidBackbone

# embed_dims, depths and mlp_ratios, one of each per stage
Architecture = dict[str, Sequence[int]]
STRIDES = (4, 2, 2, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position by the mean and the variance of its channels."""
        pixels = x.movedim(1, -1)
        normalized = F.layer_norm(pixels, self.normalized_shape, self.weight, self.bias, self.eps)
        result = normalized.movedim(-1, 1)
        # AOTInductor cannot compare the strides of a view whose sizes are unknown
        return result.contiguous() if is_open(x.shape) else result


class PatchEmbedding(SafeModule):
    """Overlapping patches: one convolution and a norm.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        size: Height and width of a patch, an odd number.
        stride: Distance between neighbouring patches.
        norm_cfg: Config of the norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: int, stride: int, norm_cfg: dict
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, size, stride, size // 2)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.norm(self.proj(x))


class GatedAttention(SafeModule):
    """1x1 convolution, activation, spatial operator, 1x1 convolution, added to the input.

    (Figure 3d of the paper.)
    """

    def __init__(self, channels: int, spatial_cfg: SpatialConfig, act_cfg: dict) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.activation = build_activation_layer(act_cfg)
        self.spatial_gating_unit = build_spatial(spatial_cfg, channels, bias=True)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        features = recomputed_map(self.proj_1(x), self.activation)
        return x + self.proj_2(self.spatial_gating_unit(features))


class ConvFeedForward(SafeModule):
    """1x1 convolution to ``hidden`` channels, 3x3 depth-wise convolution, activation, and back."""

    def __init__(self, channels: int, hidden: int, act_cfg: dict, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = DepthWiseConv2d(hidden, (3, 3))
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        hidden = activated(self.act, self.dwconv, self.fc1(x))
        return self.drop(self.fc2(self.drop(hidden)))


class VANBlock(CheckpointedBlock):
    """Attention, then a feed-forward network, each in a residual branch.

    A branch starts with a norm. Its output is scaled per channel, dropped at random, and added.

    Args:
        channels: Number of channels of the input and of the output.
        mlp_ratio: Ratio between the hidden channels of the feed-forward network and ``channels``.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        drop_rate: Dropout rate of the feed-forward network.
        drop_path_rate: Probability that an image skips a branch.
        layer_scale: Initial value of the scales.
        norm_cfg: Config of both norms.
        act_cfg: Config of the activations.
        with_cp: True if the backward pass computes the block again, to save memory.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: float,
        spatial_cfg: SpatialConfig,
        drop_rate: float,
        drop_path_rate: float,
        layer_scale: float,
        norm_cfg: dict,
        act_cfg: dict,
        with_cp: bool,
    ) -> None:
        super().__init__(with_cp)
        self.norm1 = build_norm_layer(norm_cfg, channels)[1]
        self.attn = GatedAttention(channels, spatial_cfg, act_cfg)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.norm2 = build_norm_layer(norm_cfg, channels)[1]
        self.mlp = ConvFeedForward(channels, int(channels * mlp_ratio), act_cfg, drop_rate)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), layer_scale))

    def compute(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        x = x + self.scale(self.layer_scale_1, x) * self.attn(recomputed_map(x, self.norm1))
        return x + self.scale(self.layer_scale_2, x) * self.mlp(recomputed_map(x, self.norm2))

    def scale(self, layer_scale: Tensor, x: Tensor) -> Tensor:
        """Return the factors (B, channels, 1, 1) of a branch, zero for images that skip it."""
        # dropping the factors takes less time and memory than dropping the branch
        return self.drop_path(layer_scale.repeat(x.shape[0], 1)[..., None, None])


def _published(embed_dims: Sequence[int], depths: Sequence[int]) -> Architecture:
    return dict(embed_dims=embed_dims, depths=depths, mlp_ratios=(8, 8, 4, 4))


@MODELS.register_module()
class VAN(PyramidBackbone):
    """Visual Attention Network. Other arguments: see :class:`PyramidBackbone`.

    It returns the feature maps of all stages unless ``out_indices`` says otherwise. mmpretrain's
    VAN returns the last one by default.

    Args:
        arch: Size: 'b0' to 'b6' (table 5 of the paper), or a dict with embed_dims, depths and
            mlp_ratios, one of each per stage.
        spatial_cfg: Config of the operator, or a list with one config per stage. The published one
            is large kernel attention.
        embed_dims: Number of channels of each stage, in place of those of ``arch``.
        depths: Number of blocks of each stage, in place of those of ``arch``.
        mlp_ratios: Ratio of each stage between the hidden channels of the feed-forward networks
            and the channels, in place of those of ``arch``.
        patch_sizes: Size of the patches of each stage, odd numbers.
        in_channels: Number of channels of the image.
        drop_rate: Dropout rate of the feed-forward networks.
        drop_path_rate: Probability that an image skips a branch of the last block. It grows
            linearly from 0 at the first block.
        layer_scale: Initial value of the scales of the branches.
        stage_norm_eps: Epsilon of the layer norms that end the stages.
        norm_cfg: Config of the norms inside the stages.
        act_cfg: Config of the activations.

    Raises:
        ValueError: ``arch`` has no such value, its entries or those in their place are not one per
            stage, or ``patch_sizes`` are not odd numbers, one per stage.
    """

    archs: ClassVar[dict[str, Architecture]] = {
        'b0': _published((32, 64, 160, 256), (3, 3, 5, 2)),
        'b1': _published((64, 128, 320, 512), (2, 2, 4, 2)),
        'b2': _published((64, 128, 320, 512), (3, 3, 12, 3)),
        'b3': _published((64, 128, 320, 512), (3, 5, 27, 3)),
        'b4': _published((64, 128, 320, 512), (3, 6, 40, 3)),
        'b5': _published((96, 192, 480, 768), (3, 3, 24, 3)),
        'b6': _published((96, 192, 384, 768), (6, 6, 90, 6)),
    }
    # patches overlap
    default_patch_sizes: ClassVar[tuple[int, ...]] = (7, 3, 3, 3)

    def __init__(
        self,
        arch: str | Architecture = 'b0',
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = dict(type='LargeKernelAttention'),
        *,
        embed_dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        mlp_ratios: Sequence[int] | None = None,
        patch_sizes: Sequence[int] | None = None,
        in_channels: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        layer_scale: float = 1e-2,
        stage_norm_eps: float = 1e-6,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='GELU'),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        entries = dict(embed_dims=embed_dims, depths=depths, mlp_ratios=mlp_ratios)
        self.arch = self._architecture(arch, entries)
        dims, depths = self.arch['embed_dims'], self.arch['depths']
        self.check_stages(len(dims))
        self.patch_sizes = self._sizes_of_patches(patch_sizes)
        self.in_channels, self.norm_cfg, self.act_cfg = in_channels, norm_cfg, act_cfg
        self.patch_embed1 = self.make_stem(dims[0])
        # on the CPU even if the network is built on the meta device
        drop_rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist()
        for index, operator in enumerate(per_stage(spatial_cfg, len(dims))):
            block: dict[str, Any] = dict(
                mlp_ratio=self.arch['mlp_ratios'][index],
                spatial_cfg=operator,
                drop_rate=drop_rate,
                layer_scale=layer_scale,
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
                with_cp=self.with_cp,
            )
            stage: dict[str, nn.Module] = {}
            if index > 0:
                stage[f'patch_embed{index + 1}'] = PatchEmbedding(
                    dims[index - 1], dims[index], self.patch_sizes[index], STRIDES[index], norm_cfg
                )
            blocks = []
            for _ in range(depths[index]):
                blocks.append(VANBlock(dims[index], drop_path_rate=drop_rates.pop(0), **block))
            stage[f'block{index + 1}'] = Sequential(*blocks)
            stage[f'norm{index + 1}'] = ChannelNorm(dims[index], eps=stage_norm_eps)
            self.add_stage(stage)
        self._freeze()

    def _architecture(
        self, arch: str | Architecture, entries: dict[str, Sequence[int] | None]
    ) -> Architecture:
        """Return the architecture with those entries in place of its own that are not None."""
        if isinstance(arch, str):
            if arch not in self.archs:
                raise ValueError(f'arch must be one of {list(self.archs)} or a dict, got {arch!r}.')
            arch = self.archs[arch]
        arch = dict(arch, **{name: entry for name, entry in entries.items() if entry is not None})
        names = tuple(entries)
        if (
            set(arch) != set(names)
            or len({len(arch[name]) for name in names}) != 1
            or not (1 <= len(arch['depths']) <= len(STRIDES))
        ):
            raise ValueError(
                f'arch must have the keys {names} with one entry for each of 1 to {len(STRIDES)} '
                f'stages, got {arch}.'
            )
        return arch

    def _sizes_of_patches(self, sizes: Sequence[int] | None) -> Sequence[int]:
        """Return the size of the patches of each stage, by default the published ones."""
        stages = len(self.arch['depths'])
        sizes = self.default_patch_sizes[:stages] if sizes is None else tuple(sizes)
        if len(sizes) != stages or any(size % 2 == 0 for size in sizes):
            raise ValueError(
                f'patch_sizes must be odd numbers, one for each of {stages} stages, got {sizes}.'
            )
        return sizes

    def make_stem(self, channels: int) -> nn.Module:
        """Return the module that maps the image to the first stage's channels at stride 4."""
        size = self.patch_sizes[0]
        return PatchEmbedding(self.in_channels, channels, size, STRIDES[0], self.norm_cfg)

    def init_weights(self) -> None:
        """Draw convolutions as the authors do, N(0, 2 / fan-out), unless ``init_cfg`` says
        otherwise.
        """
        if self.init_cfg is not None:
            super().init_weights()
            return
        for module in self.modules():
            # mmengine's initialisers do not divide the fan-out by the groups
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the patch embedding of the image."""
        return (self.patch_embed1,)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, embed_dims[0], ceil(H / 4), ceil(W / 4))."""
        return self.patch_embed1(in_fast_layout(x))
