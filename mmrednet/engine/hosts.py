"""Whose models we train: mmdet's, mmseg's, or classifiers by mmengine alone, as the config's
``default_scope`` says.
"""

from __future__ import annotations

import atexit
import gc
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.logging import HistoryBuffer
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import digit_version, is_installed

from ..packages import require

HOSTS = ('mmdet', 'mmseg')
# of classifiers, which need no framework
ALONE = 'mmengine'


def scope_of(cfg: Config) -> str:
    """Return the framework that a config is for.

    Raises:
        ValueError: ``default_scope`` is none of ``HOSTS``, nor ``ALONE``.
    """
    scope = cfg.get('default_scope')
    if scope not in (*HOSTS, ALONE):
        raise ValueError(
            f'default_scope must be one of {(*HOSTS, ALONE)}, got {scope!r} in {cfg.filename}. '
            'Configs '
            f"that inherit 'mmdet::...' have it; others state default_scope = 'mmdet'."
        )
    return scope


def read_config(path: str, *, options: dict[str, Any] | None = None) -> Config:
    """Read a config, whatever it is for, and merge the options of the command line.

    Args:
        path: of the config.
        options: what ``--cfg-options`` gives: dotted keys and values.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a framework that it inherits from is not installed; the message says how to get
            it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config must be an existing file, got {path!r}.')
    _know_distributions()
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        # the parser says which package an inherited config lacks, but not how to get it
        for host in HOSTS:
            if host in str(error):
                require(path, host, 'mmcv')
        raise
    cfg.merge_from_dict(options or {})
    return cfg


def load_config(
    path: str,
    *,
    options: dict[str, Any] | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config, merge the options of the command line, and prepare the framework that it is
    for.

    Args:
        path: of the config.
        options: what ``--cfg-options`` gives: dotted keys and values.
        work_dir: for logs and checkpoints; by default that of the config, else ``work_dirs/<name of
            the config>``.
        launcher: of distributed jobs: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the framework is not installed; the message says how to get it.
        ValueError: the config is for another framework.
    """
    cfg = read_config(path, options=options)
    scope = scope_of(cfg)
    require(f'{path} (default_scope {scope!r})', scope, 'mmcv')
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(path).stem)
    if scope in HOSTS:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    allow_checkpoint_globals()
    return cfg


def _know_distributions() -> None:
    """Let mmengine find configs named 'mmseg::...' in the distribution of mmseg that its table does
    not know.
    """
    for host in HOSTS:
        if not is_installed(MODULE2PACKAGE[host]) and is_installed(host):
            MODULE2PACKAGE[host] = host


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config: mmengine's, or the one that ``runner_type`` names.

    Raises:
        ValueError: several processes are asked for without a GPU, by a backend other than gloo.
    """
    if cfg.get('launcher') == 'pytorch' and get_device() == 'cpu':
        _join_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _join_cpu_processes(cfg: Config) -> None:
    """Do what mmengine does for processes with a GPU each: its own code would set the device of
    torch.cuda.
    """
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    if backend != 'gloo':
        raise ValueError(
            f"env_cfg.dist_cfg.backend must be 'gloo' on a machine without GPU, got {backend!r}."
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend)
        atexit.register(_leave_cpu_processes)
    # torch's norms over several processes run on a GPU alone
    cfg.sync_bn = None
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


def _leave_cpu_processes() -> None:
    """End gloo's threads: those that outlive the interpreter abort the process, after its work is
    done.
    """
    # a wrapped model, part of a cycle of references, keeps the group and its threads alive
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def allow_checkpoint_globals() -> None:
    """Let torch read mmengine's own checkpoints with ``weights_only=True``, torch's default since
    2.6.

    Beside tensors they hold the history of logged numbers: buffers of numpy arrays, and the names
        of the buffers'
    methods. Only these are allowed; before torch 2.6 there is nothing to do.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    # how numpy's arrays and scalars are pickled; the modules of these functions differ between its
    # versions
    rebuild = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    codes = np.typecodes['AllInteger'] + np.typecodes['Float'] + '?'
    dtypes = {type(np.dtype(code)) for code in codes}
    allowed: list[Any] = [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        *rebuild,
        *dtypes,
        (_history_method, 'builtins.getattr'),
    ]
    torch.serialization.add_safe_globals(allowed)


def _history_method(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which methods are pickled: all else that it reaches stays out of
    reach.
    """
    if (
        owner is not HistoryBuffer
        or name.startswith('_')
        or not callable(vars(HistoryBuffer).get(name))
    ):
        raise UnpicklingError(
            f'a checkpoint may name public methods of HistoryBuffer, got {name!r} of {owner!r}.'
        )
    return vars(HistoryBuffer)[name]
