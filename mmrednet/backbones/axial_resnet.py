"""Axial-ResNet of Axial-DeepLab (Wang et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.attention import AxisWeights
from ..layers.axial import AxialAttention1d
from ..layers.recomputed_maps import recomputed_map
from ..layers.spatial import cell_average
from ..registry import MODELS
from .base import CheckpointedBlock, PyramidBackbone


class AxialBlock(CheckpointedBlock):
    """1x1 convolution, attention along both axes, 1x1 convolution, added to the input.

    Args:
        in_channels: Number of input channels.
        width: Number of channels of the attention; the output has ``2 * width`` channels.
        stride: Stride of the block: the attended map is averaged over stride x stride.
        table_size: Size of the table, see :class:`mmrednet.layers.AxialAttention1d`.
        attention: Other keyword arguments of the attention.
        norm_cfg: Config of the norms outside the attention.
        with_cp: True if the backward pass computes the block again, to save memory.
    """

    expansion = 2
    # layer, norm and activation of which mmrednet.fuse may make one
    consecutive = ('conv_down', 'bn1', 'relu1')

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        table_size: int,
        attention: dict,
        norm_cfg: dict,
        with_cp: bool,
    ) -> None:
        # the last norm starts at zero: every block begins as the identity
        super().__init__(with_cp, dict(type='Constant', val=0, override=dict(name='bn2')))
        out_channels = width * self.expansion
        self.conv_down = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, width)[1]
        options = dict(dict(table_size=table_size), **attention)
        self.height_block = AxialAttention1d(width, width, axis='height', **options)
        self.width_block = AxialAttention1d(width, width, axis='width', **options)
        self.pool = cell_average(stride)
        self.conv_up = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn2 = build_norm_layer(norm_cfg, out_channels)[1]
        self.relu = nn.ReLU(inplace=True)
        # a module of its own, because mmrednet.fuse replaces it where the convolution applies it
        self.relu1 = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                build_norm_layer(norm_cfg, out_channels)[1],
            )

    def reduce(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to the input (B, width, H, W) of the attention."""
        return recomputed_map(self.conv_down(x), self.bn1, self.relu1)

    def attention(self, x: Tensor) -> tuple[AxisWeights, AxisWeights]:
        """Return the weights along the height, and those along the width that follow."""
        out = self.reduce(x)
        return self.height_block.attention(out), self.width_block.attention(self.height_block(out))

    def compute(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 2 * width, ceil(H / stride), ceil(W / stride))."""
        out = self.reduce(x)
        # as released, the ReLU follows the pooling
        out = self.relu(self.pool(self.width_block(self.height_block(out))))
        out = self.bn2(self.conv_up(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(out.add_(identity))


@MODELS.register_module()
class AxialResNet(PyramidBackbone):
    """ResNet of axial attention for images of any size.

    Other arguments: see :class:`PyramidBackbone`.

    Args:
        arch: Size: 's', 'm', 'l' or 'xl', which multiply all widths by 0.5, 0.75, 1 or 2; or a
            factor.
        depth: Number of layers: 26 or 50.
        stem: Kind of stem: 'conv' (7x7 convolution), 'inception' (three 3x3 convolutions, the first
            of stride 2, as in Axial-DeepLab) or 'axial' (three axial blocks, the first of stride
            2). All are followed by a pooling of stride 2.
        output_stride: Stride of the last stage: 32, or 16 without a stride in the stage itself.
        input_size: Size of the images for which the tables of relative positions are made, 224 in
            the published files. Positions are told apart up to the length of a stage's feature
            map; further ones count as the furthest.
        table_size: Size of all tables in place of those for ``input_size``, such as deeplab2's 255.
            Default: None.
        span: Width of the attention, see :class:`mmrednet.layers.AxialAttention1d`. None attends to
            the whole axis.
        num_heads: Number of heads of every attention.
        in_channels: Number of channels of the image.
        norm_cfg: Config of the norms outside the attention.
        attention: Further keyword arguments of the attention, such as ``logits_budget``.
        recompute_norms: True if the backward pass computes batch norms again, see
            :class:`PyramidBackbone`. Here it saves a quarter of the memory.

    Raises:
        ValueError: An argument has no such value.
    """

    archs: ClassVar[dict[str, float]] = {'s': 0.5, 'm': 0.75, 'l': 1.0, 'xl': 2.0}
    block_counts: ClassVar[dict[int, tuple[int, ...]]] = {26: (1, 2, 4, 1), 50: (3, 4, 6, 3)}

    def __init__(
        self,
        arch: str | float = 's',
        depth: int = 50,
        *,
        stem: str = 'conv',
        output_stride: int = 32,
        input_size: int = 224,
        table_size: int | None = None,
        span: int | None = None,
        num_heads: int = 8,
        in_channels: int = 3,
        norm_cfg: dict = dict(type='BN'),
        attention: dict | None = None,
        recompute_norms: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(recompute_norms=recompute_norms, **kwargs)
        if isinstance(arch, str) and arch not in self.archs:
            raise ValueError(f'arch must be one of {list(self.archs)} or a number, got {arch!r}.')
        choices: dict[str, tuple[Any, list]] = dict(
            depth=(depth, sorted(self.block_counts)),
            stem=(stem, ['conv', 'inception', 'axial']),
            output_stride=(output_stride, [16, 32]),
        )
        for name, (value, values) in choices.items():
            if value not in values:
                raise ValueError(f'{name} must be one of {values}, got {value!r}.')
        self.check_stages(4)
        factor = self.archs[arch] if isinstance(arch, str) else float(arch)
        block: dict[str, Any] = dict(
            attention=dict(num_heads=num_heads, span=span, **(attention or {})),
            norm_cfg=norm_cfg,
            with_cp=self.with_cp,
        )
        if table_size is not None:
            block['attention']['table_size'] = table_size
        channels = int((128 if stem == 'inception' else 64) * factor)
        size = self.make_stem(stem, in_channels, channels, input_size, block)
        # the stem has a stride of 4
        strides = (1, 2, 2, 1 if output_stride == 16 else 2)
        for index, count in enumerate(self.block_counts[depth]):
            width, stride = int(128 * factor) << index, strides[index]
            # the first block attends before it strides
            stage = [AxialBlock(channels, width, stride=stride, table_size=size, **block)]
            channels, size = width * AxialBlock.expansion, -(-size // stride)
            for _ in range(1, count):
                stage.append(AxialBlock(channels, width, stride=1, table_size=size, **block))
            self.add_stage({f'layer{index + 1}': Sequential(*stage)})
        self._freeze()

    def make_stem(
        self, stem: str, in_channels: int, channels: int, input_size: int, block: dict
    ) -> int:
        """Build the stem and return the length of its output for images of ``input_size``."""
        half = -(-input_size // 2)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        if stem == 'conv':
            self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
            self.bn1 = build_norm_layer(block['norm_cfg'], channels)[1]
        elif stem == 'inception':
            half_channels = channels // 2
            options = dict(padding=1, norm_cfg=block['norm_cfg'])
            self.stem = Sequential(
                ConvModule(in_channels, half_channels, 3, 2, **options),
                ConvModule(half_channels, half_channels, 3, **options),
                ConvModule(half_channels, channels, 3, **options),
            )
        else:
            # blocks double their width, and attention needs an even number of channels per head
            even = 2 * block['attention']['num_heads']
            width = even * -(-channels // (2 * even))
            self.stem = Sequential(
                ConvModule(in_channels, width, 1, norm_cfg=block['norm_cfg']),
                AxialBlock(width, width, stride=2, table_size=input_size, **block),
                AxialBlock(2 * width, width, stride=1, table_size=half, **block),
                AxialBlock(2 * width, width, stride=1, table_size=half, **block),
                # where rounding has changed the number of channels
                nn.Identity() if 2 * width == channels else nn.Conv2d(2 * width, channels, 1),
            )
        return -(-half // 2)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem."""
        return (self.stem,) if hasattr(self, 'stem') else (self.conv1, self.bn1)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to the input of the first stage at stride 4."""
        if hasattr(self, 'stem'):
            return self.maxpool(self.stem(x))
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))
