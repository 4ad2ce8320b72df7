"""Names of decoders and heads in published checkpoints, and ours.

detectron2's checkpoints have one branch per task, bowenc0221's one module per decoder and head.
Both name layers by their place in a sequence.
"""

from __future__ import annotations

import re

# what stands in the names of detectron2 -> ours
DETECTRON2 = (
    (r'^sem_seg_head\.decoder\.', 'semantic_decoder.'),
    (r'^ins_embed_head\.decoder\.', 'instance_decoder.'),
    (r'^sem_seg_head\.head\.', 'semantic_head.conv.'),
    (r'^ins_embed_head\.(center|offset)_head\.', r'\1_head.conv.'),
    (r'^sem_seg_head\.predictor\.', 'semantic_head.predictor.'),
    (r'^ins_embed_head\.(center|offset)_predictor\.', r'\1_head.predictor.'),
    (r'\.res5\.project_conv\.convs\.4\.1\.', '.context.pool_conv.'),
    (r'\.res5\.project_conv\.', '.context.'),
    (r'\.res2\.project_conv\.', '.projections.0.'),
    (r'\.res3\.project_conv\.', '.projections.1.'),
    (r'\.res2\.fuse_conv\.', '.fusions.0.'),
    (r'\.res3\.fuse_conv\.', '.fusions.1.'),
    (r'\.depthwise\.norm\.', '.bn1.'),
    (r'\.pointwise\.norm\.', '.bn2.'),
    # elsewhere a convolution holds its norm
    (r'((?:projections|fusions|context|convs|project|conv)(?:\.\d+)*)\.norm\.', r'\1.bn.'),
    (
        r'((?:projections\.\d|convs\.\d|context|project|(?:fusions\.\d|head\.conv)\.\d))\.weight$',
        r'\1.conv.weight',
    ),
)
# what stands in the names of bowenc0221 -> ours; places are counted from coarse to fine there
BOWENC0221 = (
    (r'^decoder\.', ''),
    (r'^semantic_head\.classifier\.semantic\.', 'semantic_head.'),
    (r'^instance_head\.classifier\.(center|offset)\.', r'\1_head.'),
    (r'^(\w+_head)\.1\.', r'\1.predictor.'),
    (r'^(\w+_head)\.0\.', r'\1.conv.'),
    (r'\.aspp\.convs\.4\.aspp_pooling\.1\.', '.context.pool_conv.'),
    (r'\.aspp\.convs\.(\d)\.0\.', r'.context.convs.\1.conv.'),
    (r'\.aspp\.convs\.(\d)\.1\.', r'.context.convs.\1.bn.'),
    (r'\.aspp\.project\.0\.', '.context.project.conv.'),
    (r'\.aspp\.project\.1\.', '.context.project.bn.'),
    (r'_decoder\.project\.(\d)\.0\.', r'_decoder.projections.\1.conv.'),
    (r'_decoder\.project\.(\d)\.1\.', r'_decoder.projections.\1.bn.'),
    (r'_decoder\.fuse\.', '_decoder.fusions.'),
    (r'(fusions\.\d|_head\.conv)\.0\.0\.0\.', r'\1.depthwise.'),
    (r'(fusions\.\d|_head\.conv)\.0\.0\.1\.', r'\1.bn1.'),
    (r'(fusions\.\d|_head\.conv)\.0\.1\.', r'\1.pointwise.'),
    (r'(fusions\.\d|_head\.conv)\.0\.2\.', r'\1.bn2.'),
)


def rename(key: str, levels: int) -> str:
    """Return our name of a published one; others stay.

    Args:
        key: Name in a checkpoint.
        levels: Number of projected feature maps of the decoders.
    """
    if key.startswith(('sem_seg_head.', 'ins_embed_head.')):
        return _substitute(key, DETECTRON2)
    if '.aspp.' in key or re.search(r'_decoder\.(project|fuse)\.|_head\.classifier\.', key):
        key = _substitute(key, BOWENC0221)
        return re.sub(
            r'\.(projections|fusions)\.(\d)\.',
            lambda match: f'.{match[1]}.{levels - 1 - int(match[2])}.',
            key,
        )
    return key


def _substitute(key: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in pairs:
        key = re.sub(pattern, replacement, key)
    return key
