"""Check the Triton kernels on this GPU, then time them against everything else, and end in one
table.

Correctness comes first, against float64, on fresh random inputs and poisoned outputs; where it
fails nothing is timed. Times are medians of device events, in a CUDA graph where that works, with
inputs that rotate through more memory than the cache holds. Floors are every input read once and
every output written once at the bandwidth of a copy, and the
operations at the rate of the unit that does them: products with shared weights at that of a large
    matrix product, those with neighbours at that of float32 multiply-adds, all measured in the same
    run. Percentages are the share of a copy's
bandwidth at which the bytes of the floor are moved.
Exit status: 0, 1 where a check fails, 2 where there is no CUDA device.
"""

import argparse
import itertools
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import torch

from benchmarks.gpu import problems
from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.contestants import attentions, axials, involutions
from benchmarks.gpu.measure import Clock
from benchmarks.gpu.operators import time_operator
from benchmarks.gpu.table import HEADER, Pass, row

PARTS = ('checks', 'involution', 'attention', 'axial', 'bottleneck', 'backbones')
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--check-only', action='store_true', help='the checks alone')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='run every part once at tiny sizes on the CPU, without any figure: tests this '
        'script; the checks need TRITON_INTERPRET=1',
    )
    parser.add_argument(
        '--dtypes', nargs='+', choices=list(DTYPES), default=['bfloat16', 'float32'], help='to time'
    )
    parser.add_argument('--batch', type=int, default=2, help='of the operators')
    parser.add_argument('--batches', type=int, nargs='+', default=[2, 16], help='of the backbones')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(800, 1344),
        metavar=('H', 'W'),
        help='for the backbones',
    )
    parser.add_argument('--kernel-size', type=int, default=7)
    parser.add_argument(
        '--compiled',
        type=int,
        default=2,
        help='maps of the first dtype that have compiled contestants, which take most of the time',
    )
    parser.add_argument(
        '--minutes', type=float, default=9.5, help='after which no further row is begun'
    )
    return parser.parse_args()


def operator_part(make, ways, stages=problems.STAGES):
    """Return the part that times the ways to an operator at all stages."""

    def part(clock, args, limits):
        for name in args.dtypes:
            for index, stage in enumerate(stages[clock.dry]):
                if clock.late:
                    return
                # one function compiled for many sizes would be left uncompiled after the first few
                torch._dynamo.reset()
                dtype, first_dtype = DTYPES[name], name == args.dtypes[0]
                first = make(args.batch, stage, args.kernel_size, dtype, clock.device)
                sets = [first] + [
                    make(args.batch, stage, args.kernel_size, dtype, clock.device)
                    for _ in range(clock.sets(first.bytes) - 1)
                ]
                contestants = ways(
                    first,
                    dry=clock.dry,
                    compiled=first_dtype and index < args.compiled,
                    flex=first_dtype,
                )
                yield from time_operator(clock, sets, contestants, dtype, limits)

    return part


def bottleneck_part(clock, args, limits):
    """The memory of one block in training, with involution and with a convolution, without its
    neighbours.
    """
    from benchmarks.gpu.twins import Bottleneck

    for channels, *size in problems.STAGES[clock.dry]:
        for name, involves in (('ResNet-50', False), ('RedNet-50', True)):
            if clock.late:
                return
            block = Bottleneck(4 * channels, channels, 1, involves).to(
                clock.device, memory_format=torch.channels_last
            )
            x = torch.randn(
                args.batch, 4 * channels, *size, device=clock.device, requires_grad=True
            )
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
    """Return ResNet-50 and RedNet-50 of the stack, or their twins where it is not installed."""
    from benchmarks.gpu.twins import of_the_stack, twins

    try:
        return of_the_stack()
    except ImportError:
        return twins()


def backbone_part(clock, args, limits):
    shape, batches = ((32, 48), [1]) if clock.dry else (args.shape, args.batches)
    models = {name: model.to(clock.device) for name, model in networks().items()}
    # the networks take turns, so that each has its figures where time runs out
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
    """Return an inference and a training step of a network; in half precision by autocast."""
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


RUN = dict(
    involution=operator_part(problems.involution, involutions),
    attention=operator_part(problems.attention, attentions),
    axial=operator_part(problems.axial, axials, problems.AXIAL_STAGES),
    bottleneck=bottleneck_part,
    backbones=backbone_part,
)


def checked(device, dry):
    """Print the checks and return whether all passed."""
    from benchmarks.gpu.checks import check_kernels
    from benchmarks.gpu.launches import check_launches

    rows = check_kernels([torch.bfloat16] if dry else list(DTYPES.values()), device, dry)
    rows += check_launches(device, dry)
    print('| kernels | dtype | worst error | |\n|---|---|---|---|')
    for name, dtype, error, fine in rows:
        print(
            f'| {name} | {str(dtype).removeprefix("torch.")} | {error:.1e} | '
            f'{"passed" if fine else "FAILED"} |'
        )
    print(flush=True)
    return all(fine for *_, fine in rows)


def main():
    args = parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        print(
            'There is no CUDA device: nothing was checked, nothing was measured.', file=sys.stderr
        )
        sys.exit(2)
    clock = Clock(
        'cpu' if args.dry_run else 'cuda', args.dry_run, time.monotonic() + 60 * args.minutes
    )
    chip = 'dry run, no figures' if args.dry_run else torch.cuda.get_device_name()
    from mmrednet.ops import active_kernels

    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    about = f'{chip}; {versions}; {active_kernels()["cuda"]}'
    print(about, '\n')
    if ('checks' in args.parts or args.check_only) and not checked(clock.device, args.dry_run):
        print('A check failed: nothing is timed.', file=sys.stderr)
        sys.exit(1)
    if args.check_only:
        return
    limits = ceilings(clock, [DTYPES[name] for name in args.dtypes])
    lines = []
    for part in PARTS[1:]:
        if part in args.parts:
            for line in RUN[part](clock, args, limits):
                # seen at once, and again in the table
                print(line, file=sys.stderr, flush=True)
                lines.append(line)
    print(about)
    if limits is not None:
        rates = ', '.join(
            f'{str(dtype).removeprefix("torch.")} {rate / 1e12:.0f}'
            for dtype, rate in limits.matrix.items()
        )
        print(
            f'A copy reads and writes {limits.bandwidth / 1e12:.2f} TB/s; matrix products, '
            f'TFLOP/s: {rates}; '
            f'multiply-adds one by one: {limits.vector / 1e12:.0f}.'
        )
    if clock.late:
        print(
            f'Stopped after {args.minutes} minutes: later rows are missing; --parts asks for some '
            'alone.'
        )
    print(f'\n{HEADER}', *lines, sep='\n')


if __name__ == '__main__':
    main()
