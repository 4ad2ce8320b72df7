"""Reads the number of blocks, and so the depth, of a published network from its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..checkpoints import CheckpointError


def count_blocks(keys: Iterable[str], stage_prefix: str, family: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage.

    Blocks are counted, so a file never states more than it has keys for.

    Args:
        keys: Keys of the backbone, in our names.
        stage_prefix: What stands before the number of a stage, such as 'layer'.
        family: Name of the backbone, for the error.

    Raises:
        CheckpointError: There are no such keys.
    """
    blocks: dict[int, set[str]] = {}
    pattern = re.compile(rf'{stage_prefix}(\d)\.(\d+)\.')
    keys = list(keys)
    for key in keys:
        match = pattern.match(key)
        if match:
            blocks.setdefault(int(match[1]), set()).add(match[2])
    if not blocks:
        raise CheckpointError(
            f'a {family} must have stages named {stage_prefix!r} and a number, got {keys[:8]}.'
        )
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


def depth_of(keys: Iterable[str], block_counts: Mapping[int, tuple[int, ...]], family: str) -> int:
    """Return the depth of a published network, whose stages are called 'layer' and a number.

    Args:
        keys: Keys of the backbone, in our names.
        block_counts: Blocks of each stage by depth.
        family: Name of the backbone, for the error.

    Raises:
        CheckpointError: No depth has these blocks.
    """
    counts = count_blocks(keys, 'layer', family)
    for depth, blocks in block_counts.items():
        if blocks == counts:
            return depth
    raise CheckpointError(
        f'the blocks of a published {family} must be one of {dict(block_counts)}, got {counts}: '
        'give the config of the network (--model).'
    )
