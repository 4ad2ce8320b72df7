"""Train the model of a config, of mmdet or of mmseg."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrednet import safe_loading
from mmrednet.engine import (
    TrainParser,
    apply_train_options,
    build_runner,
    check_classes,
    check_labels_when_loaded,
    check_pretrained,
    load_config,
)


@safe_loading()
def main():
    args = TrainParser(__doc__).parse_args()
    cfg = load_config(
        args.config, options=args.cfg_options, work_dir=args.work_dir, launcher=args.launcher
    )
    apply_train_options(cfg, amp=args.amp, auto_scale_lr=args.auto_scale_lr, resume=args.resume)
    check_classes(cfg)
    check_pretrained(cfg)
    check_labels_when_loaded(cfg)
    build_runner(cfg).train()


if __name__ == '__main__':
    main()
