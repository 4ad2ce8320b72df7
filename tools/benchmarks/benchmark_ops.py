"""Time the operators against their unfold definitions and against a copy of their inputs.

Contestants take turns, so that other load on the machine falls on all of them. Medians are
compared, as ratios from one run. Inputs are copied into tensors that exist already. The copy is a
floor: it does not allocate new pages, whereas operators allocate their results. Bytes are those of
the inputs and of the result, each counted once. The memory of a forward pass is the peak of the
process above what it held before, as a multiple of the inputs and the result.
"""

import argparse
import ctypes
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from mmrednet import keep_memory

# before the first tensor
keep_memory()

import torch

from benchmarks import machine
from benchmarks.baselines import TAPS, UNFOLD, with_window
from benchmarks.cases import CASES, GROUP_CHANNELS, STAGES, Setting
from benchmarks.timing import medians
from benchmarks.training_memory import RESET_PEAK, status

INPUTS = ('224', '800x1344')
LAYOUTS = ('contiguous', 'channels-last')
HEADS = 8
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
COLUMNS = (
    'operator, map, layout',
    'MB',
    'ours, GB/s',
    'unfold, ms',
    'unfold / plain torch',
    'unfold / ours',
    'ours / copy',
    'unfold / ours, forward and backward',
    'memory of unfold',
    'memory of ours',
)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--input', choices=INPUTS, nargs='+', default=['224'])
    parser.add_argument('--operators', choices=list(UNFOLD), nargs='+', default=list(UNFOLD))
    parser.add_argument('--kernel-size', type=int, default=7)
    parser.add_argument('--dtype', choices=list(DTYPES), default='float32')
    parser.add_argument('--layout', choices=LAYOUTS, nargs='+', default=list(LAYOUTS))
    parser.add_argument('--rounds', type=int, default=15)
    return parser.parse_args()


def peak_memory(function):
    """Return the peak memory of a call above what the process held before.

    It is None where the system does not tell.
    """
    try:
        # return freed memory to the system, and reset its peak
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        RESET_PEAK.write_text('5')
        before = status('VmRSS')
    except (OSError, AttributeError, StopIteration):
        return None
    function()
    peak = status('VmHWM')
    # the trimmed heap grows into pages without advice
    keep_memory.cache_clear()
    keep_memory()
    return peak - before


def forward(function, tensors):
    """Return the forward pass as a function without arguments."""
    return lambda: function(*tensors)


def both_passes(function, tensors):
    """Return both passes as a function without arguments."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]

    def run():
        torch.autograd.grad(function(*leaves).sum(), leaves)

    return run


def copies(tensors):
    """Return a copy of all tensors into others that exist already, as a function."""
    targets = [tensor.clone() for tensor in tensors]

    def run():
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)

    return run


def memory_cell(memory, size):
    """Return peak memory as a multiple of ``size``, the bytes of the inputs and the result."""
    # below a few pages per tensor the system's counters are too coarse
    if memory is None or size < 1 << 24:
        return '-'
    return f'{memory / size:.2f}'


def row(operator, setting, rounds):
    """Return one line of the table: bytes, speed and memory of an operator and its baselines."""
    case = CASES[operator](setting)
    tensors = list(case.inputs.values())
    unfold = with_window(UNFOLD[operator], case.window)
    taps = with_window(TAPS[operator], case.window)
    contestants = {
        'unfold': forward(unfold, tensors),
        'taps': forward(taps, tensors),
        'ours': forward(case.operator, tensors),
        'copy': copies(tensors),
        'unfold, both passes': both_passes(unfold, tensors),
        'ours, both passes': both_passes(case.operator, tensors),
    }
    # the first call of a contestant allocates what later calls use again
    contestants['ours']()
    unfold_memory = peak_memory(contestants['unfold'])
    ours_memory = peak_memory(contestants['ours'])
    seconds = medians(contestants, rounds)
    sizes = ' x '.join(str(number) for number in setting.stage)
    cells = [
        f'{operator}, {sizes}, {setting.layout}',
        f'{case.bytes / 1e6:.2f}',
        f'{case.bytes / 1e9 / seconds["ours"]:.1f}',
        f'{1e3 * seconds["unfold"]:.2f}',
        f'{seconds["unfold"] / seconds["taps"]:.1f}',
        f'{seconds["unfold"] / seconds["ours"]:.1f}',
        f'{seconds["ours"] / seconds["copy"]:.1f}',
        f'{seconds["unfold, both passes"] / seconds["ours, both passes"]:.1f}',
        memory_cell(unfold_memory, case.bytes),
        memory_cell(ours_memory, case.bytes),
    ]
    return f'| {" | ".join(cells)} |'


def main():
    args = parse_args()
    torch.manual_seed(0)
    print(
        f'{machine.describe()}\n{args.dtype}, kernel {args.kernel_size}, groups of '
        f'{GROUP_CHANNELS}, {HEADS} heads.\n'
    )
    print('|', ' | '.join(COLUMNS), '|')
    print(f'|{"---|" * len(COLUMNS)}')
    dtype = DTYPES[args.dtype]
    stages = [stage for name in args.input for stage in STAGES[name]]
    for layout in args.layout:
        for stage in stages:
            setting = Setting(1, stage, args.kernel_size, dtype, layout=layout, heads=HEADS)
            for operator in args.operators:
                print(row(operator, setting, args.rounds), flush=True)


if __name__ == '__main__':
    main()
