"""Are the files that a config starts from there? Asked before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config


def check_pretrained(cfg: Config) -> None:
    """Check that local checkpoints which a config initialises its model from exist.

    Raises:
        FileNotFoundError: one does not; the message names its key, and how to train without it.
    """
    for key, path in _checkpoints(cfg.model, 'model'):
        if '://' not in path and not Path(path).is_file():
            part = key.removesuffix('.init_cfg.checkpoint')
            raise FileNotFoundError(
                f'{key} must be an existing file, got {path!r}. Put the published weights there, '
                'give their path by '
                f'--cfg-options {key}=PATH, or train from scratch by --cfg-options '
                f'{part}.init_cfg=None '
                f'{part}.frozen_stages=-1 {part}.norm_eval=False.'
            )


def _checkpoints(cfg: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(cfg, dict):
        if str(cfg.get('type')).rpartition('.')[2] == 'Pretrained' and isinstance(
            cfg.get('checkpoint'), str
        ):
            yield f'{key}.checkpoint', cfg['checkpoint']
        for name, value in cfg.items():
            yield from _checkpoints(value, f'{key}.{name}')
