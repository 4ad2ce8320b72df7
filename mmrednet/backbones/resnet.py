"""Deep Residual Learning (He et al., CVPR 2016), with any spatial operator in place of the 3x3
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.spatial import SpatialConfig, build_spatial, per_stage
from ..registry import MODELS
from .base import CheckpointedBlock, PyramidBackbone

PLUGIN_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')


class Bottleneck(CheckpointedBlock):
    """1x1 convolution, spatial operator, 1x1 convolution, each with a norm, added to the input.

    Args:
        in_channels: Number of input channels.
        width: Number of channels of the spatial operator.
        out_channels: Number of output channels.
        stride: Stride of the block.
        dilation: Dilation of the spatial operator.
        style: Layer with the stride: 'pytorch' is the spatial operator, 'caffe' the first
            convolution.
        spatial_cfg: Config of the operator, see :func:`mmrednet.layers.build_spatial`.
        norm_cfg: Config of all norms.
        plugins: Layers after the convolutions, see :class:`SpatialResNet`.
        with_cp: True if the backward pass computes the block again, to save memory.
    """

    # layer, norm and activation that mmrednet.fuse may make one
    consecutive = ('conv2', 'bn2', 'relu2')

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        stride: int,
        dilation: int,
        style: str,
        spatial_cfg: SpatialConfig,
        norm_cfg: dict,
        plugins: Sequence[dict],
        with_cp: bool,
    ) -> None:
        # the last norm starts at zero: every block begins as the identity
        super().__init__(with_cp, dict(type='Constant', val=0, override=dict(name='bn3')))
        # Caffe's ResNets stride in the first 1x1 convolution
        first_stride, spatial_stride = (stride, 1) if style == 'caffe' else (1, stride)
        self.conv1 = build_conv_layer(None, in_channels, width, 1, stride=first_stride, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, width)[1]
        self.conv2 = build_spatial(
            spatial_cfg, width, stride=spatial_stride, dilation=dilation, norm_cfg=norm_cfg
        )
        self.bn2 = build_norm_layer(norm_cfg, width)[1]
        self.conv3 = build_conv_layer(None, width, out_channels, 1, bias=False)
        self.bn3 = build_norm_layer(norm_cfg, out_channels)[1]
        self.relu = nn.ReLU(inplace=True)
        # a module of its own, because mmrednet.fuse replaces it where the operator applies it
        self.relu2 = nn.ReLU(inplace=True)
        # None instead of an identity, as in mmdet
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = Sequential(
                build_conv_layer(None, in_channels, out_channels, 1, stride=stride, bias=False),
                build_norm_layer(norm_cfg, out_channels)[1],
            )
        self.plugin_names: dict[str, list[str]] = {position: [] for position in PLUGIN_POSITIONS}
        for plugin in plugins:
            self._add_plugin(plugin, out_channels if plugin['position'] == 'after_conv3' else width)

    def _add_plugin(self, plugin: dict, channels: int) -> None:
        # a copy, because several blocks share one config
        cfg = dict(plugin['cfg'])
        name, layer = build_plugin_layer(cfg, in_channels=channels, postfix=cfg.pop('postfix', ''))
        if hasattr(self, name):
            raise ValueError(
                f'plugins.cfg.postfix must tell two plugins of a block apart, got {name!r} twice.'
            )
        self.add_module(name, layer)
        self.plugin_names[plugin['position']].append(name)

    def _plug(self, x: Tensor, position: str) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x

    def compute(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self._plug(self.relu(self.bn1(self.conv1(x))), 'after_conv1')
        out = self._plug(self.relu2(self.bn2(self.conv2(out))), 'after_conv2')
        out = self._plug(self.bn3(self.conv3(out)), 'after_conv3')
        identity = x if self.downsample is None else self.downsample(x)
        if self.plugin_names['after_conv3']:
            # the gradient of a plugin may need its output, so that is not overwritten
            return self.relu(out + identity)
        return self.relu(out.add_(identity))


@MODELS.register_module()
class SpatialResNet(PyramidBackbone):
    """ResNet whose 3x3 convolutions may be any spatial operator.

    With ``spatial_cfg=None`` it equals mmdet's ResNet in its state-dict keys and outputs. Other
    arguments: see :class:`PyramidBackbone`.

    Args:
        depth: Number of layers: 26, 38, 50, 101 or 152.
        spatial_cfg: Config of the operator of all stages, or a list with one config per stage;
            None is the 3x3 convolution.
        in_channels: Number of channels of the image.
        base_channels: Number of channels inside the blocks of the first stage. It doubles from
            stage to stage, and a stage returns four times as many.
        operator_channels: Number of channels of the operators of the first stage, if it differs
            from ``base_channels``.
        num_stages: Number of stages, from 1 to 4.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        style: Layer with the stride of a block: 'pytorch' is the spatial operator, 'caffe' the
            convolution before it.
        norm_cfg: Config of all norms, those inside the operators included.
        plugins: Layers in every block, as for mmdet's ResNet: dicts with ``cfg``, ``position``
            ('after_conv1', 'after_conv2' or 'after_conv3') and optionally ``stages``, one bool per
            stage.

    Raises:
        ValueError: An argument has no such value, or not one entry per stage.
    """

    block_counts: ClassVar[dict[int, tuple[int, ...]]] = {
        26: (1, 2, 4, 1),
        38: (2, 3, 5, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }

    def __init__(
        self,
        depth: int = 50,
        spatial_cfg: SpatialConfig | Sequence[SpatialConfig] = None,
        *,
        in_channels: int = 3,
        base_channels: int = 64,
        operator_channels: int | None = None,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        style: str = 'pytorch',
        norm_cfg: dict = dict(type='BN'),
        plugins: Sequence[dict] | None = None,
        init_cfg: dict | list[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            # as mmdet's ResNet
            init_cfg=init_cfg
            or [
                dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            ],
            **kwargs,
        )
        if depth not in self.block_counts:
            raise ValueError(f'depth must be one of {sorted(self.block_counts)}, got {depth}.')
        if style not in ('pytorch', 'caffe'):
            raise ValueError(f"style must be 'pytorch' or 'caffe', got {style!r}.")
        if not 1 <= num_stages <= 4:
            raise ValueError(f'num_stages must be from 1 to 4, got {num_stages}.')
        spatial_cfgs = per_stage(spatial_cfg, num_stages)
        _check_per_stage(num_stages, strides=strides, dilations=dilations)
        self.check_stages(num_stages)
        _check_plugins(plugins or (), num_stages)
        self.in_channels, self.norm_cfg = in_channels, norm_cfg
        self.make_stem(base_channels)
        channels = base_channels
        for index in range(num_stages):
            # channels double from stage to stage
            block = dict(
                width=(operator_channels or base_channels) << index,
                out_channels=4 * base_channels << index,
                dilation=dilations[index],
                style=style,
                spatial_cfg=spatial_cfgs[index],
                norm_cfg=norm_cfg,
                plugins=_plugins_of_stage(plugins or (), index),
                with_cp=self.with_cp,
            )
            count = self.block_counts[depth][index]
            stage = _make_stage(count, channels, strides[index], block)
            self.add_stage({f'layer{index + 1}': stage})
            channels = 4 * base_channels << index
        self._freeze()

    def make_stem(self, channels: int) -> None:
        """Build the stem with this many output channels: 7x7 convolution and pooling, each of
        stride 2.
        """
        options = dict(stride=2, padding=3, bias=False)
        self.conv1 = build_conv_layer(None, self.in_channels, channels, 7, **options)
        self.bn1 = build_norm_layer(self.norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem."""
        return self.conv1, self.bn1

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, base_channels, H / 4, W / 4)."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))


def _make_stage(count: int, in_channels: int, stride: int, block: dict) -> Sequential:
    blocks = [Bottleneck(in_channels, stride=stride, **block)]
    for _ in range(1, count):
        blocks.append(Bottleneck(block['out_channels'], stride=1, **block))
    return Sequential(*blocks)


def _plugins_of_stage(plugins: Sequence[dict], index: int) -> list[dict]:
    return [plugin for plugin in plugins if 'stages' not in plugin or plugin['stages'][index]]


def _check_per_stage(stages: int, **arguments: Sequence[int]) -> None:
    for name, values in arguments.items():
        if len(values) != stages:
            raise ValueError(f'{name} must have one entry per stage, {stages}, got {values}.')


def _check_plugins(plugins: Sequence[dict], stages: int) -> None:
    for plugin in plugins:
        if plugin.get('position') not in PLUGIN_POSITIONS:
            raise ValueError(
                f'plugins.position must be one of {PLUGIN_POSITIONS}, got '
                f'{plugin.get("position")!r}.'
            )
        if len(plugin.get('stages', [True] * stages)) != stages:
            raise ValueError(
                f'plugins.stages must have one entry per stage, {stages}, got {plugin["stages"]}.'
            )
