"""A published file to one in our names, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .conversion import choose, to_ours, to_theirs
from .errors import CheckpointError
from .formats import FORMATS
from .inference import backbone_config, build_backbone, shapes_of
from .matching import BACKBONE, Match, left_out, match, match_whole
from .reading import check_hash, read_checkpoint
from .values import check_weights, unfit_among
from .writing import check_target, write_checkpoint

# what a file becomes: the backbone alone, as init_cfg takes it, or a whole network's state dict, as
# load_from takes it
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
        notes: lines on values that are no weights and were left out.
    """

    format: str
    network: dict[str, Any] | None
    match: Match
    absent: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reversal:
    """What became of a file in our names.

    Args:
        format: what was written.
        lost: what the published file had and this one does not, in words; '' if nothing is known to
            be lost.
    """

    format: str
    lost: str


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    to: str = 'backbone',
    shapes: Mapping[str, torch.Size] | None = None,
    format: str | None = None,
    key: str | None = None,
    min_share: float = 0.5,
    force: bool = False,
) -> Conversion:
    """Write a published file's tensors in our names.

    Args:
        source: the file.
        target: see :func:`mmrednet.checkpoints.write_checkpoint`; its metadata are source, SHA-256,
            format, and what the way back needs.
        to: one of ``TARGETS``.
        shapes: of the backbone's state dict or, unless ``to`` is 'backbone', of the whole
            network's; by default those of the published backbone that the file's names and shapes
            tell, other parts being kept as they are.
        format: of the file, one of :data:`mmrednet.checkpoints.FORMATS`; by default detected.
        key: where in the file the weights are, see :func:`mmrednet.checkpoints.read_checkpoint`.
        min_share: the least share of the network's tensors that must match, of the parts that the
            file has.
        force: whether an existing target is overwritten.

    Raises:
        ValueError, OSError: a path, ``to`` or ``min_share`` is wrong, or the target exists.
        CheckpointError: the file cannot be read safely, its hash is not that in its name, or too
            little of it fits.
    """
    if to not in TARGETS:
        raise ValueError(f'to must be one of {TARGETS}, got {to!r}.')
    if not 0 <= min_share <= 1:
        raise ValueError(f'min_share must be from 0 to 1, got {min_share}.')
    check_target(target, force=force)
    read, digest = read_checkpoint(source, key=key, check=False), check_hash(source)
    inner = (
        shapes
        if to == 'backbone' or shapes is None
        else {
            name.removeprefix(BACKBONE): shape
            for name, shape in shapes.items()
            if name.startswith(BACKBONE)
        }
    )
    entry, wrapper = choose(read.state, format, inner)
    converted, network = to_ours(read.state, entry, wrapper, inner), None
    if inner is None:
        network = backbone_config(entry, converted.backbone)
        inner = shapes_of(build_backbone(network))
    result = match(converted, inner)
    resized = [name for name in result.changed if name not in converted.changed]
    absent: tuple[str, ...] = ()
    if to != 'backbone':
        result, absent = match_whole(result, converted, to, inner, shapes)
    if result.share < min_share or not result.share:
        raise CheckpointError(
            '\n'.join(
                (
                    f'{source}: too little fits, {result.share:.0%} where at least {min_share:.0%}'
                    f' must: {result.counts}.',
                    *result.details(),
                )
            )
        )
    check_weights(source, result.state)
    unused = left_out(result, converted)
    metadata = dict(
        source=Path(source).name,
        sha256=digest,
        format=entry.name,
        wrapper=wrapper,
        container='/'.join(read.container),
        classifier=converted.classifier,
        lost=_named(resized=resized, **{'left out': list(unused)}),
    )
    write_checkpoint(target, result.state, metadata=metadata, force=force)
    return Conversion(entry.name, network, result, absent, digest, tuple(unfit_among(unused)))


def _named(**kinds: list[str]) -> str:
    """Return counts and first names of what the way back will miss."""
    return '; '.join(
        f'{len(names)} {kind} ({", ".join(names[:3])}{" ..." * (len(names) > 3)})'
        for kind, names in kinds.items()
        if names
    )


def reverse_file(
    source: str | Path, target: str | Path, *, format: str | None = None, force: bool = False
) -> Reversal:
    """Write a file in our names in those of a published format.

    A file that :func:`convert_file` made says format, wrapper, container and the classifier's name
    itself, and becomes what it came from, save for what was resized or left out.

    Args:
        source: the file, of a backbone or of a whole network.
        target: see :func:`mmrednet.checkpoints.write_checkpoint`.
        format: one of :data:`mmrednet.checkpoints.FORMATS`; by default what the file's metadata
            say.
        force: whether an existing target is overwritten.

    Raises:
        ValueError, OSError: a path is wrong, or the target exists.
        CheckpointError: the format is unknown or has no way back, or the file cannot be read
            safely.
    """
    check_target(target, force=force)
    read = read_checkpoint(source)
    name = format or read.metadata.get('format')
    if name not in FORMATS:
        raise CheckpointError(
            f'format must be one of {list(FORMATS)} where the file does not say it, got {name!r}.'
        )
    wrapped = any(key.startswith(BACKBONE) for key in read.state)
    backbone = {
        key.removeprefix(BACKBONE): value
        for key, value in read.state.items()
        if not wrapped or key.startswith(BACKBONE)
    }
    rest = {
        key: value for key, value in read.state.items() if wrapped and not key.startswith(BACKBONE)
    }
    # of another format the file's own words on wrapper and classifier say nothing
    said = read.metadata if name == read.metadata.get('format') else {}
    theirs = to_theirs(backbone, rest, FORMATS[name], said.get('wrapper'), said.get('classifier'))
    container = said.get('container', 'state_dict')
    write_checkpoint(
        target, theirs, container=tuple(filter(None, container.split('/'))), force=force
    )
    return Reversal(name, read.metadata.get('lost', ''))
