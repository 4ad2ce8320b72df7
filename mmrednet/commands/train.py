"""Train the model of a config, of mmdet or of mmseg."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrednet import safe_loading
from mmrednet.engine import (
    FitHook,
    TrainParser,
    add_check_options,
    apply_train_options,
    build_runner,
    check_data,
    check_pretrained,
    keep_memory_on_cpu,
    load_config,
    named_types,
)


@safe_loading()
@named_types()
def main():
    parser = TrainParser(__doc__)
    add_check_options(parser)
    args = parser.parse_args()
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


if __name__ == '__main__':
    main()
