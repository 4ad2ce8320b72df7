"""Published checkpoints of MSCAN: the authors of SegNeXt, and mmseg."""

from __future__ import annotations

from typing import Any

from ..checkpoints import Family, Format, register_family
from ..checkpoints.formats import State
from .mscan import MSCAN
from .van_formats import WRAPPED_DEPTH_WISE, infer_arch

MSCAN_KEYS = (
    r'^patch_embed1\.proj\.0\.weight$',
    r'^block1\.0\.attn\.spatial_gating_unit\.conv0_1\.weight$',
)


def infer_config(_: Format, state: State) -> dict[str, Any]:
    """Return the arguments of the MSCAN that these tensors fill."""
    return infer_arch(state, MSCAN.archs, 'MSCAN')


register_family(
    Family(
        'MSCAN',
        formats=(
            Format(
                'mscan',
                family='MSCAN',
                priority=90,
                source='Visual-Attention-Network/SegNeXt: classifiers and segmenters',
                required=(*MSCAN_KEYS, r'\.mlp\.dwconv\.dwconv\.weight$'),
                renames=WRAPPED_DEPTH_WISE,
                classifier='head.',
            ),
            Format(
                'mscan-mmseg',
                family='MSCAN',
                priority=100,
                source='mmseg: backbones and segmenters',
                required=(*MSCAN_KEYS, r'\.mlp\.dwconv\.weight$'),
                classifier='head.',
            ),
        ),
        infer_config=infer_config,
    )
)
