"""Options of the training and test scripts, and how they change a config."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device

from . import cpu_amp  # noqa: F401  registers the wrapper
from .hosts import scope_of
from .resuming import resume_from

# for detectors whose config has no tta_model: the suppression that most of mmdet's configs use
DETECTION_TTA_MODEL = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
)
# what DetTTAModel needs to flip boxes back and to scale them to the original image
FLIP_META_KEYS = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'flip',
    'flip_direction',
)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes that reads a config: its path, and overrides."""
    parser.add_argument(
        'config', help="path of the config, or a name such as 'mmrednet::rednet/...'"
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override parts of the config, as model.backbone.depth=26',
    )


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that may run in several processes."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that trains."""
    add_config_options(parser)
    parser.add_argument('--work-dir', help='for logs and checkpoints')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or from the newest one that loads',
    )
    add_launcher_options(parser)


def apply_train_options(
    cfg: Config, *, amp: bool = False, auto_scale_lr: bool = False, resume: str | None = None
) -> None:
    """Apply the options of a training script to a config, and let its checkpoints be resumable, see
    :class:`ResumableCheckpointHook`.

    Args:
        cfg: Config to change in place.
        amp: True to train under autocast, with a dynamic loss scale or, on a CPU, in bfloat16.
            Default: False.
        auto_scale_lr: True to scale the learning rate with the batch size. Default: False.
        resume: Path of a checkpoint to continue from, or 'auto' for the latest one in the work
            directory. Default: None, a new run.

    Raises:
        ValueError: The config has no ``auto_scale_lr.base_batch_size``, or an optimizer wrapper
            without autocast.
        CheckpointError: The work directory has checkpoints, but none loads.
    """
    if amp:
        wrapper_type = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if wrapper_type not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(
                "--amp needs optim_wrapper.type to be 'OptimWrapper' or 'AmpOptimWrapper', got "
                f'{wrapper_type!r}.'
            )
        _use_amp(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, '
                f'got auto_scale_lr={cfg.get("auto_scale_lr")}.'
            )
        cfg.auto_scale_lr.enable = True
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if hook and hook.type in ('CheckpointHook', 'mmengine.CheckpointHook'):
        hook.type = 'mmrednet.ResumableCheckpointHook'
    if resume:
        resume_from(cfg, resume)


def _use_amp(cfg: Config) -> None:
    """Set the optimizer wrapper for autocast: float16 with a loss scale, on a CPU bfloat16."""
    if get_device() == 'cpu':
        # mmengine's wrapper refuses CPUs; bfloat16 needs no scale
        cfg.optim_wrapper.update(type='CpuAmpOptimWrapper')
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(name, None)
        return
    cfg.optim_wrapper.update(type='AmpOptimWrapper')
    # a config may state a fixed scale
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def apply_test_options(
    cfg: Config,
    *,
    checkpoint: str,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
) -> Callable | None:
    """Apply the options of a test script to a config.

    Args:
        cfg: Config to change in place.
        checkpoint: Path of the checkpoint to test.
        out: Path of a ``.pkl`` file for the predictions of mmdet, or of a folder for the label maps
            of mmseg. Default: None, predictions are not kept.
        show: True to open a window for every image. Default: False.
        show_dir: Folder for drawn images, below the work directory. Default: None.
        wait_time: Seconds that a window stays open. Default: 2.
        tta: True to merge the predictions for augmented copies of every image. Default: False.

    Returns:
        A function to call with the runner before it tests, or None.

    Raises:
        ValueError: ``out`` has another suffix, or the config has nothing to draw or augment with.
    """
    cfg.load_from = checkpoint
    if show or show_dir:
        _draw_predictions(cfg, show, show_dir, wait_time)
    if tta:
        _apply_tta(cfg)
    if out is None:
        return None
    if scope_of(cfg) == 'mmdet':
        return _dump_detections(out)
    _dump_labels(cfg, out)
    return None


def _draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    hooks = cfg.get('default_hooks', {})
    if 'visualization' not in hooks:
        raise ValueError(
            '--show and --show-dir need default_hooks.visualization in the config, got '
            f'default_hooks={list(hooks)}.'
        )
    hooks.visualization.update(draw=True, show=show, wait_time=wait_time)
    if show_dir and scope_of(cfg) == 'mmdet':
        hooks.visualization.test_out_dir = show_dir
    elif show_dir:
        # mmseg's hook has no folder of its own
        cfg.visualizer.save_dir = show_dir


def _apply_tta(cfg: Config) -> None:
    """Wrap the model and the pipeline of the test data for augmentation at test time."""
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    # flips serve every detector; scales of segmenters depend on the data
    if missing and scope_of(cfg) != 'mmdet':
        raise ValueError(
            f'--tta needs tta_model and tta_pipeline in a segmentation config, {missing} not found.'
        )
    # the pipeline belongs to the data set inside of wrappers
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    cfg.model = ConfigDict(cfg.get('tta_model', DETECTION_TTA_MODEL), module=cfg.model)
    # the last step packs the results and must follow each augmentation
    flips = dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [dict(type='PackDetInputs', meta_keys=FLIP_META_KEYS)],
        ],
    )
    dataset.pipeline = cfg.get('tta_pipeline', [*deepcopy(dataset.pipeline[:-1]), flips])


def _dump_detections(out: str) -> Callable:
    """Return a function that lets a runner write all detections to a file."""
    if not out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end in .pkl or .pickle for a detector, got {out!r}.')
    from mmdet.evaluation import DumpDetResults

    return lambda runner: runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))


def _dump_labels(cfg: Config, out: str) -> None:
    """Let the evaluators of a segmenter write all label maps to a folder."""
    evaluators = cfg.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        evaluator.update(output_dir=out, keep_results=True)
