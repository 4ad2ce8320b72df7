"""Draw the predictions of an exported file, .onnx, .xml or .pt2, on images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..export.evaluation import PREDICTIONS, add_trust_option, check_files, is_exported
from ..export.runtime import Model, read


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``mmrednet infer`` for an exported file."""
    parser = argparse.ArgumentParser('mmrednet infer', description=__doc__)
    parser.add_argument('model', type=Path, help='exported file, with its .json beside it')
    parser.add_argument('img', type=Path, help='an image, or a folder of images')
    parser.add_argument(
        '--out-dir', type=Path, default=Path('outputs'), help='folder for the pictures'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum score of a detection to draw'
    )
    add_trust_option(parser)
    return parser


def names_exported(argv: Sequence[str]) -> bool:
    """Return whether the first argument is an exported file."""
    return bool(argv) and is_exported(argv[0])


def main(argv: Sequence[str], list_images: Callable[[Path], list[Path]]) -> None:
    """Run the command with these arguments.

    Args:
        argv: The arguments.
        list_images: Returns the images of a folder, or the path of an image.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.img.exists():
        parser.error(f'img must be an existing image or folder, got {args.img}')
    try:
        check_files(args.model, args.trust)
        model = Model(args.model, threads=torch.get_num_threads())
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    draw = {
        'detection': draw_boxes,
        'instances': draw_boxes,
        'segmentation': draw_classes,
        'classification': print_classes,
    }.get(model.description['task'])
    if draw is None:
        task = model.description['task']
        parser.error(f'there is no drawing of a {task} model, got {args.model}')
    for path in list_images(args.img):
        pixels = read(path)
        draw(model, pixels, model(pixels), args.out_dir / path.name, args.score_thr)
        print(args.out_dir / path.name)


def _meta(model: Model) -> dict[str, Any]:
    palette = [tuple(colour) for colour in model.description['palette']]
    return dict(classes=model.description['classes'], palette=palette or 'random')


def draw_boxes(
    model: Model, pixels: np.ndarray, outputs: dict[str, np.ndarray], out_file: Path, score: float
) -> None:
    """Draw detections by mmdet's visualizer."""
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer

    sample = DetDataSample()
    sample.pred_instances = PREDICTIONS['detection'](outputs)[1]
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = _meta(model)
    visualizer.add_datasample(
        out_file.name,
        pixels[..., ::-1].copy(),
        sample,
        draw_gt=False,
        pred_score_thr=score,
        out_file=str(out_file),
    )


def draw_classes(
    model: Model, pixels: np.ndarray, outputs: dict[str, np.ndarray], out_file: Path, _: float
) -> None:
    """Draw classes of pixels by mmseg's visualizer."""
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    sample = SegDataSample()
    sample.pred_sem_seg = PREDICTIONS['segmentation'](outputs)[1]
    visualizer = SegLocalVisualizer(alpha=0.5)
    visualizer.set_dataset_meta(**_class_meta(model, outputs['labels']))
    visualizer.add_datasample(
        out_file.name,
        pixels[..., ::-1].copy(),
        sample,
        draw_gt=False,
        out_file=str(out_file),
    )


def _class_meta(model: Model, labels: np.ndarray) -> dict[str, Any]:
    """Return names and colours of classes; some of our own where the file has none."""
    classes = model.description['classes']
    palette = model.description['palette']
    if not classes:
        classes = [f'class {index}' for index in range(int(labels.max()) + 1)]
    if len(palette) != len(classes):
        palette = np.random.default_rng(0).integers(0, 256, (len(classes), 3)).tolist()
    return dict(classes=classes, palette=palette)


def print_classes(
    model: Model, pixels: np.ndarray, outputs: dict[str, np.ndarray], out_file: Path, _: float
) -> None:
    """Print the most probable classes of an image."""
    scores = outputs['scores'][0]
    classes = model.description['classes']
    for index in np.argsort(-scores)[:5]:
        name = classes[index] if index < len(classes) else f'class {index}'
        print(f'{out_file.name}: {name} {scores[index]:.3f}')
