"""Draw what a detector, a segmenter or a panoptic detector sees.

Without photographs: predictions beside the ground truth for images of the test set, and the kernels
of involutions. With photographs: what the operators of chosen layers apply to each of them.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from .. import safe_loading
from ..analysis import (
    ModelImage,
    attention_maps,
    class_activation,
    draw_attention_maps,
    draw_detections,
    draw_panoptics,
    draw_segmentations,
    model_image,
)
from ..analysis.attention_views import ROLLOUT, VIEWS
from ..analysis.class_activation import METHODS
from ..analysis.panels import display_image
from ..engine import (
    add_config_options,
    check_data,
    check_device,
    check_fit,
    load_config,
    named_types,
    scope_of,
)
from ..engine.hosts import CLASSIFIER_SCOPE
from ..layers import Involution
from .parser import CommandParser

# how many images of the test set are drawn
IMAGES = 6
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('draw', __doc__)
    add_config_options(parser)
    parser.add_argument('checkpoint', help="path of the checkpoint, or 'none' for random weights")
    parser.add_argument('photos', nargs='*', type=Path, help='photographs, or folders of them')
    parser.add_argument(
        '--out',
        '--out-dir',
        type=Path,
        default=Path('outputs'),
        help='folder for the pictures, or a PNG for that of one photograph; default: outputs',
    )
    attention = parser.add_argument_group('attention maps of photographs')
    attention.add_argument(
        '--layers', nargs='+', default=['*'], metavar='PATTERN', help='default: all layers'
    )
    attention.add_argument(
        '--view',
        choices=[*VIEWS, ROLLOUT, *METHODS],
        help='default: the first view that each layer has',
    )
    attention.add_argument(
        '--at',
        nargs=2,
        type=float,
        metavar=('X', 'Y'),
        help='pixel of the photograph for query, points and rollout; default: its centre',
    )
    attention.add_argument('--heads', choices=['mean', 'each'], default='mean')
    attention.add_argument('--columns', type=int, default=4, help='panels in a row; default: 4')
    attention.add_argument(
        '--target',
        type=int,
        help='for grad-cam, the number of the detection or class; default: the best one',
    )
    parser.add_argument(
        '--images',
        type=int,
        nargs='+',
        help='indices into the test set; default: the first six',
    )
    parser.add_argument(
        '--scale',
        type=int,
        help='how much to enlarge the images; default: detections are drawn with a longest side of '
        '384 pixels, maps twice as large as they are',
    )
    parser.add_argument('--device', default='cpu')
    return parser


def parse_args(argv: Sequence[str] | None) -> Namespace:
    """Parse the arguments, and check the paths of the photographs and of the pictures."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.checkpoint == 'none':
        args.checkpoint = None
    missing = [str(path) for path in args.photos if not path.exists()]
    if missing:
        parser.error(f'photos must be existing images or folders, got {", ".join(missing)}')
    several = len(args.photos) != 1 or args.photos[0].is_dir()
    if args.columns < 1:
        parser.error(f'--columns must be at least 1, got {args.columns}')
    if args.out.suffix and several:
        parser.error(f'--out must be a folder unless there is one photograph, got {args.out}')
    return args


def last_involution_of_each_stage(model: nn.Module) -> dict[str, str]:
    """Return the name of the last involution of the backbone's stem and of each of its stages."""
    stages = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Involution) and name.startswith('backbone.'):
            stages[name.split('.')[1]] = name
    return stages


def open_detector(cfg: Config, args: Namespace) -> nn.Module:
    """Build a model of mmdet and load its weights."""
    from mmdet.apis import init_detector

    return init_detector(cfg, args.checkpoint, device=args.device)


def open_segmenter(cfg: Config, args: Namespace) -> nn.Module:
    """Build a model of mmseg and load its weights."""
    from mmseg.apis import init_model

    return init_model(cfg, args.checkpoint, device=args.device)


def open_classifier(cfg: Config, args: Namespace) -> nn.Module:
    """Build a classifier; check_fit loads its checkpoint."""
    with MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
        model = registry.build(cfg.model)
    return model.to(args.device).eval()


# task: function that opens a model, function that draws its predictions, name of the picture
TASKS: dict[str, tuple[Any, Any, Any]] = {
    'mmdet': (open_detector, draw_detections, 'detections.png'),
    'mmseg': (open_segmenter, draw_segmentations, 'segmentations.png'),
    'panoptic': (open_detector, draw_panoptics, 'panoptics.png'),
    # a classifier has photographs alone
    CLASSIFIER_SCOPE: (open_classifier, None, None),
}


def build_test_set(cfg: Config) -> Any:
    """Build the data set of the config's test loader."""
    return import_module(f'{scope_of(cfg)}.registry').DATASETS.build(cfg.test_dataloader.dataset)


def task_of(cfg: Config) -> str:
    """Return the task of a config: 'panoptic', or the name of its framework."""
    steps = cfg.test_dataloader.dataset.get('pipeline') or []
    if any(str(step['type']).endswith('PackPanopticInputs') for step in steps):
        return 'panoptic'
    return scope_of(cfg)


def write(path: Path, image: np.ndarray) -> None:
    """Write a picture in OpenCV's order of channels, BGR, and print its path."""
    cv2.imwrite(str(path), image)
    print(path)


def draw_kernels(model: Any, item: dict) -> np.ndarray | None:
    """Return a picture of the kernels of an image of the data set, or None without involution."""
    stages = last_involution_of_each_stage(model)
    if not stages:
        return None
    batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    prepared = model.data_preprocessor(batch)
    sample = prepared['data_samples'][0]
    image = ModelImage(display_image(item), prepared['inputs'], sample.img_shape[:2], sample)
    layers = list(stages.values())
    maps = attention_maps(model, image, layers=layers, view='kernel-sum', heads='mean')
    return draw_attention_maps(image, maps)


def view_photo(model: nn.Module, photo: Path, args: Namespace) -> np.ndarray:
    """Return the picture of what the operators apply to a photograph, RGB."""
    image = model_image(model, photo)
    at = args.at and tuple(args.at)
    if args.view in METHODS:
        layers = ['backbone'] if args.layers == ['*'] else args.layers
        options = dict(method=args.view, target=args.target)
        maps = [class_activation(model, image, layer=layer, **options) for layer in layers]
    else:
        options = dict(layers=args.layers, view=args.view, at=at, heads=args.heads)
        maps = attention_maps(model, image, **options)
    return draw_attention_maps(image, maps, at=at, columns=args.columns)


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Return the paths of photographs, and in place of folders those of the images in them."""
    photos: list[Path] = []
    for path in paths:
        if path.is_dir():
            photos += sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        else:
            photos.append(path)
    return photos


def picture_names(photos: Sequence[Path]) -> list[str]:
    """Return a name for the picture of each photograph, with a number where two have one name."""
    counts: Counter[str] = Counter()
    names = []
    for photo in photos:
        counts[photo.stem] += 1
        count = counts[photo.stem]
        names.append(f'{photo.stem}.png' if count == 1 else f'{photo.stem}_{count}.png')
    return names


def draw_photos(model: nn.Module, args: Namespace) -> None:
    """Write a picture of every photograph."""
    photos = find_photos(args.photos)
    if not photos:
        raise SystemExit(f'the folders have no images ({", ".join(SUFFIXES)})')
    for photo, name in zip(photos, picture_names(photos), strict=True):
        picture = view_photo(model, photo, args)
        target = args.out if args.out.suffix else args.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, picture[..., ::-1])


@safe_loading()
@named_types()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = parse_args(argv)
    cfg = load_config(args.config, options=args.cfg_options)
    check_device(args.device, scope_of(cfg))
    open_model, draw, name = TASKS[task_of(cfg)]
    if draw is None and not args.photos:
        raise SystemExit(f'photos must be given for a classifier, got none for {args.config}')
    model = open_model(cfg, args)
    if args.checkpoint is None:
        print('without a checkpoint the weights are random')
    else:
        check_fit(model, args.checkpoint)
    if args.photos:
        draw_photos(model, args)
        return
    check_data(cfg, loaders=['test_dataloader'])
    dataset = build_test_set(cfg)
    args.out.mkdir(parents=True, exist_ok=True)
    indices = args.images or list(range(min(IMAGES, len(dataset))))
    options = {} if args.scale is None else dict(scale=args.scale)
    picture = draw(model, dataset, indices, **options)
    write(args.out / name, picture[..., ::-1])
    kernels = draw_kernels(model, dataset[indices[0]])
    if kernels is not None:
        write(args.out / 'kernels.png', kernels[..., ::-1])
