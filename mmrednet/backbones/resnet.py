"""Deep Residual Learning (He et al., CVPR 2016), with any spatial operator in place of the 3x3
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmengine.logging import print_log
from mmengine.model import Sequential
from torch import Tensor, nn

from ..layers.recomputed_maps import recomputed_map
from ..layers.spatial import SpatialConfig, build_spatial, per_stage
from ..registry import MODELS
from .base import CheckpointedBlock, PyramidBackbone, pretrained_cfg

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
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of all norms.
        avg_down: True if the shortcut pools before its convolution in place of a stride.
        zero_init_residual: True if the last norm starts at zero.
        plugins: Layers after the convolutions, see :class:`SpatialResNet`.
        with_cp: True if the backward pass computes the block again, to save memory.
    """

    # layers, norms and activations of which mmrednet.fuse may make one
    consecutive = ('conv1', 'bn1', 'relu1', 'conv2', 'bn2', 'relu2')

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
        conv_cfg: dict | None,
        norm_cfg: dict,
        avg_down: bool,
        zero_init_residual: bool,
        plugins: Sequence[dict],
        with_cp: bool,
    ) -> None:
        # a block whose last norm starts at zero begins as the identity
        zero = dict(type='Constant', val=0, override=dict(name='bn3'))
        super().__init__(with_cp, zero if zero_init_residual else None)
        # Caffe's ResNets stride in the first 1x1 convolution
        first_stride, spatial_stride = (stride, 1) if style == 'caffe' else (1, stride)
        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, width, 1, stride=first_stride, bias=False
        )
        self.bn1 = build_norm_layer(norm_cfg, width)[1]
        if spatial_cfg is None:
            options = dict(stride=spatial_stride, padding=dilation, dilation=dilation, bias=False)
            self.conv2 = build_conv_layer(conv_cfg, width, width, 3, **options)
        else:
            self.conv2 = build_spatial(
                spatial_cfg, width, stride=spatial_stride, dilation=dilation, norm_cfg=norm_cfg
            )
        self.bn2 = build_norm_layer(norm_cfg, width)[1]
        self.conv3 = build_conv_layer(conv_cfg, width, out_channels, 1, bias=False)
        self.bn3 = build_norm_layer(norm_cfg, out_channels)[1]
        self.relu = nn.ReLU(inplace=True)
        # modules of their own, because mmrednet.fuse replaces them where the layers apply them
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        # None instead of an identity, as in mmdet
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            # ResNet-D: the average keeps what a stride would skip
            pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)]
            step = 1 if avg_down else stride
            self.downsample = Sequential(
                *(pool if avg_down else []),
                build_conv_layer(conv_cfg, in_channels, out_channels, 1, stride=step, bias=False),
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
        out = recomputed_map(self.conv1(x), self.bn1, self.relu1)
        out = self.conv2(self._plug(out, 'after_conv1'))
        out = self._plug(recomputed_map(out, self.bn2, self.relu2), 'after_conv2')
        out = self._plug(self.bn3(self.conv3(out)), 'after_conv3')
        identity = x if self.downsample is None else self.downsample(x)
        if self.plugin_names['after_conv3']:
            # the gradient of a plugin may need its output, so that is not overwritten
            return self.relu(out + identity)
        return self.relu(out.add_(identity))


@MODELS.register_module()
class SpatialResNet(PyramidBackbone):
    """ResNet whose 3x3 convolutions may be any spatial operator.

    With ``spatial_cfg=None`` it equals mmdet's ResNet in its state-dict keys, and in its outputs in
    eval mode. In training the defaults differ: batch norms use the statistics of the batch here,
    and with mmdet's ``norm_eval=True`` the running ones. Give ``norm_eval=True`` to get the same.
    Other arguments: see :class:`PyramidBackbone`.

    Args:
        depth: Number of layers: 26, 38, 50, 101 or 152.
        spatial_cfg: Config of the operator of all stages, or a list with one config per stage;
            None is the 3x3 convolution.
        in_channels: Number of channels of the image.
        base_channels: Number of channels inside the blocks of the first stage. It doubles from
            stage to stage, and a stage returns four times as many.
        stem_channels: Number of output channels of the stem, if it differs from ``base_channels``.
        operator_channels: Number of channels of the operators of the first stage, if it differs
            from ``base_channels``.
        num_stages: Number of stages, from 1 to 4.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        style: Layer with the stride of a block: 'pytorch' is the spatial operator, 'caffe' the
            convolution before it.
        contract_dilation: True if the first block of a dilated stage has half its dilation.
        multi_grid: Dilation of each block of the last stage.
        deep_stem: True if three 3x3 convolutions replace the 7x7 convolution of the stem. A
            network with a stem of its own keeps that.
        avg_down: True if shortcuts pool before their convolution in place of a stride.
        conv_cfg: Config of the convolutions, not of those inside the operators.
        norm_cfg: Config of all norms, those inside the operators included. Operators have fewer
            channels inside: where the groups of a GroupNorm do not divide these, their number is
            halved until it does, which is logged. An operator's own ``norm_cfg`` is not changed.
        zero_init_residual: True if the last norm of each block starts at zero.
        dcn: Config of a deformable convolution (``type`` 'DCN' or 'DCNv2') that replaces the
            operator, as for mmdet's ResNet. The stages whose operator it replaces are logged.
        stage_with_dcn: One bool per stage, True where ``dcn`` replaces the operator.
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
        stem_channels: int | None = None,
        operator_channels: int | None = None,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        style: str = 'pytorch',
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
        deep_stem: bool = False,
        avg_down: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN'),
        zero_init_residual: bool = True,
        dcn: dict | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        plugins: Sequence[dict] | None = None,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            # as mmdet's ResNet
            init_cfg=pretrained_cfg(init_cfg, pretrained)
            or [
                dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            ],
            **kwargs,
        )
        self._check_sizes(depth, num_stages, strides=strides, dilations=dilations)
        if style not in ('pytorch', 'caffe'):
            raise ValueError(f"style must be 'pytorch' or 'caffe', got {style!r}.")
        _check_groups(
            norm_cfg,
            base_channels=base_channels,
            stem_channels=stem_channels,
            operator_channels=operator_channels,
        )
        _check_plugins(plugins or (), num_stages)
        spatial_cfgs = per_stage(spatial_cfg, num_stages)
        if dcn is not None:
            _check_per_stage(num_stages, stage_with_dcn=stage_with_dcn)
            spatial_cfgs = _with_dcn(spatial_cfgs, dcn, stage_with_dcn)
        self.in_channels, self.norm_cfg = in_channels, norm_cfg
        self.conv_cfg, self.deep_stem = conv_cfg, deep_stem
        channels = stem_channels or base_channels
        self.make_stem(channels)
        for index in range(num_stages):
            # channels double from stage to stage
            block = dict(
                width=(operator_channels or base_channels) << index,
                out_channels=4 * base_channels << index,
                style=style,
                spatial_cfg=spatial_cfgs[index],
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
                avg_down=avg_down,
                zero_init_residual=zero_init_residual,
                plugins=_plugins_of_stage(plugins or (), index),
                with_cp=self.with_cp,
            )
            grid = _block_dilations(
                dilations[index],
                self.block_counts[depth][index],
                contract=contract_dilation,
                grid=multi_grid if index == num_stages - 1 else None,
            )
            stage = _make_stage(grid, channels, strides[index], block)
            self.add_stage({f'layer{index + 1}': stage})
            channels = 4 * base_channels << index
        self._freeze()

    def _check_sizes(self, depth: int, num_stages: int, **per_stage: Sequence[int]) -> None:
        """Raise a ValueError if there is no such network, or an argument has another number of
        entries than there are stages.
        """
        if depth not in self.block_counts:
            raise ValueError(f'depth must be one of {sorted(self.block_counts)}, got {depth}.')
        if not 1 <= num_stages <= 4:
            raise ValueError(f'num_stages must be from 1 to 4, got {num_stages}.')
        _check_per_stage(num_stages, **per_stage)
        self.check_stages(num_stages)

    def make_stem(self, channels: int) -> None:
        """Build the stem with this many output channels: 7x7 convolution and pooling, each of
        stride 2.
        """
        if self.deep_stem:
            self.stem = self._deep_stem(channels)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            return
        options = dict(stride=2, padding=3, bias=False)
        self.conv1 = build_conv_layer(self.conv_cfg, self.in_channels, channels, 7, **options)
        self.bn1 = build_norm_layer(self.norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    def _deep_stem(self, channels: int) -> Sequential:
        """Return ResNet-C's stem, three 3x3 convolutions, under mmdet's names."""
        widths = [self.in_channels, channels // 2, channels // 2, channels]
        layers: list[nn.Module] = []
        for index in range(3):
            options = dict(stride=1 if index else 2, padding=1, bias=False)
            layers += [
                build_conv_layer(self.conv_cfg, *widths[index : index + 2], 3, **options),
                build_norm_layer(self.norm_cfg, widths[index + 1])[1],
                nn.ReLU(inplace=True),
            ]
        return Sequential(*layers)

    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem."""
        return (self.stem,) if self.deep_stem else (self.conv1, self.bn1)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, base_channels, H / 4, W / 4)."""
        if self.deep_stem:
            return self.maxpool(self.stem(x))
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))


def _make_stage(dilations: Sequence[int], in_channels: int, stride: int, block: dict) -> Sequential:
    blocks = [Bottleneck(in_channels, stride=stride, dilation=dilations[0], **block)]
    for dilation in dilations[1:]:
        blocks.append(Bottleneck(block['out_channels'], stride=1, dilation=dilation, **block))
    return Sequential(*blocks)


def _block_dilations(
    dilation: int, count: int, *, contract: bool, grid: Sequence[int] | None
) -> list[int]:
    """Return the dilation of each block of a stage.

    Raises:
        ValueError: ``grid`` has another number of entries than there are blocks.
    """
    if grid is not None:
        if len(grid) != count:
            raise ValueError(
                f'multi_grid must have one entry per block of the last stage, {count}, got {grid}.'
            )
        return list(grid)
    first = dilation // 2 if contract and dilation > 1 else dilation
    return [first] + [dilation] * (count - 1)


def _with_dcn(
    spatial_cfgs: Sequence[SpatialConfig], dcn: dict, stage_with_dcn: Sequence[bool]
) -> list[SpatialConfig]:
    """Return the operators of the stages, where a deformable convolution replaces some."""
    operator = dict(dcn)
    if operator.pop('fallback_on_stride', False):
        raise ValueError(
            f'dcn.fallback_on_stride must be False, got {dcn}: a stage has one operator.'
        )
    # the name of mmcv's first versions
    if 'deformable_groups' in operator:
        operator['deform_groups'] = operator.pop('deformable_groups')
    # an adapter for stock ResNets holds the operator itself
    operator = operator.get('spatial_cfg', operator)
    pairs = list(zip(spatial_cfgs, stage_with_dcn, strict=True))
    replaced = [str(i) for i, (cfg, deforms) in enumerate(pairs, 1) if deforms and cfg is not None]
    if replaced:
        print_log(
            f'dcn={dcn} replaces the operators of spatial_cfg in the stages {", ".join(replaced)}.',
            'current',
        )
    return [operator if deforms else cfg for cfg, deforms in pairs]


def _plugins_of_stage(plugins: Sequence[dict], index: int) -> list[dict]:
    return [plugin for plugin in plugins if 'stages' not in plugin or plugin['stages'][index]]


def _check_per_stage(stages: int, **arguments: Sequence[int]) -> None:
    for name, values in arguments.items():
        if len(values) != stages:
            raise ValueError(f'{name} must have one entry per stage, {stages}, got {values}.')


def _check_groups(norm_cfg: dict, **channels: int | None) -> None:
    """Raise a ValueError if the groups of a GroupNorm do not divide the channels of an argument."""
    groups = norm_cfg.get('num_groups')
    for name, count in channels.items():
        if groups and count and count % groups:
            below, above = count // groups * groups, -(-count // groups) * groups
            raise ValueError(
                f'{name} must be divisible by the number of groups of {norm_cfg=}, got '
                f'{name}={count}; {below or above} and {above} are.'
            )


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
