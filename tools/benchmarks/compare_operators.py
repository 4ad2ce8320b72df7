"""Train one small network with each operator in turn and print what it cost and what it gave, as a
table.

Width, schedule and data are those of the config; only the operator of the backbone's stages
differs. Each run is a process of its own, so that its peak memory is its own. With several seeds
the table has mean and standard deviation, and a ``=`` marks what lies within the spread of the
best: the difference of the means is at most the sum of the two standard deviations.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import numpy as np
import torch
from mmengine.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import Entry, plot, table
from mmrednet.analysis.image_network import image_channels
from mmrednet.engine import load_config, scope_of

SAN_SPAN = [
    dict(type='SANPairwise', kernel_size=(1, 7)),
    dict(type='SANPairwise', kernel_size=(7, 1)),
]
PATCH_SPAN = [
    dict(type='SANPatchwise', kernel_size=(1, 7)),
    dict(type='SANPatchwise', kernel_size=(7, 1)),
]
# name: spatial_cfg of the backbone
OPERATORS = {
    'convolution 3x3': None,
    'involution': dict(type='Involution'),
    'SASA': dict(type='StandAloneSelfAttention'),
    'local relation': dict(type='LocalRelation'),
    'SAN pairwise': dict(type='SANPairwise'),
    'SAN patchwise': dict(type='SANPatchwise'),
    'SAN pairwise, row then column': dict(type='OperatorChain', operators=SAN_SPAN),
    'SAN patchwise, row then column': dict(type='OperatorChain', operators=PATCH_SPAN),
    'axial': dict(type='AxialAttention', table_size=32),
    'neighborhood': dict(type='NeighborhoodAttention'),
    'LKA': dict(type='LargeKernelAttention'),
    'MSCA': dict(type='MultiScaleConvAttention'),
    'convolution x2, then SASA x2': [None, None, *[dict(type='StandAloneSelfAttention')] * 2],
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--config',
        default='configs/shapes/faster-rcnn_r26_fpn_shapes.py',
        help='whose backbone takes spatial_cfg',
    )
    parser.add_argument('--operators', nargs='+', choices=list(OPERATORS), default=list(OPERATORS))
    parser.add_argument('--iterations', type=int, default=500)
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=('H', 'W'),
        help='of the image for which multiply-adds are counted',
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        metavar='SEED',
        help='each operator is trained once with each; default: 0',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        metavar='N',
        help='trainings at a time, which share the threads; default: 1',
    )
    parser.add_argument(
        '--plot', type=Path, metavar='FILE', help='draw accuracy against time and multiply-adds'
    )
    parser.add_argument('--metric', default='coco/bbox_mAP', help='key of the result')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_operators'))
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    return args


def config_path(args, name, seed):
    """Return the path of the config of a training."""
    return args.work_dir / f'{"-".join(name.replace(",", "").split())}_seed-{seed}.py'


def derive(args, name, seed):
    """Write a config that differs from the given one in operator, length and seed, and return its
    path.
    """
    path = config_path(args, name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    iterations = args.iterations
    path.write_text(f"""_base_ = {str(Path(args.config).resolve())!r}
model = dict(backbone=dict(type='mmrednet.SpatialResNet', spatial_cfg={OPERATORS[name]!r}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=0, end={iterations}, T_max={iterations},
        eta_min=0)]
train_cfg = dict(max_iters={iterations}, val_interval={iterations})
default_hooks = dict(
    logger=dict(interval={min(50, iterations)}), checkpoint=dict(interval={iterations}))
randomness = dict(seed={seed})
""")
    return path


def size(path, shape):
    """Return parameters and multiply-adds of backbone and neck."""
    cfg = load_config(str(path))
    with torch.device('meta'), MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
        model = registry.build(cfg.model)
        model.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.extract_feat(torch.empty(1, image_channels(model), *shape))
    return sum(
        parameter.numel() for parameter in model.parameters()
    ), counter.get_total_flops() // 2


def train(path, work_dir, threads):
    """Train and return the scalars that were logged, and the peak memory in bytes."""
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(path), '--work-dir', str(work_dir)]
    log = work_dir.with_suffix('.log')
    with log.open('w') as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {'OMP_NUM_THREADS': str(threads)},
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'{log} says why training failed')
    print(f'{path.stem} is trained', file=sys.stderr, flush=True)
    latest = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda item: item.stat().st_mtime)
    return [json.loads(line) for line in latest.read_text().splitlines()], usage.ru_maxrss * 1024


def train_all(args):
    """Train each operator with each seed, some of them at a time, and return what ``train``
    returned, by name and seed.
    """
    threads = max(1, torch.get_num_threads() // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {}
        for name in args.operators:
            for seed in args.seeds:
                path = derive(args, name, seed)
                runs[name, seed] = pool.submit(train, path, args.work_dir / path.stem, threads)
        try:
            return {key: run.result() for key, run in runs.items()}
        finally:
            # after a failure the trainings that wait are not started
            pool.shutdown(cancel_futures=True)


def summary(args, name, runs):
    """Return the entry of an operator in the table."""
    results, seconds, peaks, losses = [], [], [], []
    for seed in args.seeds:
        scalars, peak = runs[name, seed]
        steps = [entry for entry in scalars if 'loss' in entry]
        results.append(next(e[args.metric] for e in reversed(scalars) if args.metric in e))
        seconds += [entry['time'] for entry in steps]
        losses += [entry['loss'] for entry in steps]
        peaks.append(peak)
    finite = bool(np.isfinite(losses).all())
    parameters, multiply_adds = size(config_path(args, name, args.seeds[0]), args.shape)
    return Entry(
        name, results, parameters, multiply_adds, float(np.median(seconds)), max(peaks), finite
    )


def main():
    args = parse_args()
    print(
        f'{args.config}, {args.iterations} iterations, seeds {args.seeds}, '
        f'{torch.get_num_threads()} threads for {args.jobs} trainings at a time, '
        f'torch {torch.__version__}'
    )
    print(
        f'multiply-adds of backbone and neck for {args.shape[0]} x {args.shape[1]}; median seconds '
        'per iteration\n',
        flush=True,
    )
    runs = train_all(args)
    entries = [summary(args, name, runs) for name in args.operators]
    print('\n'.join(table(entries, args.metric)))
    for entry in entries:
        print(f'{entry.name}: {", ".join(f"{result:.3f}" for result in entry.results)}')
    if args.plot is not None:
        title = f'{Path(args.config).stem}, {args.iterations} iterations'
        plot(entries, args.metric, title, args.plot)


if __name__ == '__main__':
    main()
