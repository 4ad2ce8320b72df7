"""Checks before training that the checkpoints which a config starts from exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config


def check_pretrained(cfg: Config) -> None:
    """Check that the local checkpoints in a config's ``init_cfg`` exist.

    Args:
        cfg: Config with a model.

    Raises:
        FileNotFoundError: One does not. The message names its key, and how to train without it.
    """
    for key, path in _checkpoint_paths(cfg.model, 'model'):
        if '://' not in path and not Path(path).is_file():
            part = key.removesuffix('.init_cfg.checkpoint')
            raise FileNotFoundError(
                f'{key} must be an existing file, got {path!r}. Put the published weights there, '
                f'give their path by --cfg-options {key}=PATH, or train from scratch by '
                f'--cfg-options {part}.init_cfg=None {part}.frozen_stages=-1 '
                f'{part}.norm_eval=False.'
            )


def _checkpoint_paths(cfg: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the path of every ``Pretrained`` checkpoint below a key."""
    if isinstance(cfg, dict):
        if str(cfg.get('type')).rpartition('.')[2] == 'Pretrained' and isinstance(
            cfg.get('checkpoint'), str
        ):
            yield f'{key}.checkpoint', cfg['checkpoint']
        for name, value in cfg.items():
            yield from _checkpoint_paths(value, f'{key}.{name}')
