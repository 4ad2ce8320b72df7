"""Where the published implementations of Panoptic-DeepLab differ, as presets of arguments.

``deeplab2`` is google-research/deeplab2, whose choices are the defaults of the classes,
``detectron2`` is projects/Panoptic-DeepLab of facebookresearch/detectron2, ``bowenc0221`` is
bowenc0221/panoptic-deeplab.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple


class Variant(NamedTuple):
    """Arguments of the parts of a variant, where they differ from the defaults.

    Args:
        decoder: Arguments of both decoders.
        semantic_decoder: Arguments of the semantic decoder.
        instance_decoder: Arguments of the instance decoder.
        head: Arguments of the heads.
        center_head: Arguments of the centre head.
        upsampling: Arguments of :class:`mmrednet.panoptic.resizing.Upsampling`.
        targets: Arguments of :class:`mmrednet.panoptic.targets.PanopticTargets`.
        losses: Arguments of :class:`mmrednet.panoptic.losses.PanopticLoss`.
        test_cfg: Arguments of :class:`mmrednet.panoptic.merging.PanopticMerger`.
    """

    decoder: dict[str, Any]
    semantic_decoder: dict[str, Any]
    instance_decoder: dict[str, Any]
    head: dict[str, Any]
    center_head: dict[str, Any]
    upsampling: dict[str, Any]
    targets: dict[str, Any]
    losses: dict[str, Any]
    test_cfg: dict[str, Any]


# projected channels of the maps of strides 4, 8 and, where there is one, 16
SEMANTIC = dict(channels=256, low_channels=(32, 64, 128))
INSTANCE = dict(channels=128, low_channels=(16, 32, 64))
WHOLE_BATCH = dict(per_image=False, mean='weights')

VARIANTS = {
    'deeplab2': Variant(
        # Keras' momentum is one minus torch's
        decoder=dict(norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01)),
        semantic_decoder=SEMANTIC,
        instance_decoder=INSTANCE,
        head={},
        center_head={},
        upsampling=dict(align_corners=True, factor='exact'),
        targets={},
        losses={},
        test_cfg={},
    ),
    'detectron2': Variant(
        decoder=dict(
            norm_cfg=dict(type='BN'),
            conv='plain',
            projection_first=True,
            align_corners=False,
            pool_layer='bias',
        ),
        semantic_decoder=SEMANTIC,
        instance_decoder=dict(channels=128, low_channels=(32, 64, 128)),
        head=dict(init_cfg=dict(type='Normal', std=0.001)),
        # whatever the other heads have
        center_head=dict(conv='plain', spatial_cfg=None),
        upsampling=dict(align_corners=False, factor='stride'),
        targets=dict(sigma=10, exact_offsets=True, crowd_centers=True, small_crowds=True),
        losses=dict(**WHOLE_BATCH, offset_mean='pixels'),
        test_cfg=dict(numbering='center', foreground_vote='all', score='semantic_mass'),
    ),
    'bowenc0221': Variant(
        decoder=dict(norm_cfg=dict(type='BN'), pool_layer='plain', dropout=0.5),
        semantic_decoder=SEMANTIC,
        instance_decoder=INSTANCE,
        head=dict(init_cfg=dict(type='Normal', std=0.001)),
        center_head={},
        upsampling=dict(align_corners=True, factor='integer'),
        targets=dict(
            rounding='truncate', exact_offsets=True, crowd_centers=True, small_crowds=True
        ),
        losses=WHOLE_BATCH,
        test_cfg=dict(numbering='center', score='semantic'),
    ),
}


def arguments(variant: str, **overrides: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the arguments of each part of a variant, with some of them overridden.

    Args:
        variant: Name of the variant.
        **overrides: Arguments by the name of the part.

    Raises:
        ValueError: There is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {list(VARIANTS)}, got {variant!r}.')
    parts = deepcopy(VARIANTS[variant]._asdict())
    return {name: {**part, **(overrides.get(name) or {})} for name, part in parts.items()}
