"""Where a checkpoint lies on this machine: a path, a URL, or a name that mmengine knows."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch

from .errors import CheckpointError
from .reading import check_hash, hash_in_name, read_checkpoint


def local_path(checkpoint: str, stack: ExitStack | None = None) -> Path:
    """Return where a checkpoint lies on this machine, after a download where it is elsewhere.

    Nothing is unpickled on the way. Downloads over HTTP are kept in torch's folder for checkpoints;
    where the name ends in digits of a SHA-256, the file must have it, and other names are kept
    apart by URL.

    Args:
        checkpoint: see :func:`mmrednet.checkpoints.load_pretrained`.
        stack: keeps files of other storage backends until it is closed.

    Raises:
        ValueError: a name is unknown, or a URL ends in none.
        CheckpointError: what a URL gives is no file of weights, or has another SHA-256 than its
            name states.
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
        raise ValueError(
            f'a checkpoint of {scheme}:// needs a stack to keep it, got {checkpoint!r}.'
        )
    return Path(stack.enter_context(get_local_path(checkpoint)))


def _named_url(scheme: str, name: str) -> str:
    from mmengine.runner import checkpoint

    known = (
        checkpoint.get_torchvision_models()
        if scheme in ('torchvision', 'modelzoo')
        else checkpoint.get_external_models()
    )
    if name not in known:
        raise ValueError(
            f"{scheme}:// must name one of mmengine's {len(known)} models, got {name!r}."
        )
    return known[name]


def _downloaded(url: str) -> Path:
    from mmengine.dist import barrier, get_rank

    target = _kept_at(url)
    # one process downloads; where the others do not see its disk, they do as well
    for downloads in (get_rank() == 0, True):
        if downloads and not target.is_file():
            _fetch(url, target)
        barrier()
    if hash_in_name(target):
        check_hash(target)
    return target


def _kept_at(url: str) -> Path:
    """Return where a download is kept: by its name where that has a hash, else under digits of the
    whole URL.
    """
    name = unquote(urlparse(url).path).rpartition('/')[2]
    if name in ('', '.', '..'):
        raise ValueError(f'the path of a URL must end in the name of a file, got {url!r}.')
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    return (
        folder / name
        if hash_in_name(name)
        else folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    )


def _fetch(url: str, target: Path) -> None:
    """Download a file that is kept if it is one of weights."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.download-', dir=target.parent) as folder:
        fetched = Path(folder) / target.name
        torch.hub.download_url_to_file(url, str(fetched), progress=False)
        try:
            check_hash(fetched)
            read_checkpoint(fetched, check=False)
        except CheckpointError as error:
            raise CheckpointError(f'what {url} gives is not kept: {error}') from error
        fetched.replace(target)
