"""Evaluate a checkpoint with the metric of its config, of mmdet or of mmseg.

An exported file, .onnx, .xml or .pt2, takes the place of a checkpoint.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from .. import safe_loading
from ..engine import (
    FitHook,
    add_check_options,
    add_config_options,
    add_launcher_options,
    apply_test_options,
    build_runner,
    check_data,
    keep_memory_on_cpu,
    load_config,
    named_types,
)
from ..export.evaluation import add_trust_option, check_files, is_exported
from ..fusion import FuseHook
from .parser import CommandParser


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('test', __doc__)
    add_config_options(parser)
    parser.add_argument('checkpoint', help='path of the checkpoint, or of an exported file')
    parser.add_argument('--work-dir', help='folder for logs and metrics')
    parser.add_argument(
        '--out',
        help='detection: a .pkl file for all predictions; segmentation: a folder for labels',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', help='folder, inside the work directory, for images with predictions'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that a window stays')
    parser.add_argument(
        '--tta', action='store_true', help='merge predictions for augmented copies of each image'
    )
    parser.add_argument(
        '--fuse-conv-bn',
        action='store_true',
        help='fold batch norms into the layers before them, for faster inference',
    )
    add_trust_option(parser)
    add_check_options(parser)
    add_launcher_options(parser)
    return parser


def _check_exported(parser: ArgumentParser, args: Namespace) -> None:
    """End the command if the exported file is not there, or not trusted although it has to be."""
    try:
        check_files(Path(args.checkpoint), args.trust)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


@safe_loading()
@named_types()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = make_parser()
    args = parser.parse_args(argv)
    exported = is_exported(args.checkpoint)
    if exported and (args.tta or args.fuse_conv_bn):
        parser.error('--tta and --fuse-conv-bn need a checkpoint, not an exported file')
    if exported:
        _check_exported(parser, args)
    cfg = load_config(
        args.config, options=args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    prepare = apply_test_options(
        cfg,
        checkpoint=args.checkpoint,
        out=args.out,
        show=args.show,
        show_dir=args.show_dir,
        wait_time=args.wait_time,
        tta=args.tta,
    )
    check_data(
        cfg,
        loaders=['test_dataloader'],
        strict=args.strict,
        check_images=args.check_images,
    )
    if exported:
        cfg.model = dict(type='mmrednet.ExportedModel', path=args.checkpoint, trust=args.trust)
        cfg.load_from = None
    runner = build_runner(cfg)
    keep_memory_on_cpu()
    if not exported:
        runner.register_hook(FitHook())
    if prepare:
        prepare(runner)
    if args.fuse_conv_bn:
        runner.register_hook(FuseHook())
    runner.test()
