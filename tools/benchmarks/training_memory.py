"""Print the memory of a backbone's first training step: its peak above what the process held, in
bytes.

A process of its own measures a network, so that nothing of another one is used again. It gives
freed memory back to the system: what it would keep is not needed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from benchmarks.backbones import build, make_image, prepare, step

STATUS = Path('/proc/self/status')
RESET_PEAK = Path('/proc/self/clear_refs')
# Blocks of this size and more are given back when they are freed. Unless it is set, glibc raises it
# to the size of the blocks that it has seen.
GIVE_BACK = 'glibc.malloc.mmap_threshold=131072'


def status(field: str) -> int:
    """Return a number of the process in bytes, such as 'VmRSS' or 'VmHWM', its peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def in_own_process(
    name: str, *, shape: Sequence[int], batch: int, layout: str, precision: str
) -> int:
    """Return the memory of a training step in bytes, measured in a process of its own.

    Args:
        name: Key of ``BACKBONES``.
        shape: Height and width of the images.
        batch: Number of images.
        layout: Key of ``LAYOUTS``.
        precision: One of ``PRECISIONS``.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, __file__, name, '--shape', *map(str, shape), '--batch', str(batch)]
    command += ['--layout', layout, '--precision', precision]
    environment = dict(os.environ, GLIBC_TUNABLES=GIVE_BACK)
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise RuntimeError(f'{name}: the training step failed:\n{result.stderr[-2000:]}')
    return int(result.stdout.split()[-1])


def main() -> None:
    """Train for one step and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name')
    parser.add_argument('--shape', type=int, nargs=2, default=(480, 640), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--layout', default='channels-last')
    parser.add_argument('--precision', default='float32')
    args = parser.parse_args()
    options = dict(layout=args.layout, precision=args.precision)
    model = prepare(build(args.name), train=True, folded=False, **options)
    image = make_image(args.batch, 3, args.shape, **options)
    run = step(model, image, train=True, precision=args.precision)
    RESET_PEAK.write_text('5')
    before = status('VmRSS')
    run()
    print(status('VmHWM') - before)


if __name__ == '__main__':
    main()
