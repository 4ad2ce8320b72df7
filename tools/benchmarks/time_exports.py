"""Time exported files of one task against each other, in alternation, in CPU time of one thread.

python tools/benchmarks/time_exports.py exported/CONFIG.onnx exported/CONFIG.int8.onnx photo.jpg
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmrednet.export.runtime import Model, read

# runs before those that are timed
WARMUP = 3


def time_files(files: Sequence[Path], photo: Path, rounds: int) -> list[float]:
    """Return the median milliseconds of CPU time that each file takes for a photograph."""
    models = [Model(file, threads=1) for file in files]
    # without loading and resizing, which all have in common
    inputs = [model.prepare(read(photo)) for model in models]
    times: list[list[float]] = [[] for _ in models]
    for number in range(WARMUP + rounds):
        for model, image, samples in zip(models, inputs, times, strict=True):
            start = time.process_time()
            model.run(image)
            if number >= WARMUP:
                samples.append(time.process_time() - start)
    return [statistics.median(samples) * 1e3 for samples in times]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script with these arguments, by default those of the process."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('files', type=Path, nargs='+', help='exported files, of one task')
    parser.add_argument('photo', type=Path, help='photograph that they are run for')
    parser.add_argument('--rounds', type=int, default=50, help='runs of each file')
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f'--rounds must be positive, got {args.rounds}')
    for file, milliseconds in zip(
        args.files, time_files(args.files, args.photo, args.rounds), strict=True
    ):
        print(f'{file.name}: {milliseconds:.2f} ms')


if __name__ == '__main__':
    main()
