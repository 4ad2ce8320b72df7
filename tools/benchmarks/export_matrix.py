"""Export networks to every format and compare the files with torch: a table of docs/export.md.

Results are kept in a file, so that the table may be made one family at a time:

    python tools/benchmarks/export_matrix.py --networks VAN MSCAN --formats onnx
    python tools/benchmarks/export_matrix.py --networks --page docs/export.md
"""

import argparse
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from mmrednet import fuse
from mmrednet.export import capture, largest_error
from mmrednet.export.exporting import ExportError, Target, compare, export
from mmrednet.export.formats import (
    FORMATS,
    FORMS,
    blocking_message,
    library_beside,
    missing_message,
    run,
)
from mmrednet.export.networks import BackboneNetwork
from mmrednet.export.onnx_file import count_nodes
from tools.benchmarks import backbones, narrow
from tools.benchmarks.export_page import Results, write_page

NETWORKS = (*narrow.BACKBONES, *narrow.MODELS, *backbones.BACKBONES)
# (B, H, W) of the images of a file for any size: some are odd, and none is the size of the trace
SIZES = ((1, 75, 101), (3, 64, 83), (2, 96, 160))


class Case(NamedTuple):
    """One file.

    Args:
        network: Name of the network.
        format: Key of ``FORMATS``.
        form: Form of the operators.
        is_dynamic: Whether it takes images of any size.
    """

    network: str
    format: str
    form: str
    is_dynamic: bool

    @property
    def key(self) -> str:
        """Name of the case in a file of results."""
        sizes = 'any' if self.is_dynamic else 'one'
        return f'{self.network} | {self.format} | {self.form} | {sizes}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--networks',
        nargs='*',
        default=[*narrow.BACKBONES, *narrow.MODELS],
        metavar='NAME',
        help=f'some of {", ".join(NETWORKS)}; by default the narrow ones',
    )
    parser.add_argument('--formats', nargs='+', default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument('--forms', nargs='+', default=list(FORMS), choices=list(FORMS))
    parser.add_argument('--sizes', nargs='+', default=['any', 'one'], choices=['any', 'one'])
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(96, 128), metavar=('H', 'W'), help='the one size'
    )
    parser.add_argument(
        '--times', action='store_true', help='time files for one size; nothing else may run then'
    )
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--results', type=Path, default=Path('work_dirs/export_matrix.json'))
    parser.add_argument('--page', type=Path, help='page whose table the results become')
    args = parser.parse_args()
    unknown = [name for name in args.networks if name not in NETWORKS]
    if unknown:
        parser.error(f'--networks must be some of {NETWORKS}, got {unknown}')
    return args


def build(name: str) -> BackboneNetwork:
    """Return a backbone as a network in eval mode, with folded norms."""
    if name in narrow.BACKBONES:
        model: Any = narrow.build_backbone(name)
    else:
        torch.manual_seed(0)
        model = backbones.build(name)
        # in two lines: networks of mmdet return nothing from eval()
        model.eval()
    model = fuse(model)
    network = BackboneNetwork(model, len(model.out_indices))
    network.eval()
    return network


def measure_backbone(case: Case, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write a backbone, and return the largest error of its outputs at all sizes."""
    network = build(case.network)
    image = torch.zeros(2 if case.is_dynamic else 1, 3, *args.shape)
    program = capture(network, image, dynamic=case.is_dynamic)
    if message := blocking_message(program, case.format, case.form):
        raise ExportError(message)
    FORMATS[case.format].write(program, path, network.output_names, case.form)
    compute = run(case.format, path)
    worst = 0.0
    for batch, height, width in SIZES if case.is_dynamic else ((1, *args.shape),):
        image = torch.randn(batch, 3, height, width)
        with torch.inference_mode():
            expected = network(image)
        worst = max(worst, largest_error(compute(image.numpy()), expected))
    result: dict[str, Any] = dict(error=worst)
    if args.times:
        result['ms'] = milliseconds(compute, args.repeats, args.shape)
    return result


def measure_model(case: Case, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write a model as the command does, and return how its predictions differ."""
    config, options = narrow.MODELS[case.network]
    model, cfg = narrow.build_model(narrow.CONFIGS / config, options)
    shape = None if case.is_dynamic else tuple(args.shape)
    target = Target(case.format, case.form, path, shape)
    task = export(model, cfg, {}, target)
    worst, phrase = 0.0, ''
    for _, error, _, unit in compare(model, task, target):
        worst, phrase = max(worst, error), unit
    return dict(error=worst, unit=phrase)


def milliseconds(compute: Any, repeats: int, shape: tuple[int, int]) -> float:
    """Return the median time of a run with a random image."""
    image = np.random.default_rng(0).standard_normal((1, 3, *shape), dtype=np.float32)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        compute(image)
        times.append(time.perf_counter() - start)
    # the first run allocates
    return 1e3 * float(np.median(times[1:]))


def size_of(path: Path) -> float:
    """Return the size in MiB of a file and of those beside it, without the library of operators."""
    files = [file for file in path.parent.iterdir() if file != library_beside(path)]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a file was measured to be, or why there is none."""
    measure_network = measure_model if case.network in narrow.MODELS else measure_backbone
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'model{FORMATS[case.format].ending}'
        try:
            result = measure_network(case, path, args)
        # a network that cannot be exported is a row of the table
        except Exception as failure:
            # torch colours its messages for terminals
            reason = re.sub(r'\x1b\[\d*m', '', f'{type(failure).__name__}: {failure}')
            return dict(failure=textwrap.shorten(reason, 220, placeholder=' ...'))
        result['mib'] = size_of(path)
        if case.format == 'onnx':
            result['nodes'] = count_nodes(path)
        return result


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield all files that the arguments ask for."""
    for name in args.formats:
        if message := missing_message(name):
            print(message, file=sys.stderr)
            continue
        forms = [form for form in FORMATS[name].forms if form in args.forms]
        for network in args.networks:
            for form in forms:
                for sizes in args.sizes:
                    yield Case(network, name, form, sizes == 'any')


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.results)
    for case in cases(args):
        start = time.monotonic()
        result = measure(case, args)
        results.add(case.key, result)
        print(f'{case.key}: {result} ({time.monotonic() - start:.0f} s)', flush=True)
    if args.page:
        write_page(args.page, results.entries)


if __name__ == '__main__':
    main()
