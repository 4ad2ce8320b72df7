"""Train or evaluate a classifier on images in one folder per class, by mmengine alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrednet import safe_loading
from mmrednet.checkpoints import read_checkpoint
from mmrednet.engine import (
    FitHook,
    TrainParser,
    apply_train_options,
    build_runner,
    check_data,
    check_pretrained,
    keep_memory_on_cpu,
    load_config,
    named_types,
)
from mmrednet.pretraining import check_batches, use_image_folders


@safe_loading()
@named_types()
def main():
    parser = TrainParser(__doc__)
    parser.add_argument(
        '--data',
        metavar='ROOT',
        help='folder with train and val, each with a folder per class',
    )
    parser.add_argument(
        '--test',
        metavar='CHECKPOINT',
        help='evaluate this checkpoint instead of training: one that this script or '
        'convert.py --to classifier wrote',
    )
    args = parser.parse_args()
    cfg = load_config(
        args.config, options=args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    use_image_folders(cfg, args.data)
    check_data(cfg)
    if args.test:
        state = read_checkpoint(args.test).state
        runner = build_runner(cfg)
        keep_memory_on_cpu()
        # a model of several processes is wrapped
        model = getattr(runner.model, 'module', runner.model)
        model.load_state_dict(state, strict=True)
        runner.test()
    else:
        apply_train_options(cfg, amp=args.amp, auto_scale_lr=args.auto_scale_lr, resume=args.resume)
        check_pretrained(cfg)
        runner = build_runner(cfg)
        # after the runner has joined the group of processes
        check_batches(cfg)
        runner.register_hook(FitHook(training=True))
        keep_memory_on_cpu()
        runner.train()


if __name__ == '__main__':
    main()
