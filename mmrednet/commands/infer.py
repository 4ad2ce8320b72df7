"""Draw the predictions of a checkpoint, of mmdet or of mmseg, on images."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from .. import fuse, safe_loading
from ..engine import (
    add_config_options,
    check_device,
    check_fit,
    keep_memory_on_cpu,
    load_config,
    named_types,
    scope_of,
)
from . import infer_exported
from .parser import CommandParser

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
# an image, the file for its picture, its own path
Item = tuple[Any, Path, Path]


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('infer', __doc__)
    parser.add_argument('img', type=Path, help='an image, or a folder of images')
    add_config_options(parser)
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
    return parser


def parse_args(argv: Sequence[str] | None) -> Namespace:
    """Parse the arguments, and check the paths of the images and of the pictures."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.img.exists():
        parser.error(f'img must be an existing image or folder, got {args.img}')
    if args.out_dir.resolve() == (args.img if args.img.is_dir() else args.img.parent).resolve():
        parser.error(
            '--out-dir must be another folder than that of the images, which would be '
            f'overwritten, got {args.out_dir}'
        )
    return args


def detect(cfg: Config, args: Namespace, images: Iterable[Item]) -> None:
    """Draw the predictions of a model of mmdet."""
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


def segment(cfg: Config, args: Namespace, images: Iterable[Item]) -> None:
    """Draw the predictions of a model of mmseg."""
    from mmseg.apis import inference_model, init_model, show_result_pyplot

    model = init_model(cfg, args.checkpoint, device=args.device)
    check_fit(model, args.checkpoint)
    model = fuse(model) if args.fuse_conv_bn else model
    for _, out_file, path in images:
        show_result_pyplot(
            model, str(path), inference_model(model, str(path)), show=False, out_file=str(out_file)
        )


def read_images(paths: Iterable[Path], out_dir: Path) -> Iterator[Item]:
    """Yield each image, and print the path of its picture once it is drawn."""
    import mmcv

    for path in paths:
        out_file = out_dir / path.name
        yield mmcv.imread(path, channel_order='rgb'), out_file, path
        print(out_file)


def list_images(path: Path) -> list[Path]:
    """Return the images of a folder, or the path itself."""
    if not path.is_dir():
        return [path]
    images = [file for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGE_ENDINGS]
    if not images:
        raise ValueError(
            f'img must be a folder with images ({", ".join(IMAGE_ENDINGS)}), got {path}'
        )
    return images


@safe_loading()
@named_types()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process.

    An exported file in place of the config and the checkpoint comes first.
    """
    argv = sys.argv[1:] if argv is None else argv
    if infer_exported.names_exported(argv):
        infer_exported.main(argv, list_images)
        return
    args = parse_args(argv)
    cfg = load_config(args.config, options=args.cfg_options)
    check_device(args.device, scope_of(cfg))
    paths = list_images(args.img)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    keep_memory_on_cpu(args.device)
    draw = {'mmdet': detect, 'mmseg': segment}[scope_of(cfg)]
    draw(cfg, args, read_images(paths, args.out_dir))
