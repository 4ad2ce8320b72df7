"""Write a model for a runtime without Python, and check it against the model.

Beside the file lies a description of the same name, with the ending .json: how an image is resized
before the network, and what the outputs are. Normalisation and padding are in the network.
"""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from .. import safe_loading
from ..engine import add_config_options, check_fit, load_config, named_types, scope_of
from ..export.exporting import (
    ExportError,
    Target,
    build_operators,
    check_target,
    compare,
    export,
    verify,
)
from ..export.formats import FORMATS, FORMS
from ..export.networks import resizing
from ..export.quantization import quantize
from ..export.runtime import Model, read, resize
from .infer import IMAGE_ENDINGS
from .parser import CommandParser


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('export', __doc__)
    add_config_options(parser)
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument('--to', choices=list(FORMATS), required=True, help='format of the file')
    parser.add_argument(
        '--form',
        choices=FORMS,
        help='portable: standard operators alone; native: our kernels, which need our library',
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='size of all images, in pixels'
    )
    sizes.add_argument('--dynamic', action='store_true', help='images of any size (the default)')
    parser.add_argument('--out', type=Path, help='path of the file (exported/<config>.<ending>)')
    parser.add_argument('--verify', type=Path, metavar='PHOTO', help='check with this photograph')
    parser.add_argument('--no-verify', action='store_true', help='do not check the file')
    parser.add_argument(
        '--int8',
        type=Path,
        metavar='PHOTOS',
        help='also write a file with 8-bit integers (ONNX alone); images, or a folder of them, '
        'like those that the model will see tell the ranges of its activations',
    )
    parser.add_argument(
        '--int8-float',
        nargs='+',
        default=[],
        metavar='LAYER',
        help='layers that stay in float32 in that file, by names such as backbone.stem.0.conv or '
        "patterns such as '*.fc_reg'",
    )
    parser.add_argument(
        '--build-ops',
        action=BuildOperators,
        nargs=0,
        help='compile our operators for OpenVINO, print the path of their library and exit',
    )
    return parser


class BuildOperators(Action):
    """Compiles the operators for OpenVINO, in place of an export."""

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        """Print the path of the library, and exit."""
        try:
            print(build_operators())
        except ExportError as error:
            parser.exit(1, f'mmrednet export: {error}\n')
        parser.exit()


def target_of(parser: ArgumentParser, args: Namespace) -> Target:
    """Return what the arguments ask for."""
    ending = FORMATS[args.to].ending
    path = args.out or Path('exported') / (Path(args.config.split('::')[-1]).stem + ending)
    if not path.name.endswith(ending):
        parser.error(f'--out must end in {ending} for --to {args.to}, got {path}')
    if args.shape and min(args.shape) < 1:
        parser.error(f'--shape must be two positive numbers, got {args.shape}')
    if args.int8 and args.to != 'onnx':
        parser.error(f'--int8 needs --to onnx, got --to {args.to}')
    if args.int8_float and not args.int8:
        parser.error('--int8-float needs --int8')
    if args.int8 and not photographs(args.int8):
        parser.error(f'--int8 must be an image or a folder of images, got {args.int8}')
    return Target(args.to, args.form, path, tuple(args.shape) if args.shape else None)


def load_model(args: Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Return the model in eval mode, its config, and the classes of its data set."""
    cfg = load_config(args.config, options=args.cfg_options)
    # the checkpoint has all weights
    cfg.model.backbone.init_cfg = None
    with MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
        model = registry.build(cfg.model)
    checkpoint = load_checkpoint(model, args.checkpoint, map_location='cpu')
    check_fit(model, args.checkpoint)
    meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
    # in two lines: models of mmdet return nothing from eval()
    model.eval()
    return model, cfg, meta


def photographs(path: Path) -> list[Path]:
    """Return the images of a folder and of those in it, or the path itself if it is a file."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob('*') if file.suffix.lower() in IMAGE_ENDINGS)


def write_integers(
    model: Any, task: str, target: Target, photos: Sequence[Path], float_layers: Sequence[str]
) -> None:
    """Write the file with 8-bit integers beside the exported one, and print what it changes.

    Raises:
        ExportError: There are no photographs, or a pattern fits no layer.
    """
    path = target.path.with_suffix(f'.int8{target.path.suffix}')
    try:
        quantize(target.path, photos, path, float_layers)
    except ValueError as reason:
        raise ExportError(f'no file with 8-bit integers: {reason}') from reason
    print(f'{path}: 8-bit integers, {_size(path, target.format)}')
    photo = np.ascontiguousarray(Model(path).prepare(read(photos[0]))[0].transpose(1, 2, 0))
    for shape, error, _, unit in compare(model, task, target._replace(path=path), photo):
        print(f'for an image of {shape[0]} x {shape[1]}: {error:.2g} {unit}')


@safe_loading()
@named_types()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process."""
    parser = make_parser()
    args = parser.parse_args(argv)
    target = target_of(parser, args)
    try:
        form = check_target(target)
        model, cfg, meta = load_model(args)
        task = export(model, cfg, meta, target)
        size = _size(target.path, target.format)
        print(f'{target.path}: {task}, {target.format}, {form} form, {size}')
        if not args.no_verify:
            photo = None if args.verify is None else resize(read(args.verify), resizing(cfg))
            for shape, error, unit in verify(model, task, target, photo):
                print(f'checked with an image of {shape[0]} x {shape[1]}: {error:.2g} {unit}')
        if args.int8:
            write_integers(model, task, target, photographs(args.int8), args.int8_float)
    except ExportError as error:
        parser.exit(1, f'mmrednet export: {error}\n')
    return 0


def _size(path: Path, name: str) -> str:
    """Return the size of a file of this format with those beside it, as text."""
    files = [path, *(path.with_suffix(ending) for ending in FORMATS[name].beside)]
    return f'{sum(file.stat().st_size for file in files if file.is_file()) / 2**20:.1f} MiB'
