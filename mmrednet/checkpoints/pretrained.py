"""``init_cfg=dict(type='Pretrained', checkpoint=...)`` of our networks: read safely, converted,
matched, counted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .conversion import OUR_CLASSIFIER, choose, to_ours
from .downloads import local_path
from .errors import CheckpointError
from .inference import shapes_of
from .matching import BACKBONE, Match, left_out, match, match_whole
from .reading import read_checkpoint
from .values import check_weights, unfit_among


def load_pretrained(
    network: nn.Module,
    checkpoint: str,
    *,
    prefix: str | None = None,
    map_location: Any = 'cpu',
    format: str | None = None,
    logger: Any = 'current',
) -> Match:
    """Fill a backbone, or a classifier, with a published file, and log one line of counts.

    What the file does not have keeps its values: a ResNet's file starts the convolution stages of a
        network whose other stages have another operator. Whatever else is missing or of no use is a
        warning with names.

    Args:
        network: a backbone of ours, or an ``ImageClassifier``.
        checkpoint: a path, a URL, or a name as 'torchvision://resnet50' or 'open-mmlab://...', as
            mmengine takes them.
        prefix: the part of the file to load, as 'backbone.'; by default found by itself.
        map_location: for mmengine's sake: values are copied to where the network is.
        format: of the file, one of :data:`mmrednet.checkpoints.FORMATS`; by default detected from
            the names.
        logger: of mmengine, for the line of counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name is unknown, or a URL ends in none.
        CheckpointError: it cannot be read safely, nothing in it fits the network, or what fits is
            not finite or no floating point numbers.
    """
    del map_location
    with ExitStack() as stack:
        read = read_checkpoint(local_path(checkpoint, stack), check=False)
    state = read.state
    if prefix:
        prefix = prefix if prefix.endswith('.') else f'{prefix}.'
        state = {
            name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
        }
        if not state:
            raise CheckpointError(
                f'prefix must be that of some names in {checkpoint}, got {prefix!r}; it has '
                f'{list(read.state)[:5]}.'
            )
    kind, (result, doubts) = type(network).__name__, _matched(network, state, format)
    if not result.share:
        raise CheckpointError(
            f'{checkpoint} fits nothing of this {kind}: {result.counts}.\nThe file has '
            f'{list(read.state)[:5]}, the network {list(shapes_of(network))[:5]}.'
        )
    check_weights(checkpoint, result.state)
    network.load_state_dict(result.state, strict=False)
    _log(f'{kind} from {checkpoint}: {result.counts}.', doubts, logger)
    return result


def _matched(
    network: nn.Module, state: Mapping[str, Tensor], format: str | None
) -> tuple[Match, list[str]]:
    """Return what fits a backbone or a classifier, and lines on what is doubtful."""
    shapes = shapes_of(network)
    whole = any(name.startswith(OUR_CLASSIFIER) for name in shapes)
    inner = (
        {
            name.removeprefix(BACKBONE): shape
            for name, shape in shapes.items()
            if name.startswith(BACKBONE)
        }
        if whole
        else shapes
    )
    entry, wrapper = choose(state, format, inner)
    converted = to_ours(state, entry, wrapper, inner)
    absent: tuple[str, ...] = ()
    result = match(converted, inner)
    if whole:
        result, absent = match_whole(result, converted, 'classifier', inner, shapes)
    families = [
        kind.__name__
        for kind in type(network.get_submodule('backbone') if whole else network).__mro__
    ]
    doubts = (
        []
        if entry.family in (None, *families)
        else [
            f'files of format {entry.name!r} are those of {entry.family}, the network is '
            f'{families[0]}'
        ]
    )
    if result.misshapen or result.doubtful or result.share < 0.5:
        doubts += result.details()
    if absent:
        doubts.append(f'parts of the network that are not in the file: {", ".join(absent)}')
    return result, doubts + unfit_among(left_out(result, converted))


def _log(line: str, doubts: list[str], logger: Any) -> None:
    from mmengine.logging import print_log

    print_log(line, logger=logger, level=logging.WARNING if doubts else logging.INFO)
    if doubts:
        print_log('\n'.join(doubts), logger=logger, level=logging.WARNING)
