"""A published file to one in our names, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .conversion import OUR_CLASSIFIER, Converted, choose, to_ours, to_theirs
from .errors import CheckpointError
from .formats import FORMATS
from .inference import backbone_config, build_backbone, shapes_of
from .matching import Match, compare, match
from .reading import hash_in_name, read_checkpoint, sha256_of
from .writing import check_target, write_checkpoint

BACKBONE = 'backbone.'
# what a file becomes: the backbone alone, as init_cfg takes it, or a whole network's state dict, as load_from takes it
TARGETS = ('backbone', 'classifier', 'detector', 'segmentor')


@dataclass(frozen=True)
class Conversion:
    """What became of a file.

    Args:
        format: its format.
        network: the config of the backbone that it was compared with, if that was inferred.
        match: what fits.
        absent: parts of the given network that the file does not have.
        sha256: of the file.
    """

    format: str
    network: dict[str, Any] | None
    match: Match
    absent: tuple[str, ...]
    sha256: str


def convert_file(source: str | Path, target: str | Path, *, to: str = 'backbone',
                 shapes: Mapping[str, torch.Size] | None = None, format: str | None = None, key: str | None = None,
                 min_share: float = 0.5, force: bool = False) -> Conversion:
    """Write a published file's tensors in our names.

    Args:
        source: the file.
        target: see :func:`mmrednet.checkpoints.write_checkpoint`; its metadata are source, SHA-256, format, and what
            the way back needs.
        to: one of ``TARGETS``.
        shapes: of the backbone's state dict or, unless ``to`` is 'backbone', of the whole network's; by default those
            of the published backbone that the file's names and shapes tell, other parts being kept as they are.
        format: of the file, one of :data:`mmrednet.checkpoints.FORMATS`; by default detected.
        key: where in the file the weights are, see :func:`mmrednet.checkpoints.read_checkpoint`.
        min_share: the least share of the network's tensors that must match, of the parts that the file has.
        force: whether an existing target is overwritten.

    Raises:
        ValueError, OSError: a path, ``to`` or ``min_share`` is wrong, or the target exists.
        CheckpointError: the file cannot be read safely, its hash is not that in its name, or too little of it fits.
    """
    if to not in TARGETS:
        raise ValueError(f'to must be one of {TARGETS}, got {to!r}.')
    if not 0 <= min_share <= 1:
        raise ValueError(f'min_share must be from 0 to 1, got {min_share}.')
    check_target(target, force=force)
    read, digest = read_checkpoint(source, key=key), _checked_hash(source)
    inner = shapes if to == 'backbone' or shapes is None else {
        name.removeprefix(BACKBONE): shape for name, shape in shapes.items() if name.startswith(BACKBONE)}
    entry, wrapper = choose(read.state, format, inner)
    converted, network = to_ours(read.state, entry, wrapper, inner), None
    if inner is None:
        network = backbone_config(entry, converted.backbone)
        inner = shapes_of(build_backbone(network))
    result = match(converted, inner)
    absent: tuple[str, ...] = ()
    if to != 'backbone':
        result, absent = _whole(result, converted, to, inner, shapes)
    if result.share < min_share or not result.share:
        raise CheckpointError('\n'.join((f'{source}: too little fits, {result.share:.0%} where at least {min_share:.0%}'
                                         f' must: {result.counts}.', *result.details())))
    metadata = dict(source=Path(source).name, sha256=digest, format=entry.name, wrapper=wrapper,
                    container='/'.join(read.container))
    write_checkpoint(target, result.state, metadata=metadata, force=force)
    return Conversion(entry.name, network, result, absent, digest)


def _checked_hash(source: str | Path) -> str:
    digest, stated = sha256_of(source), hash_in_name(source)
    if stated and not digest.startswith(stated):
        raise CheckpointError(f'{source} must have the SHA-256 that its name states, {stated}..., got {digest}; rename '
                              'it if you know better.')
    return digest


def _whole(inner: Match, converted: Converted, to: str, backbone: Mapping[str, torch.Size],
           shapes: Mapping[str, torch.Size] | None) -> tuple[Match, tuple[str, ...]]:
    """Put the backbone back into its network, beside the other parts of the file."""
    # without a network to compare with, other parts are as they should be, save for a classifier elsewhere
    wanted = {name: value for name, value in converted.rest.items()
              if shapes is not None or name.startswith(OUR_CLASSIFIER) == (to == 'classifier')}
    unfit = (*inner.unexpected, *inner.misshapen)
    state: dict[str, Tensor] = {BACKBONE + name: value for name, value in inner.state.items()}
    state |= {BACKBONE + name: converted.backbone[name] for name in unfit} | wanted
    parts = {name.split('.')[0] for name in state}
    known = {name: shape for name, shape in shapes.items() if name.split('.')[0] in parts} if shapes is not None else {
        **{BACKBONE + name: shape for name, shape in backbone.items()},
        **{name: value.shape for name, value in wanted.items()}}
    result = compare(state, known, source=inner.source, hint=inner.hint,
                     outside=tuple(name for name in converted.rest if name not in wanted),
                     renamed=frozenset(BACKBONE + name for name in inner.renamed),
                     changed=frozenset(BACKBONE + name for name in inner.changed))
    return result, tuple(sorted({name.split('.')[0] for name in shapes or ()} - parts))


def reverse_file(source: str | Path, target: str | Path, *, format: str | None = None, force: bool = False) -> str:
    """Write a file in our names in those of a published format, and return the format.

    A file that :func:`convert_file` made says format, wrapper and container itself, and becomes what it came from.

    Args:
        source: the file, of a backbone or of a whole network.
        target: see :func:`mmrednet.checkpoints.write_checkpoint`.
        format: one of :data:`mmrednet.checkpoints.FORMATS`; by default what the file's metadata say.
        force: whether an existing target is overwritten.

    Raises:
        ValueError, OSError: a path is wrong, or the target exists.
        CheckpointError: the format is unknown or has no way back, or the file cannot be read safely.
    """
    check_target(target, force=force)
    read = read_checkpoint(source)
    name = format or read.metadata.get('format')
    if name not in FORMATS:
        raise CheckpointError(f'format must be one of {list(FORMATS)} where the file does not say it, got {name!r}.')
    wrapped = any(key.startswith(BACKBONE) for key in read.state)
    backbone = {key.removeprefix(BACKBONE): value for key, value in read.state.items()
                if not wrapped or key.startswith(BACKBONE)}
    rest = {key: value for key, value in read.state.items() if wrapped and not key.startswith(BACKBONE)}
    theirs = to_theirs(backbone, rest, FORMATS[name], read.metadata.get('wrapper'))
    container = read.metadata.get('container', 'state_dict')
    write_checkpoint(target, theirs, container=tuple(filter(None, container.split('/'))), force=force)
    return name
