"""``init_cfg=dict(type='Pretrained', checkpoint=...)`` of our backbones: read safely, converted, matched, counted."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from .conversion import choose, to_ours
from .errors import CheckpointError
from .inference import shapes_of
from .matching import Match, match
from .reading import hash_in_name, read_checkpoint


def load_pretrained(backbone: nn.Module, checkpoint: str, *, prefix: str | None = None, map_location: Any = 'cpu',
                    format: str | None = None, logger: Any = 'current') -> Match:
    """Fill a backbone with a published file, and log one line of counts.

    What the file does not have keeps its values: a ResNet's file starts the convolution stages of a network whose
    other stages have another operator.

    Args:
        backbone: one of ours.
        checkpoint: a path, a URL, or a name as 'torchvision://resnet50' or 'open-mmlab://...', as mmengine takes them.
        prefix: the part of the file to load, as 'backbone.'; by default found by itself.
        map_location: for mmengine's sake: values are copied to where the backbone is.
        format: of the file, one of :data:`mmrednet.checkpoints.FORMATS`; by default detected from the names.
        logger: of mmengine, for the line of counts.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read safely, or nothing in it fits the backbone.
    """
    del map_location
    with ExitStack() as stack:
        read = read_checkpoint(local_path(checkpoint, stack))
    state = read.state
    if prefix:
        prefix = prefix if prefix.endswith('.') else f'{prefix}.'
        state = {name[len(prefix):]: value for name, value in state.items() if name.startswith(prefix)}
        if not state:
            raise CheckpointError(f'prefix must be that of some names in {checkpoint}, got {prefix!r}; it has '
                                  f'{list(read.state)[:5]}.')
    shapes = shapes_of(backbone)
    entry, wrapper = choose(state, format, shapes)
    result = match(to_ours(state, entry, wrapper, shapes), shapes)
    kind = type(backbone).__name__
    if not result.share:
        raise CheckpointError(f'{checkpoint} fits nothing of this {kind}: {result.counts}.\nThe file has '
                              f'{list(read.state)[:5]}, the network {list(shapes)[:5]}.')
    backbone.load_state_dict(result.state, strict=False)
    _log(f'{kind} from {checkpoint}: {result.counts}.', result, logger)
    return result


def _log(line: str, result: Match, logger: Any) -> None:
    from mmengine.logging import print_log

    doubtful = result.misshapen or result.share < 0.5
    print_log(line, logger=logger, level=logging.WARNING if doubtful else logging.INFO)
    if doubtful:
        print_log('\n'.join(result.details()), logger=logger, level=logging.WARNING)


def local_path(checkpoint: str, stack: ExitStack | None = None) -> Path:
    """Return where a checkpoint lies on this machine, after a download where it is elsewhere.

    Nothing is unpickled on the way. Downloads over HTTP are kept in torch's folder for checkpoints; where the name ends
    in digits of a SHA-256, the file must have it.

    Args:
        checkpoint: see :func:`load_pretrained`.
        stack: keeps files of other storage backends until it is closed.

    Raises:
        ValueError: a name is unknown.
    """
    scheme, _, name = checkpoint.partition('://')
    if not name:
        return Path(checkpoint)
    if scheme in ('torchvision', 'modelzoo', 'open-mmlab', 'openmmlab'):
        return local_path(_named_url(scheme, name), stack)
    if scheme in ('http', 'https'):
        return _downloaded(checkpoint)
    from mmengine.fileio import get_local_path

    if stack is None:
        raise ValueError(f'a checkpoint of {scheme}:// needs a stack to keep it, got {checkpoint!r}.')
    return Path(stack.enter_context(get_local_path(checkpoint)))


def _named_url(scheme: str, name: str) -> str:
    from mmengine.runner import checkpoint

    known = (checkpoint.get_torchvision_models() if scheme in ('torchvision', 'modelzoo')
             else checkpoint.get_external_models())
    if name not in known:
        raise ValueError(f'{scheme}:// must name one of mmengine\'s {len(known)} models, got {name!r}.')
    return known[name]


def _downloaded(url: str) -> Path:
    from mmengine.dist import barrier, get_rank

    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    target = folder / Path(urlparse(url).path).name
    folder.mkdir(parents=True, exist_ok=True)
    # one process downloads; where the others do not see its disk, they do as well
    for downloads in (get_rank() == 0, True):
        if downloads and not target.is_file():
            # torch writes to a temporary file, checks the hash, and renames
            torch.hub.download_url_to_file(url, str(target), hash_prefix=hash_in_name(target), progress=False)
        barrier()
    return target
