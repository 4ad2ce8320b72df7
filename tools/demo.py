"""Make data, train a small detector on it, evaluate it and draw what it sees: the commands a user gives, in order."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--config', default='configs/shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py')
    parser.add_argument('--work-dir', type=Path, help='by default work_dirs/<name of the config>')
    args = parser.parse_args()
    args.work_dir = args.work_dir or Path('work_dirs') / Path(args.config).stem
    return args


def step(title, *command):
    """Print and run a command of the project, and return its seconds."""
    command = ['python', *map(str, command)]
    print(f'\n== {title}\n   {shlex.join(command)}', flush=True)
    start = time.perf_counter()
    subprocess.run([PYTHON, *command[1:]], check=True, cwd=ROOT)
    return time.perf_counter() - start


def main():
    args = parse_args()
    if not (ROOT / 'data/shapes/annotations/instances_val.json').exists():
        step('data: 700 scenes of shapes', 'tools/dataset_converters/shapes.py', '--force')
    seconds = step('train: about five minutes on two cores', 'tools/train.py', args.config, '--work-dir', args.work_dir)
    checkpoint = (ROOT / args.work_dir / 'last_checkpoint').read_text()
    step('evaluate: COCO metrics of the val split', 'tools/test.py', args.config, checkpoint,
         '--work-dir', args.work_dir)
    step('draw', 'tools/analysis_tools/draw.py', args.config, checkpoint, '--out-dir', args.work_dir / 'pictures')
    results = max((ROOT / args.work_dir).glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    metrics = json.loads(results.read_text())
    print(f'\n== finished: {args.config}\n   box AP {metrics["coco/bbox_mAP"]:.3f}, '
          f'AP50 {metrics["coco/bbox_mAP_50"]:.3f}; training took {seconds:.0f} s')
    for picture in sorted((ROOT / args.work_dir / 'pictures').glob('*.png')):
        print(f'   {picture.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
