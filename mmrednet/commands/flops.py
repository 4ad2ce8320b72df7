"""Count the parameters of a network and the multiply-adds of its operators.

CONFIG is a config for mmdet or mmseg, one whose model is a backbone alone, or the name of a
registered backbone, such as mmrednet.VAN with --cfg-options model.arch=b0. Neither data nor weights
are read. docs/counting.md says what papers count.

Exit status: 0, everything is counted; 1, the totals lack operators without a handle or parts that
never ran, and stderr names them; 2, an argument is wrong; 3, the model cannot be built, or not be
run for an image alone.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import DictAction

from ..analysis.categories import CATEGORIES, DEFAULT_COUNT, check_count
from ..analysis.counting import count_network
from ..analysis.image_network import UnrunnableError, image_channels
from ..analysis.networks import build_network
from ..analysis.reports import UNITS, VIEWS, as_text, describe, missing
from ..flop_handles import MMENGINE_HANDLES
from .parser import CommandParser


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('flops', __doc__)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="size of the image; by default the crop of a segmenter's config, 800 1280 for "
        'detectors, 224 224 for backbones',
    )
    parser.add_argument('--by', choices=VIEWS, default='operator', help='rows of the table')
    parser.add_argument('--depth', type=int, default=2, help='number of levels of --by module')
    parser.add_argument(
        '--convention',
        choices=list(UNITS),
        default='macs',
        help='unit of the table; totals are in both',
    )
    parser.add_argument(
        '--count',
        default=','.join(DEFAULT_COUNT),
        metavar='op,norm,...',
        help=f'comma-separated categories ({", ".join(CATEGORIES)}) or operators of them, such as '
        'relu; by default what mmengine counts',
    )
    parser.add_argument(
        '--proposals', type=int, default=1000, help='number of proposals of a two-stage detector'
    )
    parser.add_argument(
        '--classes', type=int, help='add a classifier of this many classes to a backbone'
    )
    parser.add_argument(
        '--mmengine',
        action='store_true',
        help='count by the handles of mmengine alone, to see what it misses',
    )
    parser.add_argument('--json', type=Path, metavar='F', help='write the report to a file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='change the config, as in key=value'
    )
    return parser


def parse_args(argv: Sequence[str] | None) -> Namespace:
    """Parse and check the arguments."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.count = args.count.split(',')
    try:
        check(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def check(args: Namespace) -> None:
    """Check the arguments before anything is built, and make the folder of the file."""
    check_count(args.count)
    if args.shape and min(args.shape) < 1:
        raise ValueError(f'--shape must be positive, got {args.shape}.')
    for name in ('depth', 'proposals', 'classes'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f'--{name} must be at least 1, got {value}.')
    if args.json:
        if args.json.is_dir():
            raise ValueError(f'--json must be a file to write, got the folder {args.json}.')
        args.json.parent.mkdir(parents=True, exist_ok=True)


def count(args: Namespace) -> dict:
    """Build and count the network, and return the report."""
    network, size = build_network(
        args.config, options=args.cfg_options, proposals=args.proposals, classes=args.classes
    )
    shape = args.shape or size
    image = torch.zeros(1, image_channels(network.model), *shape)
    complexity = count_network(network, image, handles=MMENGINE_HANDLES if args.mmengine else None)
    return describe(complexity, network, name=args.config, shape=shape, count=args.count)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process."""
    args = parse_args(argv)
    try:
        report = count(args)
    except (ImportError, OSError, TypeError, UnrunnableError, ValueError) as error:
        print(f'mmrednet flops: error: {error}', file=sys.stderr)
        return 3 if isinstance(error, UnrunnableError) else 2
    print(as_text(report, args.by, args.convention, depth=args.depth))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')
    problems = missing(report)
    if problems:
        print('', *problems, 'The totals lack them.', sep='\n', file=sys.stderr)
    return 1 if problems else 0
