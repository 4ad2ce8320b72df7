"""Export backbones to every format, compare and time them: the table of docs/export.md."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from mmrednet import fuse
from mmrednet.export import capture, largest_error
from mmrednet.export.formats import FORMATS, FORMS, library_beside, missing_message
from mmrednet.export.networks import BackboneNetwork
from mmrednet.export.onnx_file import count_nodes
from tools.benchmarks.backbones import BACKBONES, BASELINE, build

# sizes at which files for any size are compared, odd ones among them
SIZES = ((1, 224, 224), (1, 161, 203), (2, 97, 131))
HEADER = '| backbone | format | form | sizes | largest error | nodes | MiB | ms | ratio |'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--backbones', nargs='+', default=[BASELINE, 'RedNet-50'], metavar='NAME')
    parser.add_argument('--formats', nargs='+', default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument('--static', action='store_true', help='also files for one size')
    parser.add_argument('--forms', nargs='+', default=list(FORMS), choices=list(FORMS))
    parser.add_argument('--shape', type=int, nargs=2, default=(480, 640), metavar=('H', 'W'))
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=9)
    args = parser.parse_args()
    if unknown := set(args.backbones) - set(BACKBONES):
        parser.error(f'--backbones must be some of {list(BACKBONES)}, got {sorted(unknown)}')
    return args


def network_of(name):
    torch.manual_seed(0)
    model = build(name)
    # in two lines: networks of mmdet return nothing from eval()
    model.eval()
    model = fuse(model)
    return BackboneNetwork(model, len(model.out_indices)).eval()


def write(network, name, form, is_dynamic, path, shape):
    """Write a file, and return what runs it."""
    image = torch.zeros(2 if is_dynamic else 1, 3, *shape)
    program = capture(network, image, dynamic=is_dynamic)
    FORMATS[name].write(program, path, network.output_names, form)
    return FORMATS[name].run(path)


def error_of(network, run, is_dynamic, shape):
    worst = 0.0
    for batch, height, width in SIZES if is_dynamic else ((1, *shape),):
        image = torch.randn(batch, 3, height, width)
        with torch.inference_mode():
            expected = network(image)
        worst = max(worst, largest_error(run(image.numpy()), expected))
    return worst


def milliseconds(run, repeats, shape):
    image = np.random.default_rng(0).standard_normal((1, 3, *shape), dtype=np.float32)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    # the first run allocates
    return 1e3 * float(np.median(times[1:]))


def size_of(path):
    """Return the size in MiB of a file and of those beside it, without the library of operators."""
    files = [file for file in path.parent.iterdir() if file != library_beside(path)]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def row(network, name, form, is_dynamic, args):
    """Return the largest error, the nodes, the size in MiB and the time in ms of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ('model' + FORMATS[name].ending)
        run = write(network, name, form, is_dynamic, path, args.shape)
        error = error_of(network, run, is_dynamic, args.shape)
        nodes = str(count_nodes(path)) if name == 'onnx' else ''
        return error, nodes, size_of(path), milliseconds(run, args.repeats, args.shape)


def cases(args):
    """Yield the format, the form and whether files take any size, of all rows of a backbone."""
    for name in args.formats:
        if message := missing_message(name):
            print(message, file=sys.stderr)
            continue
        forms = [form for form in FORMATS[name].forms if form in args.forms]
        for form in forms:
            for is_dynamic in (True, False) if args.static else (True,):
                yield name, form, is_dynamic


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(HEADER)
    print('|---' * (HEADER.count('|') - 1) + '|')
    baselines = {}
    for backbone in args.backbones:
        network = network_of(backbone)
        for name, form, is_dynamic in cases(args):
            label = f'| {backbone} | {name} | {form} | {"any" if is_dynamic else "one"} |'
            try:
                error, nodes, size, time_ms = row(network, name, form, is_dynamic, args)
            except Exception as failure:
                reason = ' '.join(str(failure).split())[:80]
                print(label, f'{type(failure).__name__}: {reason} | | | | |', flush=True)
                continue
            baseline = baselines.setdefault((name, is_dynamic), time_ms)
            print(
                label,
                f'{error:.0e} | {nodes} | {size:.0f} | {time_ms:.0f} | {time_ms / baseline:.2f} |',
                flush=True,
            )


if __name__ == '__main__':
    main()
