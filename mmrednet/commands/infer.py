"""Draw the predictions of a checkpoint, of mmdet or of mmseg, on images."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import DictAction

from mmrednet import fuse, safe_loading
from mmrednet.engine import check_fit, keep_memory_on_cpu, load_config, named_types, scope_of

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('img', type=Path, help='an image, or a folder of images')
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--out-dir', type=Path, default=Path('outputs'), help='folder for the pictures'
    )
    parser.add_argument('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum score of a detection to draw'
    )
    parser.add_argument(
        '--fuse-conv-bn',
        action='store_true',
        help='fold batch norms into the layers before them, for faster inference',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override parts of the config',
    )
    args = parser.parse_args()
    if not args.img.exists():
        parser.error(f'img must be an existing image or folder, got {args.img}')
    if args.out_dir.resolve() == (args.img if args.img.is_dir() else args.img.parent).resolve():
        parser.error(
            '--out-dir must be another folder than that of the images, which would be '
            f'overwritten, got {args.out_dir}'
        )
    return args


def detect(cfg, args, images):
    from mmdet.apis import inference_detector, init_detector
    from mmdet.registry import VISUALIZERS

    model = init_detector(cfg, args.checkpoint, device=args.device)
    check_fit(model, args.checkpoint)
    model = fuse(model) if args.fuse_conv_bn else model
    visualizer = VISUALIZERS.build(cfg.visualizer)
    visualizer.dataset_meta = model.dataset_meta
    for image, out_file, path in images:
        visualizer.add_datasample(
            path.name,
            image,
            inference_detector(model, str(path)),
            draw_gt=False,
            pred_score_thr=args.score_thr,
            out_file=str(out_file),
        )


def segment(cfg, args, images):
    from mmseg.apis import inference_model, init_model, show_result_pyplot

    model = init_model(cfg, args.checkpoint, device=args.device)
    check_fit(model, args.checkpoint)
    model = fuse(model) if args.fuse_conv_bn else model
    for _, out_file, path in images:
        show_result_pyplot(
            model, str(path), inference_model(model, str(path)), show=False, out_file=str(out_file)
        )


def read(paths, out_dir):
    import mmcv

    for path in paths:
        out_file = out_dir / path.name
        yield mmcv.imread(path, channel_order='rgb'), out_file, path
        print(out_file)


@safe_loading()
@named_types()
def main():
    args = parse_args()
    cfg = load_config(args.config, options=args.cfg_options)
    paths = [args.img]
    if args.img.is_dir():
        files = sorted(args.img.iterdir())
        paths = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS]
    if not paths:
        sys.exit(f'img must be a folder with images ({", ".join(IMAGE_ENDINGS)}), got {args.img}')
    args.out_dir.mkdir(parents=True, exist_ok=True)
    keep_memory_on_cpu(args.device)
    draw = {'mmdet': detect, 'mmseg': segment}[scope_of(cfg)]
    draw(cfg, args, read(paths, args.out_dir))


if __name__ == '__main__':
    main()
