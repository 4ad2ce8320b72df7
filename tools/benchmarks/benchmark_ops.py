"""Time the operators against their unfold definitions and against copying their inputs once, as
ratios from one run.

Contestants take turns, so that whatever else the machine does falls on all of them; medians are
compared. Inputs are
copied into tensors that are there already: a floor, without the pages that new memory costs, while
    the operators make their results anew. Bytes are those of the inputs and of the result, each
    counted once. The memory of a forward pass is what the process holds at most beyond what it held
    before, as a multiple of the inputs and the result.
"""

import argparse
import ctypes
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import torch
from torch.nn import functional as F

from benchmarks.timing import medians
from mmrednet.ops import (
    Window,
    _torch,
    active_kernels,
    attention,
    local_aggregate,
    local_attention,
    local_correlate,
    local_involution,
)

# maps of RedNet-50's and of SASA-50's stages
SHAPES = {
    '224': [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)],
    '800x1344': [(64, 200, 336), (128, 100, 168), (256, 50, 84), (512, 25, 42)],
}
GROUP_CHANNELS, REDUCTION, HEADS = 16, 4, 8
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
STATUS = Path('/proc/self/status')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--input', choices=list(SHAPES), nargs='+', default=['224'])
    parser.add_argument('--operators', choices=list(OPERATORS), nargs='+', default=list(OPERATORS))
    parser.add_argument('--kernel-size', type=int, default=7)
    parser.add_argument('--dtype', choices=list(DTYPES), default='float32')
    parser.add_argument(
        '--layout',
        choices=['contiguous', 'channels-last'],
        nargs='+',
        default=['contiguous', 'channels-last'],
    )
    parser.add_argument('--rounds', type=int, default=15)
    return parser.parse_args()


def unfolded(x, window, size):
    """Return (B, G, D, K, Ho, Wo), every neighbour of every position."""
    patches = F.unfold(
        x.flatten(1, 2), window.kernel, window.dilation, window.padding, window.stride
    )
    return patches.view(*x.shape[:3], window.taps, *size)


def unfold_aggregate(value, weight, window):
    return (weight.unsqueeze(2) * unfolded(value, window, weight.shape[-2:])).sum(3)


def unfold_correlate(query, key, window):
    return (query.unsqueeze(3) * unfolded(key, window, query.shape[-2:])).sum(2)


def unfold_involution(value, hidden, weight, bias, window):
    kernels = F.conv2d(hidden, weight[:, :, None, None], bias).unflatten(1, (value.shape[1], -1))
    return unfold_aggregate(value, kernels, window)


def unfold_attention(query, key, value, rows, columns, window):
    logits = unfold_correlate(query, key, window) + attention.relative_logits(query, rows, columns)
    weight = logits.masked_fill(
        attention.outside(window, key.shape[-2:], key.device), -torch.inf
    ).softmax(2)
    return unfold_aggregate(value, weight, window)


def tap_by_tap_involution(value, hidden, weight, bias, window):
    kernels = F.conv2d(hidden, weight[:, :, None, None], bias).unflatten(1, (value.shape[1], -1))
    return _torch.aggregate(value, kernels, window)


def tap_by_tap_attention(query, key, value, rows, columns, window):
    logits = _torch.correlate(query, key, window) + attention.relative_logits(query, rows, columns)
    return _torch.aggregate(value, attention.attend(logits, window, key.shape[-2:]), window)


class Case:
    """Random inputs of every operator for one map, in one layout and dtype."""

    def __init__(self, channels, height, width, window, layout, dtype):
        self.channels, self.size, self.window, self.dtype = channels, (height, width), window, dtype
        self.last = layout == 'channels-last'
        self.groups = channels // GROUP_CHANNELS

    def tensor(self, channels, groups=None):
        """Return (1, C, H, W), or (1, G, C / G, H, W)."""
        shape = (1, *self.size, channels) if self.last else (1, channels, *self.size)
        x = torch.randn(shape).to(self.dtype)
        x = x.permute(0, 3, 1, 2) if self.last else x
        return x if groups is None else x.unflatten(1, (groups, -1))

    def aggregate(self):
        """Return value and weight."""
        return self.tensor(self.channels, self.groups), self.tensor(
            self.groups * self.window.taps, self.groups
        )

    def correlate(self):
        """Return query and key."""
        return self.tensor(self.channels, self.groups), self.tensor(self.channels, self.groups)

    def involution(self):
        """Return value, hidden, weight and bias."""
        rows = self.groups * self.window.taps
        hidden = self.channels // REDUCTION
        generator = torch.randn(rows, hidden), torch.randn(rows)
        return (
            self.tensor(self.channels, self.groups),
            self.tensor(hidden),
            *(table.to(self.dtype) for table in generator),
        )

    def attention(self):
        """Return query, key, value, rows and columns."""
        half = self.channels // HEADS // 2
        return (
            *(self.tensor(self.channels, HEADS) for _ in range(3)),
            *(torch.randn(HEADS, half, taps).to(self.dtype) for taps in self.window.kernel),
        )


# by unfold, tap by tap in plain torch, and the operator itself
OPERATORS = {
    'aggregate': (unfold_aggregate, _torch.aggregate, local_aggregate),
    'correlate': (unfold_correlate, _torch.correlate, local_correlate),
    'involution': (unfold_involution, tap_by_tap_involution, local_involution),
    'attention': (
        unfold_attention,
        tap_by_tap_attention,
        lambda query, key, value, rows, columns, window: local_attention(
            query, key, value, window, rows=rows, columns=columns
        ),
    ),
}


def status(field):
    """Return a number of the process in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak_memory(function):
    """Return what a call holds at most beyond what was held before; None where the system does not
    tell.
    """
    try:
        # memory that was freed goes back to the system, and the peak starts again
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        before = status('VmRSS')
    except (OSError, AttributeError, StopIteration):
        return None
    function()
    return status('VmHWM') - before


def with_gradient(function, tensors, window):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]

    def run():
        torch.autograd.grad(function(*tensors, window).sum(), tensors)

    return run


def row(name, case, rounds):
    """Print the bytes of an operator, its speed beside that of its definition and of a copy, and
    what it needs.
    """
    tensors = getattr(case, name)()
    calls = dict(zip(('unfold', 'torch', 'ours'), OPERATORS[name], strict=True))
    contestants = {
        kind: lambda function=function: function(*tensors, case.window)
        for kind, function in calls.items()
    }
    size = sum(tensor.nbytes for tensor in (*tensors, contestants['ours']()))
    memory = {kind: peak_memory(contestants[kind]) for kind in ('unfold', 'ours')}
    copies = [tensor.clone() for tensor in tensors]
    contestants['copy'] = lambda: [
        copy.copy_(tensor) for copy, tensor in zip(copies, tensors, strict=True)
    ]
    for kind in ('unfold', 'ours'):
        contestants[f'{kind}, backward'] = with_gradient(calls[kind], tensors, case.window)
    seconds = medians(contestants, rounds)
    # below a few pages per tensor the system's counters say nothing
    shares = [
        '-' if memory[kind] is None or size < 1 << 24 else f'{memory[kind] / size:.2f}'
        for kind in memory
    ]
    cells = [
        f'{name}, {case.channels} x {case.size[0]} x {case.size[1]}, '
        f'{"channels-last" if case.last else "contiguous"}',
        f'{size / 1e6:.2f}',
        f'{size / 1e9 / seconds["ours"]:.1f}',
        f'{1e3 * seconds["unfold"]:.2f}',
        f'{seconds["unfold"] / seconds["torch"]:.1f}',
        f'{seconds["unfold"] / seconds["ours"]:.1f}',
        f'{seconds["ours"] / seconds["copy"]:.1f}',
        f'{seconds["unfold, backward"] / seconds["ours, backward"]:.1f}',
        *shares,
    ]
    print('|', ' | '.join(cells), '|', flush=True)


def main():
    args = parse_args()
    torch.manual_seed(0)
    print(
        f'{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, '
        f'{args.dtype}, kernel '
        f'{args.kernel_size}, groups of {GROUP_CHANNELS}, {HEADS} heads; '
        f'{active_kernels()["cpu"]}\n'
    )
    print('|', ' | '.join(COLUMNS), '|')
    print(f'|{"---|" * len(COLUMNS)}')
    for layout in args.layout:
        for shape in (shape for name in args.input for shape in SHAPES[name]):
            for name in args.operators:
                row(
                    name,
                    Case(*shape, Window(args.kernel_size), layout, DTYPES[args.dtype]),
                    args.rounds,
                )


if __name__ == '__main__':
    main()
