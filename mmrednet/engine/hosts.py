"""The frameworks whose models we train: mmdet and mmseg, chosen by the config's ``default_scope``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from ..packages import require

HOSTS = ('mmdet', 'mmseg')


def scope_of(cfg: Config) -> str:
    """Return the framework that a config is for.

    Raises:
        ValueError: ``default_scope`` is none of ``HOSTS``.
    """
    scope = cfg.get('default_scope')
    if scope not in HOSTS:
        raise ValueError(f'default_scope must be one of {HOSTS}, got {scope!r} in {cfg.filename}. Configs that inherit '
                         f"'mmdet::...' have it; others state default_scope = 'mmdet'.")
    return scope


def load_config(path: str, *, options: dict[str, Any] | None = None, work_dir: str | None = None,
                launcher: str = 'none') -> Config:
    """Read a config, merge the options of the command line, and prepare the framework that it is for.

    Args:
        path: of the config.
        options: what ``--cfg-options`` gives: dotted keys and values.
        work_dir: for logs and checkpoints; by default that of the config, else ``work_dirs/<name of the config>``.
        launcher: of distributed jobs: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the framework is not installed; the message says how to get it.
        ValueError: the config is for another framework.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config must be an existing file, got {path!r}.')
    text = Path(path).read_text()
    for host in HOSTS:
        # a base of a framework that is missing would fail inside the parser, with an unhelpful message
        if f'{host}::' in text:
            require(f'{path}', host, 'mmcv')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    scope = scope_of(cfg)
    require(f'{path} (default_scope {scope!r})', scope, 'mmcv')
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(path).stem)
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    allow_checkpoint_globals()
    return cfg


def allow_checkpoint_globals() -> None:
    """Let torch read mmengine's own checkpoints with ``weights_only=True``, torch's default since 2.6.

    Beside tensors they hold the history of logged numbers: buffers of numpy arrays. Only these types are allowed.
    """
    # how numpy's arrays and scalars are pickled; the modules of these functions differ between its versions
    rebuild = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    allowed: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, *rebuild, *dtypes]
    torch.serialization.add_safe_globals(allowed)
