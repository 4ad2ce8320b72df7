"""Time the primitives against the unfold definition and against copying their inputs once, as ratios from one run.

Contestants take turns, so that whatever else the machine does falls on all of them; medians are compared.
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional as F

from mmrednet.analysis import medians
from mmrednet.ops import Window, _native, _torch, active_kernels, local_aggregate, local_correlate

# maps of RedNet-50's stages
SHAPES = {'224': [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)],
          '800x1344': [(64, 200, 336), (128, 100, 168), (256, 50, 84), (512, 25, 42)]}
GROUP_CHANNELS = 16
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--input', choices=list(SHAPES), nargs='+', default=['224'])
    parser.add_argument('--kernel-size', type=int, default=7)
    parser.add_argument('--dtype', choices=list(DTYPES), default='float32')
    parser.add_argument('--layout', choices=['contiguous', 'channels-last'], nargs='+',
                        default=['contiguous', 'channels-last'])
    parser.add_argument('--rounds', type=int, default=15)
    return parser.parse_args()


def unfold_aggregate(value, weight, window):
    batch, groups, channels, height, width = value.shape
    patches = F.unfold(value.reshape(batch, groups * channels, height, width), window.kernel,
                       window.dilation, window.padding, window.stride)
    patches = patches.view(batch, groups, channels, window.taps, *weight.shape[-2:])
    return (weight.unsqueeze(2) * patches).sum(3)


def unfold_correlate(query, key, window):
    batch, groups, channels, height, width = key.shape
    patches = F.unfold(key.reshape(batch, groups * channels, height, width), window.kernel, window.dilation,
                       window.padding, window.stride)
    return (query.unsqueeze(3) * patches.view(batch, groups, channels, window.taps, *query.shape[-2:])).sum(2)


def laid_out(groups, inner, height, width, layout, dtype):
    if layout == 'contiguous':
        return torch.randn(1, groups, inner, height, width).to(dtype)
    return torch.randn(1, height, width, groups, inner).to(dtype).permute(0, 3, 4, 1, 2)


def with_gradient(function, *tensors):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]

    def run():
        torch.autograd.grad(function(*tensors).sum(), tensors)
    return run


def table(title, kernels, definition, operator, first, second, window, rounds):
    """Print one row: how many times faster than the definition, and how many times slower than a copy."""
    contestants = {'unfold': lambda: definition(first, second, window),
                   'copy': lambda: (first.clone(), second.clone())}
    for name, function in kernels.items():
        contestants[name] = lambda function=function: function(first, second, window)
    contestants['unfold, backward'] = with_gradient(lambda a, b: definition(a, b, window), first, second)
    contestants['ours, backward'] = with_gradient(lambda a, b: operator(a, b, window), first, second)
    seconds = medians(contestants, rounds)
    fastest = min(kernels, key=lambda name: seconds[name])
    cells = [f"{seconds['unfold'] / seconds[name]:.1f}" for name in kernels]
    print(f"| {title} | {1e3 * seconds['unfold']:.2f} | {' | '.join(cells)} | "
          f"{seconds[fastest] / seconds['copy']:.1f} | "
          f"{seconds['unfold, backward'] / seconds['ours, backward']:.1f} |", flush=True)


def main():
    args = parse_args()
    torch.manual_seed(0)
    window, dtype = Window(args.kernel_size), DTYPES[args.dtype]
    modules = {'torch': _torch} if _native.MISSING else {'torch': _torch, 'native': _native}
    print(f'{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, '
          f'{args.dtype}, kernel {args.kernel_size}, groups of {GROUP_CHANNELS}; {active_kernels()["cpu"]}\n')
    names = ' | '.join(f'unfold / {name}' for name in modules)
    print(f'| operator, map, layout | unfold, ms | {names} | fastest / copy of the inputs | unfold / ours, forward and '
          f'backward |\n|{"---|" * (4 + len(modules))}')
    for layout in args.layout:
        for channels, height, width in (shape for name in args.input for shape in SHAPES[name]):
            groups = channels // GROUP_CHANNELS
            value, query = (laid_out(groups, GROUP_CHANNELS, height, width, layout, dtype) for _ in range(2))
            weight = laid_out(groups, window.taps, height, width, layout, dtype)
            where = f'{channels} x {height} x {width}, {layout}'
            table(f'aggregate, {where}', {name: module.aggregate for name, module in modules.items()}, unfold_aggregate,
                  local_aggregate, value, weight, window, args.rounds)
            table(f'correlate, {where}', {name: module.correlate for name, module in modules.items()}, unfold_correlate,
                  local_correlate, query, value, window, args.rounds)


if __name__ == '__main__':
    main()
