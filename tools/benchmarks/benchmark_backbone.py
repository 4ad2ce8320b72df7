"""Time backbones against stock mmdet ResNet-50 in the same process, as ratios from one run.

Contestants take turns within a round. Inference is timed with norms and activations folded by
mmrednet.fuse, in mmdet's and mmseg's networks too. E is the ratio of times divided by the ratio of
multiply-adds: 1.0 means that every saved operation is saved time.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from mmrednet import keep_memory

# before the first tensor
keep_memory()

import numpy as np
import torch

from benchmarks import machine, peers
from benchmarks.backbones import (
    BACKBONES,
    BASELINE,
    FAMILIES,
    LAYOUTS,
    PRECISIONS,
    build,
    make_image,
    multiply_adds,
    prepare,
    step,
)
from benchmarks.report import Report
from benchmarks.timing import measure_rounds, medians
from benchmarks.training_memory import in_own_process

PEERS = (BASELINE, 'RedNet-50')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--backbones',
        nargs='+',
        choices=list(BACKBONES),
        help='backbones to time; the others are compared with the first; by default all families, '
        'and with --peers ResNet-50 and RedNet-50',
    )
    parser.add_argument('--shape', type=int, nargs=2, default=(480, 640), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--in-channels', type=int, default=3, help='channels of the image')
    parser.add_argument('--precision', choices=PRECISIONS, nargs='+', default=['float32'])
    parser.add_argument('--layouts', choices=list(LAYOUTS), nargs='+', default=list(LAYOUTS))
    parser.add_argument(
        '--train', action='store_true', help='forward and backward in training mode, not inference'
    )
    parser.add_argument('--plain', action='store_true', help='do not fold norms')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument(
        '--budget', type=float, metavar='SECONDS', help='begin no round later than this'
    )
    table = parser.add_mutually_exclusive_group()
    table.add_argument(
        '--memory', action='store_true', help='memory of a training step instead of times'
    )
    table.add_argument(
        '--check-threads',
        action='store_true',
        help='whether results are those of one thread, bit for bit, instead of times',
    )
    table.add_argument(
        '--peers',
        action='store_true',
        help='also under torch.compile, AOTInductor, ONNX Runtime and OpenVINO',
    )
    parser.add_argument('--markdown', type=Path, metavar='FILE', help='append the tables to a file')
    args = parser.parse_args()
    args.backbones = args.backbones or list(PEERS if args.peers else FAMILIES)
    if args.plain and args.train:
        parser.error('--plain is for inference: networks in training keep their norms')
    if args.peers and 'autocast' in args.precision:
        parser.error('--peers takes --precision float32 and bfloat16, got autocast')
    return args


def title(args, precision, what):
    """Return the setting of a table in one line."""
    height, width = args.shape
    return f'{what}, {precision}, batch {args.batch}, {height} x {width}:\n'


def contestants(args, precision):
    """Return what to time, by backbone and layout."""
    result = {}
    for name in args.backbones:
        model = build(name, args.in_channels)
        for layout in args.layouts:
            options = dict(layout=layout, precision=precision)
            moved = prepare(model, train=args.train, folded=not args.plain, **options)
            image = make_image(args.batch, args.in_channels, args.shape, **options)
            result[name, layout] = step(moved, image, train=args.train, precision=precision)
    return result


def time_backbones(args, report, work):
    """Time all backbones, a table for each precision."""
    what = 'Training step' if args.train else 'Inference'
    if not args.train:
        what += ', plain' if args.plain else ', folded'
    first = args.backbones[0]
    columns = ['backbone', *(f'{layout}, ms' for layout in args.layouts)]
    if len(args.layouts) == 2:
        columns.append(' / '.join(args.layouts))
    columns += [f'better / {first}', f'multiply-adds / {first}', 'E']
    for precision in args.precision:
        times = measure_rounds(contestants(args, precision), args.rounds, args.budget)
        seconds = {key: float(np.median(values)) for key, values in times.items()}
        rounds = len(next(iter(times.values())))
        report.write(title(args, precision, f'{what}, medians of {rounds} rounds'))
        best = {
            name: min(seconds[name, layout] for layout in args.layouts) for name in args.backbones
        }
        rows = []
        for name in args.backbones:
            own = [seconds[name, layout] for layout in args.layouts]
            ratio, share = best[name] / best[first], work[name] / work[first]
            row = [name, *(f'{1e3 * value:.1f}' for value in own)]
            if len(own) == 2:
                row.append(f'{own[0] / own[1]:.2f}')
            rows.append([*row, f'{ratio:.2f}', f'{share:.2f}', f'{ratio / share:.2f}'])
        report.table(columns, rows)


def measure_memory(args, report):
    """Measure the memory of a training step, each in a process of its own."""
    first = args.backbones[0]
    what = 'Peak memory of a training step above the network, freed memory given back'
    for precision in args.precision:
        report.write(title(args, precision, what))
        peaks, rows = {}, []
        for name in args.backbones:
            peaks[name] = in_own_process(
                name,
                shape=args.shape,
                batch=args.batch,
                layout='channels-last',
                precision=precision,
            )
            ratio = peaks[name] / peaks[first]
            rows.append([name, f'{peaks[name] / 2**30:.2f}', f'{ratio:.2f}'])
        report.table(['backbone', 'GiB', f'ratio to {first}'], rows)


def results_of(model, image, args, precision):
    """Return the outputs of a backbone, or the gradients of its parameters."""
    torch.manual_seed(0)
    outputs = step(model, image, train=args.train, precision=precision)()
    if not args.train:
        return list(outputs)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def check_threads(args, report):
    """Compare the results of all threads with those of one."""
    threads = torch.get_num_threads()
    what = 'Gradients' if args.train else 'Outputs'
    for precision in args.precision:
        report.write(title(args, precision, f'{what} of {threads} threads against those of one'))
        rows = []
        for name in args.backbones:
            options = dict(layout=args.layouts[-1], precision=precision)
            model = build(name, args.in_channels)
            model = prepare(model, train=args.train, folded=not args.plain, **options)
            image = make_image(args.batch, args.in_channels, args.shape, **options)
            expected = results_of(model, image, args, precision)
            torch.set_num_threads(1)
            alone = results_of(model, image, args, precision)
            torch.set_num_threads(threads)
            pairs = list(zip(expected, alone, strict=True))
            equal = sum(torch.equal(a, b) for a, b in pairs)
            error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
            rows.append([name, f'{equal} of {len(pairs)}', f'{error:.1e}'])
        report.table(['backbone', 'equal tensors', 'largest relative difference'], rows)


def time_peers(args, report):
    """Time backbones under everything that is installed."""
    for way in peers.PACKAGES:
        if lacking := peers.missing(way):
            report.write(f'{way} is left out, since {" and ".join(lacking)} cannot be imported.\n')
    for precision in args.precision:
        runs = {}
        for name in args.backbones:
            options = dict(layout='channels-last', precision='float32')
            model = prepare(build(name), train=False, folded=True, **options)
            image = make_image(args.batch, 3, args.shape, **options)
            ways = peers.ways(model, image, precision)
            for way, share in peers.differences(ways).items():
                if share > peers.TOLERANCES[precision]:
                    sys.exit(f'{name} under {way} differs from eager torch by {share:.1e}')
            runs.update({(name, way): run for way, run in ways.items()})
            # compilers take minutes
            print(f'{name} in {precision}: compiled and checked', file=sys.stderr, flush=True)
        seconds = medians(runs, args.rounds, args.budget, untimed=1)
        report.write(title(args, precision, 'Ways to run, folded'))
        ways = list(dict.fromkeys(way for _, way in runs))
        best = {name: min(seconds[name, way] for way in ways) for name in args.backbones}
        rows = []
        for name in args.backbones:
            own = [f'{1e3 * seconds[name, way]:.1f}' for way in ways]
            rows.append([name, *own, f'{best[name] / best[args.backbones[0]]:.2f}'])
        report.table(['backbone', *(f'{way}, ms' for way in ways), 'best / best'], rows)


def main():
    args = parse_args()
    torch.manual_seed(0)
    report = Report(args.markdown)
    report.write(f'{machine.describe()}\n')
    if args.memory:
        measure_memory(args, report)
    elif args.check_threads:
        check_threads(args, report)
    elif args.peers:
        time_peers(args, report)
    else:
        work = {name: multiply_adds(name, args.shape, args.in_channels) for name in args.backbones}
        time_backbones(args, report, work)


if __name__ == '__main__':
    main()
