"""From a config to a runner, for the framework that ``default_scope`` names: mmdet, mmseg, or
mmengine alone for classifiers.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import digit_version, is_installed

from ..checkpoints.safe_loading import training_globals
from ..config_names import register_configs, resolve_config
from ..packages import require

# what the frameworks print and warn of when they are imported: optional packages that our configs
# do not need
OPTIONAL_LINE, OPTIONAL_WARNING = 'Could not import OneDL', 'faster_coco_eval is not installed'
HOSTS = ('mmdet', 'mmseg')
# scope of classifiers, which need no other framework
CLASSIFIER_SCOPE = 'mmengine'


def scope_of(cfg: Config) -> str:
    """Return the framework that a config is for.

    Raises:
        ValueError: ``default_scope`` is neither in ``HOSTS`` nor ``CLASSIFIER_SCOPE``.
    """
    scope = cfg.get('default_scope')
    scopes = (*HOSTS, CLASSIFIER_SCOPE)
    if scope not in scopes:
        raise ValueError(
            f'default_scope must be one of {scopes}, got {scope!r} in {cfg.filename}. Configs that '
            "inherit 'mmdet::...' have it; others state default_scope = 'mmdet'."
        )
    return scope


def read_config(path: str, *, options: dict[str, Any] | None = None) -> Config:
    """Read a config and merge the options of the command line.

    Args:
        path: Path of the config, or a name such as 'mmrednet::rednet/...'.
        options: Dotted keys and values, as ``--cfg-options`` gives them.

    Raises:
        FileNotFoundError: The file does not exist, or one that it inherits from.
        ImportError: A framework that it inherits from is not installed. The message says how to
            install it.
    """
    file = resolve_config(path)
    _name_distributions()
    register_configs()
    try:
        cfg = Config.fromfile(file)
    except ModuleNotFoundError as error:
        # mmengine's error names the missing package; ours says how to install it as well
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
    """Read a config, merge the options of the command line, and register the framework's classes.

    Args:
        path: Path of the config, or a name such as 'mmrednet::rednet/...'.
        options: Dotted keys and values, as ``--cfg-options`` gives them.
        work_dir: Folder for logs and checkpoints. Default: that of the config, or else
            ``work_dirs/<name of the config>``.
        launcher: Launcher of distributed jobs: 'none', 'pytorch', 'slurm' or 'mpi'.
            Default: 'none'.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: The framework is not installed. The message says how to install it.
        ValueError: The config is for another framework.
    """
    cfg = read_config(path, options=options)
    scope = scope_of(cfg)
    require(f'{path} (default_scope {scope!r})', scope, 'mmcv')
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(path).stem)
    _allow_no_workers(cfg)
    if scope in HOSTS:
        register_host(scope)
    allow_checkpoint_globals()
    return cfg


def register_host(scope: str) -> None:
    """Import a framework and register its classes, without what its imports print.

    In a function, so that importing the engine loads neither framework.

    Args:
        scope: 'mmdet' or 'mmseg'.
    """
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.filterwarnings('ignore', OPTIONAL_WARNING)
            import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    finally:
        lines = printed.getvalue().splitlines()
        for line in lines:
            if not line.startswith(OPTIONAL_LINE):
                print(line)


def _allow_no_workers(cfg: Config) -> None:
    """Drop what torch's loader refuses without workers, which stock configs set."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if isinstance(loader, dict) and loader.get('num_workers') == 0:
            loader.pop('persistent_workers', None)
            loader.pop('prefetch_factor', None)


def _name_distributions() -> None:
    """Let mmengine find configs named 'mmseg::...' in either distribution of mmseg.

    Its table maps an import name to the distribution to look for, and names only one of the two.
    """
    for host in HOSTS:
        if not is_installed(MODULE2PACKAGE[host]) and is_installed(host):
            MODULE2PACKAGE[host] = host


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config: mmengine's, or the one that ``runner_type`` names.

    Raises:
        ValueError: The config is for several processes on CPUs and for a backend other than gloo.
    """
    if cfg.get('launcher') == 'pytorch' and get_device() == 'cpu':
        _join_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _join_cpu_processes(cfg: Config) -> None:
    """Join a group of processes without GPUs, and prepare the config for it.

    mmengine's own code for a group sets the device of torch.cuda.
    """
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    if backend != 'gloo':
        raise ValueError(
            f"env_cfg.dist_cfg.backend must be 'gloo' on a machine without GPU, got {backend!r}."
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend)
        atexit.register(_leave_cpu_processes)
    # torch's SyncBatchNorm needs a GPU
    cfg.sync_bn = None
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


def _leave_cpu_processes() -> None:
    """End gloo's threads: if they outlive the interpreter, they abort the process."""
    # a wrapped model is part of a cycle of references and keeps the group alive until collected
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def allow_checkpoint_globals() -> None:
    """Let torch read mmengine's own checkpoints with ``weights_only=True``, its default since 2.6.

    Beside tensors these files hold the history of logged numbers: buffers, numpy arrays, and the
    names of the buffers' methods. Only these are allowed. Before torch 2.6 there is nothing to do.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    torch.serialization.add_safe_globals(training_globals())
