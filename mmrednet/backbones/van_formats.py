"""Published checkpoints of VAN: the authors' repositories, and mmpretrain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoints import Family, Format, register_family
from ..checkpoints.formats import Renames, State
from .block_counts import count_blocks
from .van import VAN, Architecture

# the authors keep the depth-wise convolution of the feed-forward network in a module of its own
WRAPPED_DEPTH_WISE: Renames = (('.mlp.dwconv.dwconv.', '.mlp.dwconv.'),)


def infer_arch(state: State, archs: Mapping[str, Architecture], family: str) -> dict[str, Any]:
    """Return the ``arch`` of the network that these tensors fill: a published one by its name."""
    depths = count_blocks(state, 'block', family)
    stages = range(1, len(depths) + 1)
    widths = tuple(len(state[f'norm{stage}.weight']) for stage in stages)
    hidden = tuple(len(state[f'block{stage}.0.mlp.fc1.weight']) for stage in stages)
    ratios = tuple(inner // outer for inner, outer in zip(hidden, widths, strict=True))
    arch = dict(embed_dims=widths, depths=depths, mlp_ratios=ratios)
    return dict(arch=next((name for name, value in archs.items() if value == arch), arch))


def infer_config(_: Format, state: State) -> dict[str, Any]:
    """Return the arguments of the VAN that these tensors fill."""
    return infer_arch(state, VAN.archs, 'VAN')


register_family(
    Family(
        'VAN',
        formats=(
            Format(
                'van',
                family='VAN',
                priority=70,
                source='Visual-Attention-Network: classifiers and segmenters',
                required=(
                    r'^patch_embed1\.proj\.weight$',
                    r'^block1\.0\.attn\.spatial_gating_unit\.conv_spatial\.weight$',
                    r'\.mlp\.dwconv\.dwconv\.weight$',
                ),
                renames=WRAPPED_DEPTH_WISE,
                classifier='head.',
            ),
            Format(
                'van-mmpretrain',
                family='VAN',
                priority=80,
                source='mmpretrain',
                required=(
                    r'^patch_embed1\.projection\.weight$',
                    r'^blocks1\.0\..*\.DW_D_conv\.weight$',
                ),
                renames=(
                    ('^blocks{n}.', '^block{n}.'),
                    ('^patch_embed{n}.projection.', '^patch_embed{n}.proj.'),
                    ('.spatial_gating_unit.DW_conv.', '.spatial_gating_unit.conv0.'),
                    ('.spatial_gating_unit.DW_D_conv.', '.spatial_gating_unit.conv_spatial.'),
                ),
                prefix='backbone.',
                classifier='head.fc.',
            ),
        ),
        infer_config=infer_config,
    )
)
