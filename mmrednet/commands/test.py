"""Evaluate a checkpoint with the metric of its config, of mmdet or of mmseg."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import DictAction

from mmrednet import safe_loading
from mmrednet.engine import (
    FitHook,
    add_check_options,
    apply_test_options,
    build_runner,
    check_data,
    keep_memory_on_cpu,
    load_config,
    named_types,
)
from mmrednet.fusion import FuseHook


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
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
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override parts of the config',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--tta', action='store_true', help='merge predictions for augmented copies of each image'
    )
    parser.add_argument(
        '--fuse-conv-bn',
        action='store_true',
        help='fold batch norms into the layers before them, for faster inference',
    )
    add_check_options(parser)
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@safe_loading()
@named_types()
def main():
    args = parse_args()
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
    runner = build_runner(cfg)
    keep_memory_on_cpu()
    runner.register_hook(FitHook())
    if prepare:
        prepare(runner)
    if args.fuse_conv_bn:
        runner.register_hook(FuseHook())
    runner.test()


if __name__ == '__main__':
    main()
