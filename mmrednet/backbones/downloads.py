"""Where a checkpoint lies on this machine, and whether it is the file that its name states.

A checkpoint is given by a path, a URL, or a name that mmengine knows.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_local_path
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models

from ..checkpoints import CheckpointError, read_checkpoint, sha256_of

# mmengine's tables of named checkpoints by scheme
NAMED_CHECKPOINTS = {
    'torchvision': get_torchvision_models,
    'modelzoo': get_torchvision_models,
    'open-mmlab': get_external_models,
    'openmmlab': get_external_models,
}


def local_path(checkpoint: str, stack: ExitStack) -> Path:
    """Return where a checkpoint lies on this machine, after a download if it is elsewhere.

    Nothing is unpickled on the way. Downloads over HTTP are kept in torch's folder for checkpoints.
    Where the name ends in digits of a SHA-256, the file must have it. Other names are kept apart by
    URL.

    Args:
        checkpoint: Path, URL or name, see :func:`mmrednet.backbones.load_pretrained`.
        stack: Context that keeps files of other storage backends until it is closed.

    Raises:
        ValueError: A name is unknown, or the path of a URL does not end in one.
        CheckpointError: What a URL gives holds no weights, or has another SHA-256 than its name
            states.
    """
    scheme, _, name = checkpoint.partition('://')
    if not name:
        return Path(checkpoint)
    if scheme in NAMED_CHECKPOINTS:
        return local_path(_named_url(scheme, name), stack)
    if scheme in ('http', 'https'):
        return _download(checkpoint)
    return Path(stack.enter_context(get_local_path(checkpoint)))


def _named_url(scheme: str, name: str) -> str:
    urls = NAMED_CHECKPOINTS[scheme]()
    if name not in urls:
        raise ValueError(
            f"{scheme}:// must name one of mmengine's {len(urls)} models, got {name!r}."
        )
    return urls[name]


def _download(url: str) -> Path:
    path = _cache_path(url)
    # One process downloads. Where the other processes do not see its disk, they download as well.
    for downloads in (get_rank() == 0, True):
        if downloads and not path.is_file():
            _fetch(url, path)
        barrier()
    # the file may have been there before, from another program
    if hash_in_name(path):
        check_hash(path)
    return path


def _cache_path(url: str) -> Path:
    """Return where a download is kept: by its name if that has a hash, else under a hash of the
    whole URL.
    """
    name = unquote(urlparse(url).path).rpartition('/')[2]
    if name in ('', '.', '..'):
        raise ValueError(f'the path of a URL must end in the name of a file, got {url!r}.')
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    if hash_in_name(name):
        return folder / name
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _fetch(url: str, path: Path) -> None:
    """Download a file, and keep it if it holds weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.download-', dir=path.parent) as folder:
        partial = Path(folder) / path.name
        torch.hub.download_url_to_file(url, str(partial), progress=False)
        try:
            check_hash(partial)
            read_checkpoint(partial, check=False)
        except CheckpointError as error:
            raise CheckpointError(f'what {url} gives is not kept: {error}') from error
        partial.replace(path)


def hash_in_name(path: str | Path) -> str | None:
    """Return the first digits of the SHA-256 in a file's name, as OpenMMLab and torchvision write
    it, if there are any.

    Eight digits that are a date, as 20210517, are no hash.
    """
    match = re.search(r'[-_]([0-9a-f]{8})\.(pth|pt|pth\.tar|safetensors)$', Path(path).name)
    return match[1] if match and not _is_date(match[1]) else None


def _is_date(digits: str) -> bool:
    if not digits.isdecimal() or not digits.startswith('20'):
        return False
    try:
        datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


def check_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        CheckpointError: The file's name states another one.
    """
    digest, stated = sha256_of(path), hash_in_name(path)
    if stated and not digest.startswith(stated):
        raise CheckpointError(
            f'{path} must have the SHA-256 that its name states, {stated}..., got {digest}; fetch '
            'it again, or rename it if you know better.'
        )
    return digest
