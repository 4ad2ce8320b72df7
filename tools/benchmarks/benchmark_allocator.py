"""Compare what becomes of freed memory: the C library's default, mmrednet.keep_memory, its tunables
set before the process starts, and other allocators.

Every time is that of a process of its own, and the settings take turns. Ratios are to the default.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import numpy as np

from mmrednet import keep_memory
from mmrednet.memory import SWITCH

TUNABLES = (
    'glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967295:'
    'glibc.malloc.hugetlb=1'
)
# by default jemalloc returns memory too
JEMALLOC_CONF = 'oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always'
COLUMNS = (
    'network',
    'setting',
    'ms',
    'ratio',
    'processor time, ms',
    'ratio',
    'page faults',
    'peak, MiB',
    'ratio',
)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--backbones', nargs='+', default=['mmdet ResNet-50', 'RedNet-50'])
    parser.add_argument('--shape', type=int, nargs=2, default=(480, 640), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--train', action='store_true')
    parser.add_argument('--steps', type=int, default=8, help='steps of a process that count')
    parser.add_argument('--processes', type=int, default=3, help='processes of each setting')
    parser.add_argument('--jemalloc', metavar='FILE', help='library to load in advance')
    parser.add_argument('--tcmalloc', metavar='FILE', help='library to load in advance')
    parser.add_argument('--markdown', type=Path, metavar='FILE', help='append the table to a file')
    # a process that runs one backbone and prints what it took
    parser.add_argument('--run', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


def settings_of(args):
    """Return the environment variables of each setting."""
    settings = {
        'default': {SWITCH: '0'},
        'keep_memory': {},
        'GLIBC_TUNABLES': dict(GLIBC_TUNABLES=TUNABLES),
    }
    if args.jemalloc:
        settings['jemalloc'] = dict(LD_PRELOAD=args.jemalloc)
        settings['jemalloc, kept'] = dict(LD_PRELOAD=args.jemalloc, MALLOC_CONF=JEMALLOC_CONF)
    if args.tcmalloc:
        settings['tcmalloc'] = dict(LD_PRELOAD=args.tcmalloc)
    return settings


def run_backbone(args):
    """Run the first backbone and print its times, page faults and peak as JSON."""
    keep_memory()
    # after the allocator has been told
    from benchmarks.backbones import build, make_image, prepare, step

    options = dict(layout='channels-last', precision='float32')
    model = prepare(build(args.backbones[0]), train=args.train, folded=True, **options)
    image = make_image(args.batch, 3, args.shape, **options)
    run = step(model, image, train=args.train, precision='float32')
    wall, processor = [], []
    # three steps do not count
    for turn in range(args.steps + 3):
        if turn == 3:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start, start_processor = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = dict(
        wall=float(np.median(wall[3:])),
        processor=float(np.median(processor[3:])),
        faults=(usage.ru_minflt - faults) / args.steps,
        peak=usage.ru_maxrss / 1024,
    )
    print(json.dumps(figures))


def measure(args, name, variables):
    """Return the figures of one process."""
    command = [sys.executable, __file__, '--run', '--backbones', name, '--batch', str(args.batch)]
    command += ['--shape', *map(str, args.shape), '--steps', str(args.steps)]
    command += ['--train'] if args.train else []
    clean = {key: value for key, value in os.environ.items() if key != 'GLIBC_TUNABLES'}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**clean, **variables}
    )
    if result.returncode:
        sys.exit(f'{name} with {variables} failed:\n{result.stderr[-2000:]}')
    return json.loads(result.stdout.splitlines()[-1])


def rows_of(args, name):
    """Return the rows of a network: the medians of its processes by setting."""
    settings = settings_of(args)
    figures = {setting: [] for setting in settings}
    for _ in range(args.processes):
        for setting, variables in settings.items():
            figures[setting].append(measure(args, name, variables))
    medians = {}
    for setting, runs in figures.items():
        medians[setting] = {key: np.median([run[key] for run in runs]) for key in runs[0]}
    base = medians['default']
    rows = []
    for setting, own in medians.items():
        ratios = {key: f'{own[key] / base[key]:.2f}' for key in ('wall', 'processor', 'peak')}
        wall, processor = f'{1e3 * own["wall"]:.0f}', f'{1e3 * own["processor"]:.0f}'
        row = [name, setting, wall, ratios['wall'], processor, ratios['processor']]
        rows.append([*row, f'{own["faults"]:.0f}', f'{own["peak"]:.0f}', ratios['peak']])
    return rows


def main():
    args = parse_args()
    if args.run:
        run_backbone(args)
        return
    from benchmarks import machine
    from benchmarks.report import Report

    report = Report(args.markdown)
    work = 'training step' if args.train else 'inference, folded'
    height, width = args.shape
    report.write(
        f'{machine.describe_processor()}\n{work}, float32, channels-last, batch {args.batch}, '
        f'{height} x {width}; {args.processes} processes of each setting in turn, medians of '
        f'{args.steps} steps.\n'
    )
    rows = []
    for name in args.backbones:
        rows += rows_of(args, name)
    report.table(COLUMNS, rows)


if __name__ == '__main__':
    main()
