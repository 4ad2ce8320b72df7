"""Converts a published checkpoint file to one with our keys, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# importing the backbones registers their formats
from . import backbones  # noqa: F401
from .backbones.downloads import check_hash
from .checkpoints import (
    FORMATS,
    CheckpointError,
    Converted,
    Format,
    Match,
    choose_format,
    match,
    match_state,
    read_checkpoint,
    shapes_of,
    to_mmrednet,
    to_published,
    write_checkpoint,
)
from .checkpoints.formats import BACKBONE, FAMILIES, Shapes
from .checkpoints.matching import TARGETS, left_out
from .checkpoints.reading import check_weights, describe_non_weights
from .checkpoints.writing import check_target
from .registry import MODELS


@dataclass(frozen=True)
class Conversion:
    """The result of :func:`convert_file`.

    Args:
        format: Name of the file's format.
        network: Config of the backbone that it was compared with, if that was inferred.
        match: What fits.
        sha256: SHA-256 of the file.
        notes: Lines on values that are no weights and were left out.
    """

    format: str
    network: dict[str, Any] | None
    match: Match
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reversal:
    """The result of :func:`reverse_file`.

    Args:
        format: Name of the format that was written.
        lost: What the published file had and this one does not, in words; '' if nothing is known to
            be lost.
    """

    format: str
    lost: str


def convert_file(
    source: str | Path,
    output: str | Path,
    *,
    to: str = 'backbone',
    shapes: Shapes | None = None,
    format: str | None = None,
    key: str | None = None,
    min_share: float = 0.5,
    force: bool = False,
) -> Conversion:
    """Write a published file's tensors under our keys.

    Args:
        source: Path of the published file.
        output: Path to write, see :func:`mmrednet.checkpoints.write_checkpoint`. Its metadata are
            source, SHA-256, format, and what the way back needs.
        to: One of ``TARGETS``: what the output is for.
        shapes: Shapes of the backbone's state dict or, unless ``to`` is 'backbone', of the whole
            network's. Default: those of the published backbone that the file's keys and shapes
            tell, other parts being kept as they are.
        format: Name of the file's format, one of :data:`mmrednet.checkpoints.FORMATS`. Default:
            detected.
        key: Key of the state dict in the file, see :func:`mmrednet.checkpoints.read_checkpoint`.
        min_share: Least share of the network's tensors that must match, of the parts that the file
            has.
        force: Whether an existing output is overwritten.

    Raises:
        ValueError, OSError: A path, ``to`` or ``min_share`` is wrong, or the output exists.
        CheckpointError: The file cannot be read safely, its hash is not that in its name, or too
            little of it fits.
    """
    if to not in TARGETS:
        raise ValueError(f'to must be one of {TARGETS}, got {to!r}.')
    if not 0 <= min_share <= 1:
        raise ValueError(f'min_share must be from 0 to 1, got {min_share}.')
    check_target(output, force=force)
    published = read_checkpoint(source, key=key, check=False)
    digest = check_hash(source)
    network = None
    if shapes is not None:
        converted, result = match_state(published.state, shapes, target=to, format=format)
    else:
        converted, result, network = _match_published(published.state, to, format)
    if result.share < min_share or not result.share:
        summary = (
            f'{source}: too little fits, {result.share:.0%} where at least {min_share:.0%} must: '
            f'{result.counts}.'
        )
        raise CheckpointError('\n'.join((summary, *result.details())))
    check_weights(source, result.state)
    metadata = dict(
        source=Path(source).name,
        sha256=digest,
        container='/'.join(published.container),
        **_origin(converted, result),
    )
    write_checkpoint(output, result.state, metadata=metadata, force=force)
    notes = describe_non_weights(left_out(result, converted))
    return Conversion(converted.format.name, network, result, digest, tuple(notes))


def _match_published(
    state: dict[str, Tensor], target: str, format: str | None
) -> tuple[Converted, Match, dict[str, Any]]:
    """Compare a file with the published network that its keys and shapes tell, and return that
    network's config as well.
    """
    converted = to_mmrednet(state, *choose_format(state, format, None))
    network = backbone_config(converted.format, converted.backbone)
    shapes = shapes_of(build_backbone(network))
    return converted, match(converted, shapes, target=target), network


def _origin(converted: Converted, result: Match) -> dict[str, str]:
    """Return what the way back needs, and what it will miss, as metadata."""
    changed = [key.removeprefix(BACKBONE) for key in result.changed]
    lost = {
        'resized': [key for key in changed if key not in converted.changed],
        'left out': list(left_out(result, converted)),
    }
    phrases = []
    for reason, keys in lost.items():
        more = ' ...' if len(keys) > 3 else ''
        if keys:
            phrases.append(f'{len(keys)} {reason} ({", ".join(keys[:3])}{more})')
    return dict(
        format=converted.format.name,
        prefix=converted.prefix,
        classifier=converted.classifier,
        lost='; '.join(phrases),
    )


def reverse_file(
    source: str | Path, output: str | Path, *, format: str | None = None, force: bool = False
) -> Reversal:
    """Write a file with our keys under those of a published format.

    A file that :func:`convert_file` made states its format, prefix, container and classifier. It
    becomes what it came from, save for what was resized or left out.

    Args:
        source: Path of a backbone's or a whole network's file, with our keys.
        output: Path to write, see :func:`mmrednet.checkpoints.write_checkpoint`.
        format: Name of the format to write, one of :data:`mmrednet.checkpoints.FORMATS`. Default:
            what the metadata of the file state.
        force: Whether an existing output is overwritten.

    Raises:
        ValueError, OSError: A path is wrong, or the output exists.
        CheckpointError: The format is unknown or has no way back, or the file cannot be read
            safely.
    """
    check_target(output, force=force)
    own = read_checkpoint(source)
    name = format or own.metadata.get('format')
    if name not in FORMATS:
        raise CheckpointError(
            f'format must be one of {list(FORMATS)} where the file does not say it, got {name!r}.'
        )
    backbone, other_parts = _split(own.state)
    # prefix and classifier are stated for the file's own format alone
    origin = own.metadata if name == own.metadata.get('format') else {}
    published = to_published(
        backbone, other_parts, FORMATS[name], origin.get('prefix'), origin.get('classifier')
    )
    keys = origin.get('container', 'state_dict').split('/')
    container = tuple(key for key in keys if key)
    write_checkpoint(output, published, container=container, force=force)
    return Reversal(name, own.metadata.get('lost', ''))


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the backbone and those of other parts. Without the backbone's prefix
    all are the backbone's.
    """
    prefix = BACKBONE if any(key.startswith(BACKBONE) for key in state) else ''
    backbone, other_parts = {}, {}
    for key, value in state.items():
        if key.startswith(prefix):
            backbone[key.removeprefix(prefix)] = value
        else:
            other_parts[key] = value
    return backbone, other_parts


def backbone_config(entry: Format, state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the config of the backbone that tensors of a format fill.

    Args:
        entry: Format of the file.
        state: Tensors of the backbone, in our keys.

    Raises:
        CheckpointError: They fill none of the published ones, or the format does not say which.
    """
    if entry.family is None:
        raise CheckpointError(
            f'the names of format {entry.name!r} do not say which network they fill: give its '
            'config (--model).'
        )
    try:
        arguments = FAMILIES[entry.family].infer_config(entry, state)
    except (KeyError, IndexError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f'the tensors are not those of a published {entry.family}, {error} is not there: give '
            'the config of the network (--model).'
        ) from error
    return dict(type=f'mmrednet.{entry.family}', **arguments)


def build_backbone(cfg: dict[str, Any]) -> nn.Module:
    """Return a backbone without storage, for its keys and shapes.

    Args:
        cfg: Config of the backbone.
    """
    with torch.device('meta'):
        return MODELS.build(cfg)
