"""The one table of published formats: whose names a file has, and what each is called here.

Names are those of the repositories' own code. docs/pretrained.md says for each format what they
were checked against: golden outputs, or the public source alone. No published file could be
downloaded where this was written.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import layouts
from .layouts import Layout
from .naming import Pairs

# gates by themselves, as plugins of stock networks: linear layers 'fc.0', 'fc.2' (a tutorial),
# mmpretrain
SE_NAMES: Pairs = (
    ('^fc.0.', '^fc1.'),
    ('^fc.2.', '^fc2.'),
    ('^conv1.conv.', '^fc1.'),
    ('^conv2.conv.', '^fc2.'),
)
# the official file, and timm's layer, whose convolution is a block of its own
CBAM_NAMES: Pairs = (
    ('^ChannelGate.mlp.1.', '^channel.fc1.'),
    ('^ChannelGate.mlp.3.', '^channel.fc2.'),
    ('^SpatialGate.spatial.', '^spatial.'),
    ('^spatial.conv.conv.', '^spatial.conv.'),
    ('^spatial.conv.bn.', '^spatial.bn.'),
)


def within(part: str, pairs: Pairs) -> Pairs:
    """Return pairs that hold from the start of a part's names as pairs for the whole network."""
    return tuple((f'.{part}.' + theirs[1:], f'.{part}.' + ours[1:]) for theirs, ours in pairs)


@dataclass(frozen=True)
class Format:
    """How one project names its weights.

    Args:
        name: for people, and for the option that chooses it.
        family: our backbone that its files fill, in the registry; None if any.
        source: who writes such files.
        marks: regular expressions that tell it: each is found in some name of the backbone.
        absent: regular expressions found in none.
        renames: (theirs, ours), within the backbone.
        layout: what happens to values, if anything does.
        wrapper: what their files put before the backbone's names.
        classifier: what theirs put before ``weight`` and ``bias`` of the linear classifier.
        transposed: whether the classifier's matrix is (in, out) there.
    """

    name: str
    family: str | None
    source: str
    marks: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    renames: Pairs = ()
    layout: Layout | None = None
    wrapper: str = ''
    classifier: str = 'fc.'
    transposed: bool = False

    @property
    def reversible(self) -> bool:
        """Whether our names and values lead back to theirs."""
        return self.layout is None or self.layout.to_theirs is not None


_REDNET = (r'^stem\.0\.conv\.weight$', r'^layer1\.0\.conv2\.conv2\.conv\.weight$')
_RESNET = r'^layer1\.0\.bn3\.weight$'
_MSCAN = (
    r'^patch_embed1\.proj\.0\.weight$',
    r'^block1\.0\.attn\.spatial_gating_unit\.conv0_1\.weight$',
)
_WRAPPED_DEPTH_WISE: Pairs = (('.mlp.dwconv.dwconv.', '.mlp.dwconv.'),)

# detection takes the first whose marks are there
_TABLE = (
    Format(
        'rednet-paddle',
        'RedNet',
        'PaddleClas and Paddle-Image-Models, saved as npz or safetensors',
        marks=(*_REDNET, r'\._variance$'),
        renames=(('._mean$', '.running_mean$'), ('._variance$', '.running_var$')),
        transposed=True,
    ),
    Format(
        'rednet',
        'RedNet',
        'd-li14/involution: classifiers, detectors, segmenters',
        marks=_REDNET,
        wrapper='backbone.',
        classifier='head.fc.',
    ),
    Format(
        'rednet-ordered',
        'RedNet',
        'd-li14/involution: rednet50.pth for detectors, whose names are matched by their order',
        layout=layouts.ORDERED,
    ),
    Format(
        'san',
        'SAN',
        'hszhao/SAN',
        marks=(r'^conv_in\.weight$', r'^layer0\.0\.sam\.conv1\.weight$'),
        wrapper='module.',
    ),
    Format(
        'axial',
        'AxialResNet',
        'csrhddlam/axial-deeplab',
        marks=(r'^layer1\.0\.hight_block\.qkv_transform\.weight$',),
        renames=(('.hight_block.', '.height_block.'),),
        layout=layouts.AXIAL,
    ),
    Format(
        'axial-deeplab2',
        'AxialResNet',
        'google-research/deeplab2: an npz of variables',
        marks=(r'attention/_?height_axis/qkv_kernel',),
        layout=layouts.DEEPLAB2,
    ),
    Format(
        'van',
        'VAN',
        'Visual-Attention-Network: classifiers and segmenters',
        marks=(
            r'^patch_embed1\.proj\.weight$',
            r'^block1\.0\.attn\.spatial_gating_unit\.conv_spatial\.weight$',
            r'\.mlp\.dwconv\.dwconv\.weight$',
        ),
        renames=_WRAPPED_DEPTH_WISE,
        classifier='head.',
    ),
    Format(
        'van-mmpretrain',
        'VAN',
        'mmpretrain',
        marks=(r'^patch_embed1\.projection\.weight$', r'^blocks1\.0\..*\.DW_D_conv\.weight$'),
        renames=(
            ('^blocks{n}.', '^block{n}.'),
            ('^patch_embed{n}.projection.', '^patch_embed{n}.proj.'),
            ('.spatial_gating_unit.DW_conv.', '.spatial_gating_unit.conv0.'),
            ('.spatial_gating_unit.DW_D_conv.', '.spatial_gating_unit.conv_spatial.'),
        ),
        wrapper='backbone.',
        classifier='head.fc.',
    ),
    Format(
        'mscan',
        'MSCAN',
        'Visual-Attention-Network/SegNeXt: classifiers and segmenters',
        marks=(*_MSCAN, r'\.mlp\.dwconv\.dwconv\.weight$'),
        renames=_WRAPPED_DEPTH_WISE,
        classifier='head.',
    ),
    Format(
        'mscan-mmseg',
        'MSCAN',
        'mmseg: backbones and segmenters',
        marks=(*_MSCAN, r'\.mlp\.dwconv\.weight$'),
        classifier='head.',
    ),
    Format(
        'se-resnet-mmpretrain',
        'SpatialResNet',
        'mmpretrain',
        marks=(_RESNET, r'\.se_layer\.conv1\.conv\.weight$'),
        renames=within('se_layer', SE_NAMES[2:]),
        wrapper='backbone.',
        classifier='head.fc.',
    ),
    Format(
        'se-resnet-timm',
        'SpatialResNet',
        'timm',
        marks=(_RESNET, r'\.se\.fc1\.weight$'),
        renames=(('.se.', '.se_layer.'),),
    ),
    Format(
        'se-resnet',
        'SpatialResNet',
        "the authors' Caffe weights as pretrained-models.pytorch and timm (legacy) have them",
        marks=(_RESNET, r'\.se_module\.fc1\.weight$'),
        renames=(
            ('.se_module.', '.se_layer.'),
            ('^layer0.conv1.', '^conv1.'),
            ('^layer0.bn1.', '^bn1.'),
        ),
        classifier='last_linear.',
    ),
    Format(
        'cbam-resnet',
        'SpatialResNet',
        'Jongchan/attention-module',
        marks=(_RESNET, r'\.cbam\.ChannelGate\.mlp\.1\.weight$'),
        renames=within('cbam', CBAM_NAMES[:3]),
        layout=layouts.LINEAR_GATES,
        wrapper='module.',
    ),
    Format(
        'resnet',
        'SpatialResNet',
        'torchvision, timm, mmdet and mmpretrain: ResNets of bottlenecks',
        marks=(_RESNET, r'^conv1\.weight$', r'^layer1\.0\.conv2\.weight$'),
        absent=(r'\.se_layer\.', r'\.cbam\.'),
    ),
    Format(
        'mmrednet',
        None,
        'networks trained here, and any file whose names are ours',
        wrapper='backbone.',
        classifier='head.fc.',
    ),
)
FORMATS = {entry.name: entry for entry in _TABLE}


def legacy_pairs(families: frozenset[str]) -> Pairs:
    """Return what differs in name alone in the published files of these backbones.

    Weights may come to a network by other ways than this package: its state dict is then renamed
        while it is loaded.
    """
    pairs = (pair for entry in _TABLE if entry.family in families for pair in entry.renames)
    return tuple(dict.fromkeys(pairs))
