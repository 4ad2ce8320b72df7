"""Check the Triton kernels on this GPU, time them against other formulations, and print one table.

Correctness comes first, against float64, on fresh random inputs and poisoned outputs. Where a check
fails nothing is timed. Times are medians of device events, in a CUDA graph where that works, with
inputs that rotate through more memory than the cache holds.

Floors are two. The first is the time to read every input once and write every output once at the
bandwidth of a copy. The second is the time of the operations at the rate of their unit: products
with shared weights at that of a large matrix product, those with neighbours at that of float32
multiply-adds. All rates are measured in the same run. Percentages are the bandwidth of the first
floor's bytes as a share of a copy's.

Exit status: 0, 1 where a check fails, 2 where there is no CUDA device.
"""

import argparse
import itertools
import os
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

# the checks below are all that is asked: kernels run whether this chip was verified or not
os.environ['MMREDNET_TRITON'] = '1'

import torch

from benchmarks.cases import AXIAL_STAGES, CASES, STAGES, Setting
from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.contestants import attentions, axials, involutions, statistics, vectors
from benchmarks.gpu.measure import Clock
from benchmarks.gpu.operators import time_operator
from benchmarks.gpu.table import HEADER, Pass, row
from mmrednet.ops import active_kernels

PARTS = (
    *('checks', 'involution', 'attention', 'axial', 'vector', 'patchwise'),
    *('statistics', 'patchwise-statistics', 'bottleneck', 'backbones'),
)
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--check-only', action='store_true', help='run the checks alone')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='test this script: run every part once at tiny sizes on the CPU, without any '
        'figure; the checks need TRITON_INTERPRET=1',
    )
    parser.add_argument(
        '--dtypes',
        nargs='+',
        choices=list(DTYPES),
        default=['bfloat16', 'float32'],
        help='dtypes to time',
    )
    parser.add_argument('--batch', type=int, default=2, help='batch size of the operators')
    parser.add_argument(
        '--batches', type=int, nargs='+', default=[2, 16], help='batch sizes of the backbones'
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(800, 1344),
        metavar=('H', 'W'),
        help='size of the images for the backbones',
    )
    parser.add_argument('--kernel-size', type=int, default=7)
    parser.add_argument(
        '--compiled',
        type=int,
        default=2,
        help='number of maps of the first dtype with compiled contestants, which take most of the '
        'time',
    )
    parser.add_argument(
        '--minutes', type=float, default=9.5, help='time after which no further row is begun'
    )
    return parser.parse_args()


def image_size(clock):
    """Return the name of the stages to run."""
    return 'tiny' if clock.dry else '800x1344'


def operator_part(operator, contestants_of, stages=STAGES):
    """Return the part that times all contestants of an operator at all stages."""

    def part(clock, args, limits):
        for name in args.dtypes:
            for index, stage in enumerate(stages[image_size(clock)]):
                if clock.late:
                    return
                # torch.compile gives up on a function after a few sizes
                torch._dynamo.reset()
                dtype, is_first_dtype = DTYPES[name], name == args.dtypes[0]
                setting = Setting(args.batch, stage, args.kernel_size, dtype, clock.device)
                sets = [CASES[operator](setting)]
                while len(sets) < clock.sets(sets[0].bytes):
                    sets.append(CASES[operator](setting))
                contestants = contestants_of(
                    sets[0],
                    dry=clock.dry,
                    compiled=is_first_dtype and index < args.compiled,
                    flex=is_first_dtype,
                )
                yield from time_operator(clock, sets, contestants, dtype, limits)

    return part


def bottleneck_part(clock, args, limits):
    """Yield the time and the memory of one block in training, with involution or a convolution."""
    from benchmarks.gpu.twins import Bottleneck

    for channels, *size in STAGES[image_size(clock)]:
        for name, involves in (('ResNet-50', False), ('RedNet-50', True)):
            if clock.late:
                return
            block = Bottleneck(4 * channels, channels, 1, involves).to(
                clock.device, memory_format=torch.channels_last
            )
            x = torch.randn(
                args.batch, 4 * channels, *size, device=clock.device, requires_grad=True
            )
            # a leaf again, in channels-last
            x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()

            def step(block=block, x=x):
                with torch.autocast(clock.device, torch.bfloat16):
                    result = block(x)
                torch.autograd.grad(result.float().sum(), [x, *block.parameters()])

            shape = ' x '.join(str(length) for length in x.shape)
            yield row(
                f'bottleneck {shape}',
                name,
                'bfloat16 autocast',
                both=Pass(clock.milliseconds([step], graph=False)),
                peak=clock.peak_bytes(step),
            )


def networks():
    """Return mmdet's ResNet-50 and our RedNet-50, or their twins where mm packages are missing."""
    from benchmarks.gpu.twins import of_the_stack, twins

    try:
        return of_the_stack()
    except ImportError:
        return twins()


def backbone_part(clock, args, limits):
    """Yield the time and the memory of whole backbones, for inference and training."""
    shape, batches = ((32, 48), [1]) if clock.dry else (args.shape, args.batches)
    models = {name: model.to(clock.device) for name, model in networks().items()}
    # the networks take turns, so that both have figures where time runs out
    for dtype, batch, layout in itertools.product(args.dtypes, batches, reversed(LAYOUTS)):
        image = torch.randn(batch, 3, *shape, device=clock.device).contiguous(
            memory_format=LAYOUTS[layout]
        )
        what = ' x '.join(str(length) for length in image.shape)
        for name, model in models.items():
            if clock.late or (clock.dry and layout == 'contiguous'):
                continue
            infer, train = passes(model.to(memory_format=LAYOUTS[layout]), image, DTYPES[dtype])
            try:
                yield row(
                    what,
                    f'{name}, {layout}',
                    dtype,
                    Pass(clock.milliseconds([infer])),
                    Pass(clock.milliseconds([train], graph=False)),
                    clock.peak_bytes(train),
                )
            except torch.cuda.OutOfMemoryError:
                yield row(what, f'{name}, {layout}', dtype, note='out of memory')
            model.zero_grad()
            clock.release()


def passes(model, image, dtype):
    """Return an inference step and a training step of a network, by autocast in half precision."""
    from benchmarks.gpu.twins import total

    cast = dict(
        device_type=image.device.type,
        dtype=torch.bfloat16 if dtype == torch.float32 else dtype,
        enabled=dtype != torch.float32,
    )

    def infer():
        model.eval()
        with torch.inference_mode(), torch.autocast(**cast):
            model(image)

    def train():
        model.train()
        model.zero_grad()
        with torch.autocast(**cast):
            result = total(model(image))
        result.backward()

    return infer, train


RUN = {
    'involution': operator_part('involution', involutions),
    'attention': operator_part('attention', attentions),
    'axial': operator_part('axial', axials, AXIAL_STAGES),
    'vector': operator_part('vector', vectors),
    'patchwise': operator_part('patchwise', vectors),
    'statistics': operator_part('statistics', statistics),
    'patchwise-statistics': operator_part('patchwise-statistics', statistics),
    'bottleneck': bottleneck_part,
    'backbones': backbone_part,
}


def checked(device, dry):
    """Print the checks. Return True if all passed."""
    # these need Triton
    from benchmarks.gpu.checks import check_kernels
    from benchmarks.gpu.launches import check_launches

    rows = check_kernels([torch.bfloat16] if dry else list(DTYPES.values()), device, dry)
    rows += check_launches(device, dry)
    print('| kernels | dtype | worst error | |\n|---|---|---|---|')
    for name, dtype, error, passed in rows:
        dtype_name = str(dtype).removeprefix('torch.')
        print(f'| {name} | {dtype_name} | {error:.1e} | {"passed" if passed else "FAILED"} |')
    print(flush=True)
    return all(passed for *_, passed in rows)


def table_entry(device):
    """Return the entry that lets kernels run on this chip without a check on first use."""
    from mmrednet.ops._triton import trust

    return (
        'These kernels need no check on first use on this chip with this entry of VERIFIED in '
        f'mmrednet/ops/_triton/verified.py:\n\n    {trust.entry(torch.device(device))},\n'
    )


def rates(limits):
    """Return the sentence with the measured peak rates."""
    matrix_rates = ', '.join(
        f'{str(dtype).removeprefix("torch.")} {rate / 1e12:.0f}'
        for dtype, rate in limits.matrix.items()
    )
    return (
        f'A copy reads and writes {limits.bandwidth / 1e12:.2f} TB/s; matrix products, TFLOP/s: '
        f'{matrix_rates}; multiply-adds one by one: {limits.vector / 1e12:.0f}.'
    )


def timed(clock, args, limits):
    """Return the lines of the table."""
    lines = []
    for part in PARTS[1:]:
        if part not in args.parts:
            continue
        for line in RUN[part](clock, args, limits):
            # at once to stderr, since the table comes at the end
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
    return lines


def main():
    args = parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        print(
            'There is no CUDA device: nothing was checked, nothing was measured.', file=sys.stderr
        )
        sys.exit(2)
    device = 'cpu' if args.dry_run else 'cuda'
    clock = Clock(device, args.dry_run, time.monotonic() + 60 * args.minutes)
    chip = 'dry run, no figures' if args.dry_run else torch.cuda.get_device_name()
    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    about = f'{chip}; {versions}; {active_kernels()["cuda"]}'
    print(about, '\n')
    if 'checks' in args.parts or args.check_only:
        if not checked(clock.device, args.dry_run):
            print('A check failed: nothing is timed.', file=sys.stderr)
            sys.exit(1)
        if not args.dry_run:
            print(table_entry(device))
    if args.check_only:
        return
    limits = ceilings(clock, [DTYPES[name] for name in args.dtypes])
    lines = timed(clock, args, limits)
    print(about)
    if limits is not None:
        print(rates(limits))
    if clock.late:
        print(
            f'Stopped after {args.minutes} minutes: later rows are missing; --parts asks for some '
            'alone.'
        )
    print(f'\n{HEADER}', *lines, sep='\n')


if __name__ == '__main__':
    main()
