"""Convert a published checkpoint to our keys, or back, and print what matched."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence

import torch
from mmengine.registry import MODELS

from ..checkpoints import FORMATS, CheckpointError, shapes_of
from ..checkpoints.matching import TARGETS
from ..convert import convert_file, reverse_file
from ..engine import load_config, scope_of
from .parser import CommandParser


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('convert', __doc__)
    parser.add_argument(
        'source', metavar='IN', help='.pth, .pth.tar, .safetensors or .npz; read as tensors alone'
    )
    parser.add_argument('target', metavar='OUT', help='.safetensors, .pth or .npz')
    parser.add_argument(
        '--to',
        choices=TARGETS,
        default='backbone',
        help="the backbone alone, for init_cfg, or a whole network's weights, for load_from",
    )
    parser.add_argument(
        '--model',
        metavar='CONFIG',
        help='config of the network to fill; by default the published backbone that the keys and '
        'shapes of the file tell',
    )
    parser.add_argument(
        '--format',
        choices=list(FORMATS),
        help='format of IN (with --reverse, of OUT), instead of what its keys tell',
    )
    parser.add_argument('--key', help='key of the state dict in IN, such as state_dict_ema')
    parser.add_argument(
        '--min-share',
        type=float,
        default=0.5,
        metavar='SHARE',
        help="fail where less than this share of the network's tensors matches (0.5)",
    )
    parser.add_argument('--reverse', action='store_true', help='from our keys to published ones')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser


def shapes_from(config: str, to: str) -> Mapping[str, torch.Size]:
    """Return the shapes of the network of a config, or of its backbone, by key."""
    cfg = load_config(config)
    with torch.device('meta'), MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
        return shapes_of(registry.build(cfg.model.backbone if to == 'backbone' else cfg.model))


def convert(args: Namespace) -> None:
    """Convert a file to our keys, and print what matched."""
    shapes = shapes_from(args.model, args.to) if args.model else None
    conversion = convert_file(
        args.source,
        args.target,
        to=args.to,
        shapes=shapes,
        format=args.format,
        key=args.key,
        min_share=args.min_share,
        force=args.force,
    )
    print(f'{args.source}: format {conversion.format!r} ({FORMATS[conversion.format].source})')
    print(f'SHA-256: {conversion.sha256}')
    if conversion.network:
        print(f'network: {conversion.network}')
    print(conversion.match.counts)
    for line in conversion.match.details():
        print(f'  {line}')
    absent_parts = ', '.join(conversion.match.absent_parts)
    if absent_parts:
        print(f'  parts of the network that are not in the file: {absent_parts}')
    for line in conversion.notes:
        print(f'  {line}')
    print(f'written: {args.target}, {len(conversion.match.state)} tensors')


def reverse(args: Namespace) -> None:
    """Convert a file of ours to published keys."""
    reversal = reverse_file(args.source, args.target, format=args.format, force=args.force)
    print(f'written: {args.target}, format {reversal.format!r}')
    if reversal.lost:
        print(f'not as in the published file: {reversal.lost}')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = make_parser().parse_args(argv)
    try:
        run = reverse if args.reverse else convert
        run(args)
    except (CheckpointError, OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
