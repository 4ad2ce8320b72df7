"""Published checkpoints of NAT, DiNAT and DiNAT_s: classifiers, detectors and segmenters of the
authors.
"""

from __future__ import annotations

import re
from typing import Any

from ..checkpoints import CheckpointError, Family, Format, register_family
from ..checkpoints.formats import State
from .dinat import DiNATs
from .nat import NAT, Variant

NAT_KEYS = (r'^patch_embed\.proj\.0\.weight$', r'^levels\.0\.blocks\.0\.attn\.qkv\.weight$')
# a Swin has another table of relative positions
DINAT_S_KEYS = (r'^patch_embed\.proj\.weight$', r'^layers\.0\.blocks\.0\.attn\.rpb$')
NETWORKS: dict[str, type[NAT]] = {'NAT': NAT, 'DiNATs': DiNATs}


def infer_config(entry: Format, state: State) -> dict[str, Any]:
    """Return the arguments of the network that these tensors fill; files do not tell dilations."""
    network = NETWORKS[str(entry.family)]
    name = network.levels_name
    blocks = [re.match(rf'{name}\.(\d+)\.blocks\.(\d+)\.', key) for key in state]
    pairs = {(int(match[1]), int(match[2])) for match in blocks if match}
    if not pairs:
        raise CheckpointError(
            f'a {network.__name__} must have {name} with blocks, got {list(state)[:8]}.'
        )
    levels = max(level for level, _ in pairs) + 1
    depths = tuple(sum(level == index for level, _ in pairs) for index in range(levels))
    hidden, width = state[f'{name}.0.blocks.0.mlp.fc1.weight'].shape
    layer_scale = 1e-5 if f'{name}.0.blocks.0.gamma1' in state else None
    sizes = (width, depths, hidden / width, layer_scale)
    # a classifier has the norm of the last output alone
    outputs = [index for index in range(levels) if f'norm{index}.weight' in state]
    config: dict[str, Any] = dict(out_indices=outputs)
    for arch, variant in network.archs.items():
        if tuple(variant)[:4] == sizes:
            return dict(config, arch=arch)
    return dict(config, arch=tuple(Variant(*sizes, drop_path_rate=0.2)))


register_family(
    Family(
        'NAT',
        formats=(
            Format(
                'nat',
                family='NAT',
                priority=105,
                source='Neighborhood-Attention-Transformer: NAT and DiNAT, classifiers, detectors '
                'and segmenters',
                required=NAT_KEYS,
                # the norm of a classifier is that of the last output
                renames=(('^norm.', '^norm3.'),),
                classifier='head.',
            ),
        ),
        infer_config=infer_config,
    )
)
register_family(
    Family(
        'DiNATs',
        formats=(
            Format(
                'dinat-s',
                family='DiNATs',
                priority=106,
                source='Neighborhood-Attention-Transformer: DiNAT_s, classifiers, detectors and '
                'segmenters',
                required=DINAT_S_KEYS,
                renames=(('^norm.', '^norm3.'),),
                classifier='head.',
            ),
        ),
        infer_config=infer_config,
    )
)
