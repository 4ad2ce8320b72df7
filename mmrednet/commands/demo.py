"""Write synthetic data, train a small network on it, draw its predictions and evaluate it.

Every step is a command that a user could give.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
DETECTION = dict(
    data='700 scenes of shapes',
    path='data/shapes/annotations/instances_val.json',
    options=(),
    minutes='five',
    metric='COCO metrics',
    # name, key in the results, digits
    figures=(('box AP', 'coco/bbox_mAP', 3), ('AP50', 'coco/bbox_mAP_50', 3)),
)
SEGMENTATION = dict(
    data='500 streets',
    path='data/streets/gtFine/val',
    minutes='four',
    options=('--format', 'cityscapes', '--train', 400, '--val', 100),
    metric='mean intersection over union',
    figures=(('mIoU', 'mIoU', 2), ('pixel accuracy', 'aAcc', 2)),
)
PANOPTIC = dict(
    data='700 landscapes with shapes',
    path='data/panoptic_shapes/annotations/panoptic_val2017.json',
    options=('--format', 'coco-panoptic'),
    minutes='six',
    metric='panoptic quality',
    figures=(
        ('PQ', 'panoptic/PQ', 2),
        ('things', 'panoptic/PQ_th', 2),
        ('stuff', 'panoptic/PQ_st', 2),
        ('AP', 'panoptic/AP', 2),
        ('mIoU', 'panoptic/mIoU', 2),
    ),
)
# part of the config's path
TASKS = {'panoptic': PANOPTIC, 'streets': SEGMENTATION}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--config', default='configs/shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
    )
    parser.add_argument('--work-dir', type=Path, help='by default work_dirs/<name of the config>')
    args = parser.parse_args()
    args.work_dir = args.work_dir or Path('work_dirs') / Path(args.config).stem
    return args


def step(title, *command):
    """Print and run a command of the project, and return the seconds that it took."""
    command = list(map(str, command))
    print(f'\n== {title}\n   {shlex.join(["python", *command])}', flush=True)
    start = time.perf_counter()
    subprocess.run([PYTHON, *command], check=True, cwd=ROOT)
    return time.perf_counter() - start


def read_figures(work_dir, task):
    """Return the figures of the latest evaluation as text."""
    # each run writes to a folder of its own
    results = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    metrics = json.loads(results.read_text())
    figures = [f'{name} {metrics[key]:.{digits}f}' for name, key, digits in task['figures']]
    return ', '.join(figures)


def main():
    args = parse_args()
    tasks = [task for part, task in TASKS.items() if part in args.config]
    task = tasks[0] if tasks else DETECTION
    if not (ROOT / task['path']).exists():
        step(
            f'data: {task["data"]}',
            'tools/synthetic/generate.py',
            '--force',
            *task['options'],
        )
    seconds = step(
        f'train: about {task["minutes"]} minutes on two cores',
        'tools/train.py',
        args.config,
        '--work-dir',
        args.work_dir,
    )
    checkpoint = (ROOT / args.work_dir / 'last_checkpoint').read_text()
    step(
        'draw',
        'tools/analysis_tools/draw.py',
        args.config,
        checkpoint,
        '--out-dir',
        args.work_dir / 'pictures',
    )
    step(
        f'evaluate: {task["metric"]} of the val split',
        'tools/test.py',
        args.config,
        checkpoint,
        '--work-dir',
        args.work_dir,
    )
    work_dir = ROOT / args.work_dir
    print(f'\n== finished: {args.config}')
    print(f'   {read_figures(work_dir, task)}; training took {seconds:.0f} s')
    for picture in sorted((work_dir / 'pictures').glob('*.png')):
        print(f'   {picture.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
