"""Compile kernels for a GPU that is not there. As a script, print the resources of each."""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class NoDevice:
    """A driver that answers what Triton asks before it compiles."""

    def __init__(self, capability):
        self.target = GPUTarget('cuda', capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, _):
        return 0


def resources(binary):
    """Return the resources of a compiled kernel, as the disassembler reports them."""
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / 'kernel.cubin'
        cubin.write_bytes(binary.asm['cubin'])
        text = subprocess.run(
            [tool, '--dump-resource-usage', cubin], capture_output=True, text=True, check=True
        ).stdout
    fields = dict(re.findall(r'(REG|STACK|LOCAL):(\d+)', text))
    products = re.findall(r'\b(?:mma|wgmma\.mma_async)\.sync', binary.asm['ptx'])
    return dict(
        registers=int(fields['REG']),
        stack=int(fields['STACK']) + int(fields['LOCAL']),
        shared=binary.metadata.shared,
        matrix_instructions=len(products),
        wide_loads=binary.asm['ptx'].count('ld.global.v4.b32'),
    )


@contextmanager
def offline(capability=90):
    """Compile launches instead of running them. Yields the compiled kernels by name."""
    binaries, run = {}, JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **constants):
        kernel = run(self, *arguments, grid=grid, warmup=True, **constants)
        binaries.setdefault(self.__name__, set()).add(kernel)

    JITFunction.run = compile_only
    driver.set_active(NoDevice(capability))
    try:
        yield binaries
    finally:
        JITFunction.run = run
        driver.set_active(None)


def launch_vector_attention(dtype, sizes, groups, group_channels, channels):
    """Launch the kernels of vector attention and of its statistics on channels-last maps."""
    from mmrednet.ops import Window
    from mmrednet.ops._triton import vector_attention, vector_moments

    window = Window(7)
    for size, (relation, patchwise) in itertools.product(
        sizes, (('subtraction', False), ('concatenation', True))
    ):
        places = 0 if patchwise else 2
        features = channels * (window.taps + 1) if patchwise else channels + places
        hidden, outputs = (groups, groups * window.taps) if patchwise else (channels, groups)
        query, key, value = (
            torch.randn(1, *size, count).to(dtype).permute(0, 3, 1, 2)
            for count in (channels + places, channels + places, groups * group_channels)
        )
        norms = [torch.randn(count) for count in (features, features, hidden, hidden)]
        weight1, weight2, bias2 = (
            torch.randn(shape).to(dtype)
            for shape in ((hidden, features), (outputs, hidden), (outputs,))
        )
        gamma = (*norms[:2], weight1, *norms[2:], weight2, bias2)
        arguments = (query, key, value, *gamma, relation, patchwise, places, list(window))
        vector_attention.attention(*arguments)
        vector_attention.attention_backward(value, *arguments)
        for layer in (gamma[:3], [None] * 3):
            arguments = (query, key, *layer, relation, patchwise, places, list(window))
            mean, variance = vector_moments.moments(*arguments)
            vector_moments.moments_backward(mean, variance, mean, *arguments)


def launch_all(dtype, sizes, groups, group_channels, hidden_channels, kernel=7):
    """Launch every kernel on channels-last maps of each of these sizes."""
    from mmrednet.ops import Window
    from mmrednet.ops._triton import attention, axial, axial_backward, involution, local

    window, shifted = list(Window(kernel)), list(Window(kernel, border='shift'))
    for size in sizes:

        def last(channels, size=size):
            return torch.randn(1, *size, groups, channels).to(dtype).permute(0, 3, 4, 1, 2)

        value, weight = last(group_channels), last(kernel**2)
        hidden = last(hidden_channels)[:, 0]
        generator, bias = (
            torch.randn(shape).to(dtype)
            for shape in ((groups * kernel**2, hidden_channels), (groups * kernel**2,))
        )
        # a single channel has no halves
        rows, columns = (
            torch.randn(groups, group_channels // 2, kernel).to(dtype)
            if group_channels > 1
            else None
            for _ in range(2)
        )
        local.aggregate(value, weight, window)
        local.correlate(value, value, window)
        local.scatter(value, weight, size, window)
        local.scatter(value, weight, size, shifted)
        involution.involution(value, hidden, generator, bias, window)
        _, sums = attention.attention(value, value, value, rows, columns, None, window)
        attention.attention_backward(value, sums, value, value, value, rows, columns, None, window)
        by_place = torch.randn(groups, kernel**4).to(dtype)
        inputs = (value, value, value, None, None, by_place, shifted)
        _, sums = attention.attention(*inputs)
        attention.attention_backward(value, sums, *inputs)
        keys = -(-group_channels // 2)
        batch, _, _, *size = value.shape
        lines = torch.randn(batch, groups, 2 * keys + group_channels, *size).to(dtype)
        table = torch.randn(2 * keys + group_channels, 111).to(dtype)
        scale, shift = torch.rand(2, 3, groups)
        options = (keys, [0, 1, 2], 0, True, 1)
        result = axial.attention(lines, table, scale, shift, None, *options)
        axial_backward.attention_backward(result, lines, table, scale, *options)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='bfloat16')
    parser.add_argument('--groups', type=int, default=8)
    parser.add_argument('--group-channels', type=int, default=16)
    parser.add_argument(
        '--hidden', type=int, help='features of the generator (default: a quarter of all channels)'
    )
    parser.add_argument('--families', nargs='+', default=['others', 'vector'])
    parser.add_argument('--capability', type=int, default=90)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    with offline(args.capability) as compiled:
        dtype, sizes = getattr(torch, args.dtype), ((16, 32), (13, 17))
        channels = args.groups * args.group_channels
        hidden = args.hidden or max(1, channels // 4)
        if 'others' in args.families:
            launch_all(dtype, sizes, args.groups, args.group_channels, hidden)
        if 'vector' in args.families:
            # networks have a quarter of the channels for relations, and groups of 8
            launch_vector_attention(dtype, sizes, channels // 8, 8, channels // 4)
    kernels = {
        name: [resources(binary) for binary in binaries] for name, binaries in compiled.items()
    }
    if args.json:
        print(json.dumps(kernels))
        return
    print(
        '| kernel | registers of a thread | spilled bytes | shared memory, bytes | matrix '
        'instructions | '
        '16-byte loads |\n|---|---|---|---|---|---|'
    )
    for name, binaries in kernels.items():
        for numbers in binaries:
            print(f'| `{name}` |', ' | '.join(str(number) for number in numbers.values()), '|')


if __name__ == '__main__':
    main()
