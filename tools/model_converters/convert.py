"""Convert a published file of weights to our names, or back, and say what matched."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.registry import MODELS

from mmrednet.checkpoints import FORMATS, CheckpointError, convert_file, reverse_file, shapes_of
from mmrednet.checkpoints.files import TARGETS
from mmrednet.engine import load_config, scope_of


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
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
        help='of the network to fill; by default the published backbone '
        "that the file's names and shapes tell",
    )
    parser.add_argument(
        '--format',
        choices=list(FORMATS),
        help='of IN (with --reverse, of OUT), instead of what its names tell',
    )
    parser.add_argument('--key', help='where in IN the weights are, as state_dict_ema')
    parser.add_argument(
        '--min-share',
        type=float,
        default=0.5,
        metavar='SHARE',
        help="fail where less than this share of the network's tensors matches (0.5)",
    )
    parser.add_argument('--reverse', action='store_true', help='from our names to published ones')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser.parse_args()


def shapes_from(config, to):
    """Return the names and shapes of the network of a config, or of its backbone."""
    cfg = load_config(config)
    with torch.device('meta'), MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
        return shapes_of(registry.build(cfg.model.backbone if to == 'backbone' else cfg.model))


def convert(args):
    shapes = shapes_from(args.model, args.to) if args.model else None
    done = convert_file(
        args.source,
        args.target,
        to=args.to,
        shapes=shapes,
        format=args.format,
        key=args.key,
        min_share=args.min_share,
        force=args.force,
    )
    print(f'{args.source}: format {done.format!r} ({FORMATS[done.format].source})')
    print(f'SHA-256: {done.sha256}')
    if done.network:
        print(f'network: {done.network}')
    print(done.match.counts)
    for line in done.match.details():
        print(f'  {line}')
    if done.absent:
        print(f'  parts of the network that are not in the file: {", ".join(done.absent)}')
    for line in done.notes:
        print(f'  {line}')
    print(f'written: {args.target}, {len(done.match.state)} tensors')


def main():
    args = parse_args()
    try:
        if args.reverse:
            done = reverse_file(args.source, args.target, format=args.format, force=args.force)
            print(f'written: {args.target}, format {done.format!r}')
            if done.lost:
                print(f'not as in the published file: {done.lost}')
        else:
            convert(args)
    except (CheckpointError, OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    main()
