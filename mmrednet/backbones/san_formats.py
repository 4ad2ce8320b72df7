"""Published checkpoints of SAN: hszhao/SAN."""

from __future__ import annotations

from typing import Any

from ..checkpoints import Family, Format, register_family
from ..checkpoints.formats import State
from .block_counts import depth_of
from .san import SAN


def infer_config(_: Format, state: State) -> dict[str, Any]:
    """Return the arguments of the SAN that these tensors fill."""
    # the pairwise operator alone has an encoding of positions
    is_pairwise = 'layer0.0.sam.conv_p.weight' in state
    return dict(
        depth=depth_of(state, SAN.block_counts, 'SAN'),
        relation='pairwise' if is_pairwise else 'patchwise',
    )


register_family(
    Family(
        'SAN',
        formats=(
            Format(
                'san',
                family='SAN',
                priority=40,
                source='hszhao/SAN',
                required=(r'^conv_in\.weight$', r'^layer0\.0\.sam\.conv1\.weight$'),
                prefix='module.',
            ),
        ),
        infer_config=infer_config,
    )
)
