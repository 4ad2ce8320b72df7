"""Write synthetic data, train a small network on it, draw its predictions and evaluate it.

Data and results are written to data/ and work_dirs/ of the current folder. Every step is a command
that a user could give.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cli import DETECTOR
from ..shipped import PACKAGE, shipped
from .parser import CommandParser


@dataclass(frozen=True)
class Task:
    """What the demo of a kind of networks writes and reports.

    Args:
        data: The synthetic data, in words.
        path: A file or folder of the data.
        options: Options of the script that writes the data.
        minutes: Approximate time of training, in words.
        metric: The evaluated metric, in words.
        figures: Name, key in the results and number of digits of each figure to print.
    """

    data: str
    path: str
    options: tuple[str, ...]
    minutes: str
    metric: str
    figures: tuple[tuple[str, str, int], ...]


DETECTION = Task(
    data='700 scenes of shapes',
    path='data/shapes/annotations/instances_val.json',
    options=(),
    minutes='five',
    metric='COCO metrics',
    figures=(('box AP', 'coco/bbox_mAP', 3), ('AP50', 'coco/bbox_mAP_50', 3)),
)
SEGMENTATION = Task(
    data='500 streets',
    path='data/streets/gtFine/val',
    options=('--format', 'cityscapes', '--train', '400', '--val', '100'),
    minutes='four',
    metric='mean intersection over union',
    figures=(('mIoU', 'mIoU', 2), ('pixel accuracy', 'aAcc', 2)),
)
PANOPTIC = Task(
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


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('demo', __doc__)
    parser.add_argument(
        '--config', default=DETECTOR, help='config for shapes or streets; default: %(default)s'
    )
    parser.add_argument('--work-dir', type=Path, help='by default work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for all steps'
    )
    return parser


def step(title: str, command: Sequence[object], *, script: Path | None = None) -> float:
    """Print and run a command, and return the seconds that it took.

    Args:
        title: Heading of the step.
        command: Subcommand of ``mmrednet`` and its arguments, or those of the script.
        script: A script to run instead. Default: None.
    """
    words = list(map(str, command))
    display = ['mmrednet', *words] if script is None else ['python', str(script), *words]
    print(f'\n== {title}\n   {shlex.join(display)}', flush=True)
    program = ['-m', 'mmrednet'] if script is None else [str(script)]
    # also where the package is not installed
    paths = [str(PACKAGE.parent), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    start = time.perf_counter()
    result = subprocess.run([sys.executable, *program, *words], check=False, env=environment)
    if result.returncode:
        # the step has said what is wrong
        sys.exit(result.returncode)
    return time.perf_counter() - start


def read_figures(work_dir: Path, task: Task) -> str:
    """Return the figures of the latest evaluation as text."""
    # each run writes to a folder of its own
    results = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    metrics = json.loads(results.read_text())
    figures = [f'{name} {metrics[key]:.{digits}f}' for name, key, digits in task.figures]
    return ', '.join(figures)


def task_of(config: str) -> Task:
    """Return the task of a config."""
    tasks = (task for part, task in TASKS.items() if part in config)
    return next(tasks, DETECTION)


def run_steps(config: str, work_dir: Path, task: Task, options: list[str]) -> float:
    """Run all steps, and return the seconds of training."""
    if not Path(task.path).exists():
        script = shipped('tools') / 'synthetic' / 'generate.py'
        step(f'data: {task.data}', ['--force', *task.options], script=script)
    work = ['--work-dir', work_dir]
    title = f'train: about {task.minutes} minutes on two cores'
    seconds = step(title, ['train', config, *work, *options])
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    step('draw', ['draw', config, checkpoint, '--out-dir', work_dir / 'pictures', *options])
    title = f'evaluate: {task.metric} of the val split'
    step(title, ['test', config, checkpoint, *work, *options])
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = make_parser().parse_args(argv)
    task = task_of(args.config)
    work_dir = args.work_dir or Path('work_dirs') / Path(args.config).stem
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    seconds = run_steps(args.config, work_dir, task, options)
    print(f'\n== finished: {args.config}')
    print(f'   {read_figures(work_dir, task)}; training took {seconds:.0f} s')
    for picture in sorted((work_dir / 'pictures').glob('*.png')):
        print(f'   {picture}')
