"""Published checkpoints of ResNets of bottlenecks, with and without gates."""

from __future__ import annotations

from typing import Any

from ..checkpoints import Family, Format, register_family
from ..checkpoints.formats import State, renames_within
from ..layers.gates_formats import CBAM_OFFICIAL, LINEAR_GATES, SE_MMPRETRAIN
from .block_counts import depth_of
from .resnet import SpatialResNet

BOTTLENECK_KEY = r'^layer1\.0\.bn3\.weight$'
# our gates by a key that tells them
GATE_KEYS = {'SE': '.se_layer.fc1.weight', 'CBAM': '.cbam.channel.fc1.weight'}


def infer_config(entry: Format, state: State) -> dict[str, Any]:
    """Return the arguments of the SpatialResNet that these tensors fill."""
    config: dict[str, Any] = dict(
        depth=depth_of(state, SpatialResNet.block_counts, 'SpatialResNet'),
        base_channels=len(state['conv1.weight']),
    )
    plugins = []
    for gate, ending in GATE_KEYS.items():
        if any(key.endswith(ending) for key in state):
            plugins.append(dict(cfg=dict(type=f'mmrednet.{gate}'), position='after_conv3'))
    if plugins:
        config['plugins'] = plugins
    # the authors' Caffe network strides in the first convolution
    if entry.name == 'se-resnet':
        config['style'] = 'caffe'
    return config


register_family(
    Family(
        'SpatialResNet',
        formats=(
            Format(
                'se-resnet-mmpretrain',
                family='SpatialResNet',
                priority=110,
                source='mmpretrain',
                required=(BOTTLENECK_KEY, r'\.se_layer\.conv1\.conv\.weight$'),
                renames=renames_within('se_layer', SE_MMPRETRAIN),
                prefix='backbone.',
                classifier='head.fc.',
            ),
            Format(
                'se-resnet-timm',
                family='SpatialResNet',
                priority=120,
                source='timm',
                required=(BOTTLENECK_KEY, r'\.se\.fc1\.weight$'),
                renames=(('.se.', '.se_layer.'),),
            ),
            Format(
                'se-resnet',
                family='SpatialResNet',
                priority=130,
                source="the authors' Caffe weights as pretrained-models.pytorch and timm (legacy) "
                'have them',
                required=(BOTTLENECK_KEY, r'\.se_module\.fc1\.weight$'),
                renames=(
                    ('.se_module.', '.se_layer.'),
                    ('^layer0.conv1.', '^conv1.'),
                    ('^layer0.bn1.', '^bn1.'),
                ),
                classifier='last_linear.',
            ),
            Format(
                'cbam-resnet',
                family='SpatialResNet',
                priority=140,
                source='Jongchan/attention-module',
                required=(BOTTLENECK_KEY, r'\.cbam\.ChannelGate\.mlp\.1\.weight$'),
                renames=renames_within('cbam', CBAM_OFFICIAL),
                layout=LINEAR_GATES,
                prefix='module.',
            ),
            Format(
                'resnet',
                family='SpatialResNet',
                # after all ResNets with gates
                priority=150,
                source='torchvision, timm, mmdet and mmpretrain: ResNets of bottlenecks',
                required=(BOTTLENECK_KEY, r'^conv1\.weight$', r'^layer1\.0\.conv2\.weight$'),
                forbidden=(r'\.se_layer\.', r'\.cbam\.'),
            ),
        ),
        infer_config=infer_config,
    )
)
