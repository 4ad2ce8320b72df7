"""Count what a network takes: parameters, and multiply-adds operator by operator.

CONFIG is a config for mmdet or mmseg, one whose model is a backbone alone, or the name of a registered backbone, such
as mmrednet.VAN with --cfg-options model.arch=b0. No data set and no checkpoint is read. The exit status is 1 if an
operator was met that nobody knows how to count; it is named. docs/counting.md says what papers count.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.config import DictAction

from mmrednet.analysis.counting import CATEGORIES, DEFAULT_COUNT, check_count, count_network
from mmrednet.analysis.networks import build_network
from mmrednet.analysis.reports import UNITS, VIEWS, as_text, describe


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='of the image; by default the crop of a '
                        "segmenter's config, 800 1280 for detectors, 224 224 for backbones")
    parser.add_argument('--by', choices=VIEWS, default='operator', help='rows of the table')
    parser.add_argument('--depth', type=int, default=2, help='how deep --by module goes')
    parser.add_argument('--convention', choices=list(UNITS), default='macs', help='of the table; totals are in both')
    parser.add_argument('--count', default=','.join(DEFAULT_COUNT), metavar='op,norm,...',
                        help=f'comma-separated categories ({", ".join(CATEGORIES)}) or operators of them, such as '
                             'relu; by default what mmengine counts')
    parser.add_argument('--proposals', type=int, default=1000, help='of a two-stage detector')
    parser.add_argument('--classes', type=int, help='put a classifier for this many classes behind a backbone')
    parser.add_argument('--json', type=Path, metavar='F', help='write all of it to a file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='change the config, as in key=value')
    args = parser.parse_args()
    args.count = args.count.split(',')
    try:
        check_count(args.count)
    except ValueError as error:
        parser.error(str(error))
    if args.shape and min(args.shape) < 1:
        parser.error(f'--shape must be positive, got {args.shape}.')
    return args


def main():
    args = parse_args()
    network, size = build_network(args.config, options=args.cfg_options, proposals=args.proposals, classes=args.classes)
    shape = args.shape or size
    complexity = count_network(network, torch.zeros(1, 3, *shape))
    report = describe(complexity, network, name=args.config, shape=shape, count=args.count)
    print(as_text(report, args.by, args.convention, depth=args.depth))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + '\n')
    if complexity.uncounted:
        names = ', '.join(f'{name} ({times} times)' for name, times in complexity.uncounted.most_common())
        print(f'\nNot counted, because nobody knows how: {names}. The totals lack them.', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
