"""Train the model of a config, of mmdet or of mmseg."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from .. import safe_loading
from ..engine import (
    FitHook,
    add_check_options,
    add_train_options,
    apply_train_options,
    build_runner,
    check_data,
    check_pretrained,
    keep_memory_on_cpu,
    load_config,
    named_types,
)
from .parser import CommandParser


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('train', __doc__)
    add_train_options(parser)
    add_check_options(parser)
    return parser


@safe_loading()
@named_types()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = make_parser().parse_args(argv)
    cfg = load_config(
        args.config, options=args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    apply_train_options(cfg, amp=args.amp, auto_scale_lr=args.auto_scale_lr, resume=args.resume)
    check_pretrained(cfg)
    check_data(cfg, strict=args.strict, check_images=args.check_images)
    runner = build_runner(cfg)
    runner.register_hook(FitHook(training=True))
    keep_memory_on_cpu()
    runner.train()
