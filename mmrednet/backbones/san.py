"""The networks of Exploring Self-attention for Image Recognition (Zhao, Jia and Koltun, CVPR
2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_norm_layer
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.recomputed_maps import recomputed_map
from ..layers.spatial import SpatialConfig, build_spatial, per_stage
from ..registry import MODELS
from .base import CheckpointedBlock, PyramidBackbone

OPERATORS = {'pairwise': 'SANPairwise', 'patchwise': 'SANPatchwise'}


class SANBlock(CheckpointedBlock):
    """Norm, ReLU, attention, norm, ReLU and 1x1 convolution, added to the input.

    (Figure 2 of the paper.)

    Args:
        channels: Number of channels C of the input and of the output.
        spatial_cfg: Config of the operator. The published attention returns C / 4 channels, other
            operators C.
        norm_cfg: Config of the norms.
        with_cp: True if the backward pass computes the block again, to save memory.
    """

    def __init__(
        self, channels: int, *, spatial_cfg: SpatialConfig, norm_cfg: dict, with_cp: bool
    ) -> None:
        super().__init__(with_cp)
        # other operators keep the number of channels
        inner = channels
        if spatial_cfg is not None and spatial_cfg['type'] in OPERATORS.values():
            inner = channels // 4
            spatial_cfg = dict(spatial_cfg, out_channels=inner)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.sam = build_spatial(spatial_cfg, channels, norm_cfg=norm_cfg)
        self.bn2 = build_norm_layer(norm_cfg, inner)[1]
        self.conv = nn.Conv2d(inner, channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def compute(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        out = self.sam(recomputed_map(x, self.bn1, self.relu))
        return self.conv(recomputed_map(out, self.bn2, self.relu)).add_(x)


@MODELS.register_module()
class SAN(PyramidBackbone):
    """Self-attention network.

    It has five stages of 64, 256, 512, 1024 and 2048 channels at strides 2, 4, 8, 16 and 32. Each
    begins with a 2x2 max pooling and a 1x1 convolution. Other arguments: see
    :class:`PyramidBackbone`.

    Args:
        depth: Depth of the network: 10, 15 or 19.
        relation: Kind of attention: 'pairwise' or 'patchwise'.
        spatial_cfg: Config of the operator in place of the attention, or a list with one config
            per stage. None is the published attention.
        kernel_sizes: Kernel size of the published attention, one per stage.
        in_channels: Number of channels of the image.
        base_channels: Number of channels of the first stage.
        norm_cfg: Config of all norms.
        recompute_norms: True if the backward pass computes batch norms again, see
            :class:`PyramidBackbone`. Here it saves a quarter of the memory.

    Raises:
        ValueError: An argument has no such value, or not one entry per stage.
    """

    block_counts: ClassVar[dict[int, tuple[int, ...]]] = {
        10: (2, 1, 2, 4, 1),
        15: (3, 2, 3, 5, 2),
        19: (3, 3, 4, 6, 3),
    }

    def __init__(
        self,
        depth: int = 10,
        relation: str = 'pairwise',
        *,
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = None,
        kernel_sizes: Sequence[int] = (3, 7, 7, 7, 7),
        in_channels: int = 3,
        base_channels: int = 64,
        norm_cfg: dict = dict(type='BN'),
        out_indices: Sequence[int] = (1, 2, 3, 4),
        recompute_norms: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(out_indices=out_indices, recompute_norms=recompute_norms, **kwargs)
        if depth not in self.block_counts:
            raise ValueError(f'depth must be one of {sorted(self.block_counts)}, got {depth}.')
        if relation not in OPERATORS:
            raise ValueError(f'relation must be one of {list(OPERATORS)}, got {relation!r}.')
        counts = self.block_counts[depth]
        if len(kernel_sizes) != len(counts):
            raise ValueError(
                f'kernel_sizes must have one entry per stage, {len(counts)}, got {kernel_sizes}.'
            )
        self.check_stages(len(counts))
        operators: Sequence[SpatialConfig]
        if spatial_cfg is None:
            operators = [dict(type=OPERATORS[relation], kernel_size=size) for size in kernel_sizes]
        else:
            operators = per_stage(spatial_cfg, len(counts))
        channels = base_channels
        self.conv_in = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn_in = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        for index, (count, operator) in enumerate(zip(counts, operators, strict=True)):
            # 64, then 256 and doubling
            width = base_channels if index == 0 else base_channels << (index + 1)
            options: dict[str, Any] = dict(
                spatial_cfg=operator, norm_cfg=norm_cfg, with_cp=self.with_cp
            )
            # published keys have one number per stage: pool0, conv0, layer0, bn0
            self.add_stage(
                {
                    f'pool{index}': nn.MaxPool2d(2, ceil_mode=True),
                    f'conv{index}': nn.Conv2d(channels, width, 1, bias=False),
                    f'layer{index}': Sequential(
                        *(SANBlock(width, **options) for _ in range(count))
                    ),
                    f'bn{index}': build_norm_layer(norm_cfg, width)[1],
                    f'relu{index}': nn.ReLU(inplace=True),
                }
            )
            channels = width
        self._freeze()

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem."""
        return self.conv_in, self.bn_in

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, base_channels, H, W)."""
        return recomputed_map(self.conv_in(x), self.bn_in, self.relu)
