"""Train or evaluate a classifier on images in one folder per class, by mmengine alone."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from mmengine.config import Config

from .. import safe_loading
from ..checkpoints import read_checkpoint
from ..engine import (
    FitHook,
    add_train_options,
    apply_train_options,
    build_runner,
    check_data,
    check_pretrained,
    keep_memory_on_cpu,
    load_config,
    named_types,
)
from ..pretraining import check_batches, use_image_folders
from .parser import CommandParser


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('pretrain', __doc__)
    add_train_options(parser)
    parser.add_argument(
        '--data',
        metavar='ROOT',
        help='folder with train and val, each with a folder per class',
    )
    parser.add_argument(
        '--test',
        metavar='CHECKPOINT',
        help='evaluate this checkpoint instead of training: one that this command or '
        'mmrednet convert --to classifier wrote',
    )
    return parser


@safe_loading()
@named_types()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = make_parser().parse_args(argv)
    cfg = load_config(
        args.config, options=args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    use_image_folders(cfg, args.data)
    check_data(cfg)
    if args.test:
        evaluate(cfg, args.test)
        return
    apply_train_options(cfg, amp=args.amp, auto_scale_lr=args.auto_scale_lr, resume=args.resume)
    check_pretrained(cfg)
    runner = build_runner(cfg)
    # after the runner has joined the group of processes
    check_batches(cfg)
    runner.register_hook(FitHook(training=True))
    keep_memory_on_cpu()
    runner.train()


def evaluate(cfg: Config, checkpoint: str) -> None:
    """Evaluate a checkpoint that must have all weights of the classifier."""
    state = read_checkpoint(checkpoint).state
    runner = build_runner(cfg)
    keep_memory_on_cpu()
    # a model of several processes is wrapped
    model = getattr(runner.model, 'module', runner.model)
    model.load_state_dict(state, strict=True)
    runner.test()
