"""Published keys of SE and CBAM: pairs of fragments, (published, own), from the start of a gate."""

from __future__ import annotations

import re

from ..checkpoints.formats import Layout, Renames, Shapes, State

# mmpretrain
SE_MMPRETRAIN: Renames = (('^conv1.conv.', '^fc1.'), ('^conv2.conv.', '^fc2.'))
# a tutorial's linear layers as well
SE_NAMES: Renames = (('^fc.0.', '^fc1.'), ('^fc.2.', '^fc2.'), *SE_MMPRETRAIN)
# the authors
CBAM_OFFICIAL: Renames = (
    ('^ChannelGate.mlp.1.', '^channel.fc1.'),
    ('^ChannelGate.mlp.3.', '^channel.fc2.'),
    ('^SpatialGate.spatial.', '^spatial.'),
)
# timm's layer as well, whose convolution is a block of its own
CBAM_NAMES: Renames = (
    *CBAM_OFFICIAL,
    ('^spatial.conv.conv.', '^spatial.conv.'),
    ('^spatial.conv.bn.', '^spatial.bn.'),
)

CBAM_LINEAR = re.compile(r'\.cbam\.channel\.fc\d\.weight$')


def _to_convolutions(state: State, _: Shapes | None) -> State:
    """Arrange the matrices of CBAM's linear layers as the kernels of 1x1 convolutions."""
    result = {}
    for key, value in state.items():
        is_matrix = value.dim() == 2 and CBAM_LINEAR.search(key)
        result[key] = value[:, :, None, None] if is_matrix else value
    return result


def _to_linear(state: State) -> State:
    """Undo ``_to_convolutions``."""
    result = {}
    for key, value in state.items():
        result[key] = value.flatten(1) if CBAM_LINEAR.search(key) else value
    return result


LINEAR_GATES = Layout(_to_convolutions, _to_linear)
