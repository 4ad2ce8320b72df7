"""The C++ headers of the CPU kernels: each compiles by itself, for every instruction set; and how
accurate the exponential is.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from mmrednet.ops import _build

CSRC = Path(__file__).parents[1] / 'mmrednet' / 'ops' / 'csrc'
# without those that include headers of torch, which take seconds to compile, and without isa_*.h,
# which set the instruction set that the test sets
HEADERS = sorted(
    path.name
    for path in CSRC.glob('*.h')
    if '<ATen/' not in path.read_text() and not path.name.startswith('isa_')
)
ISA_FLAGS = {
    'plain': [],
    'avx2': ['-mavx2', '-mfma'],
    'avx512': [
        '-mavx512f',
        '-mavx512bw',
        '-mavx512dq',
        '-mavx512vl',
        '-mfma',
        '-DMMREDNET_SHUFFLES',
    ],
}
ISA_FLAGS['avx512bf16'] = [*ISA_FLAGS['avx512'], '-mavx512bf16', '-DMMREDNET_BF16_DOT']


@cache
def accepts(compiler, isa):
    """Return whether the compiler knows the flags: it may be for another processor."""
    command = [compiler, '-fsyntax-only', '-x', 'c++', *ISA_FLAGS[isa], '/dev/null']
    return subprocess.run(command, capture_output=True).returncode == 0


def assert_compiles(headers, isa):
    compiler = shutil.which('g++')
    if compiler is None or not accepts(compiler, isa):
        pytest.skip(f'no g++ that compiles for {isa}')
    flags = ['-std=c++20', '-Wall', '-Werror', '-Wno-psabi', '-fsyntax-only', '-xc++']
    # a file that includes the headers, as #pragma once warns in the main file
    result = subprocess.run(
        [compiler, *flags, *ISA_FLAGS[isa], f'-DMMREDNET_ISA={isa}', f'-I{CSRC}', '-'],
        input=''.join(f'#include "{header}"\n' for header in headers),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


# with all instruction sets those that have other lines there; the rest has the same text everywhere
WIDER = [
    header
    for header in HEADERS
    if re.search('#ifdef MMREDNET_(SHUFFLES|BF16_DOT)', (CSRC / header).read_text())
]


@pytest.mark.parametrize(
    ('header', 'isa'),
    [*((header, 'plain') for header in HEADERS), *((header, 'avx512bf16') for header in WIDER)],
)
def test_a_header_compiles_by_itself(header, isa):
    assert_compiles([header], isa)


@pytest.mark.parametrize('order', [1, -1])
@pytest.mark.parametrize('isa', ISA_FLAGS)
def test_headers_compile_together(isa, order):
    assert_compiles(HEADERS[::order], isa)


def test_a_kernel_file_names_its_instruction_set():
    """Without a namespace of its own, a kernel could run on a processor that lacks it."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('no g++')
    result = subprocess.run(
        [compiler, '-std=c++20', '-fsyntax-only', '-xc++', f'-I{CSRC}', '-'],
        input='#include "simd.h"\n',
        capture_output=True,
        text=True,
    )
    assert 'define MMREDNET_ISA as avx512bf16, avx512, avx2 or plain' in result.stderr


@pytest.mark.parametrize('isa', ['avx2', 'avx512', 'avx512bf16'])
def test_standard_headers_come_before_the_instruction_set(isa):
    """An inline function of the standard library that is compiled for AVX-512 may be the one that
    the linker keeps for every processor.
    """
    lines = (CSRC / f'isa_{isa}.h').read_text().splitlines()
    pragma = next(number for number, line in enumerate(lines) if 'GCC target' in line)
    assert '#include "instruction_set.h"' in lines[:pragma]
    early = set(re.findall(r'#include <(\w+)>', (CSRC / 'instruction_set.h').read_text()))
    for path in CSRC.glob(f'kernels_{isa}_*.cpp'):
        includes = re.findall(r'#include .*', path.read_text())
        assert includes == [f'#include "isa_{isa}.h"', '#include "kernels.h"']
    used = set()
    for header in HEADERS:
        used.update(re.findall(r'#include <(\w+)>', (CSRC / header).read_text()))
    assert used <= early


@pytest.mark.parametrize('isa', ISA_FLAGS)
def test_exponentials_are_accurate_over_the_whole_range(tmp_path, isa):
    compiler = shutil.which('g++')
    if compiler is None or not accepts(compiler, isa):
        pytest.skip(f'no g++ that compiles for {isa}')
    program = tmp_path / 'exp_accuracy'
    # as setup.py compiles
    flags = ['-std=c++20', '-O3', '-Wno-psabi', '-fno-math-errno', f'-DMMREDNET_ISA={isa}']
    source = Path(__file__).parent / 'csrc' / 'exp_accuracy.cpp'
    command = [compiler, *flags, *ISA_FLAGS[isa], f'-I{CSRC}', str(source), '-o', str(program)]
    subprocess.run(command, check=True)
    # a prime, so that the lowest bits differ; with 1 every float is tried, in two minutes
    result = subprocess.run([program, '499'], capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip(f'no processor with {isa}')
    assert result.returncode == 0
    errors = [float(line) for line in result.stdout.split()]
    exp_units, exp2_units, rough_share, weight_error, log_units = errors
    assert max(exp_units, exp2_units, log_units) < 2
    assert rough_share < 1.1e-4
    # one unit in the last place of the largest weight
    assert weight_error < 2**-23


# kernels that are built by the instruction set that they are limited to
LIMITED = {
    None: {
        'avx2_bfloat16',
        'avx2_float32',
        'avx2_float64',
        'avx512_bfloat16',
        'avx512_float32',
        'avx512_float64',
        'avx512bf16_bfloat16',
        'plain_bfloat16',
        'plain_float32',
        'plain_float64',
    },
    'plain': {'plain_bfloat16', 'plain_float32', 'plain_float64'},
    'avx2': {'avx2_bfloat16', 'avx2_float32', 'avx2_float64'},
    'avx512': {'avx512_bfloat16', 'avx512_float32', 'avx512_float64'},
    'avx512bf16': {'avx512bf16_bfloat16', 'avx512_float32', 'avx512_float64'},
}


@pytest.mark.parametrize('isa', LIMITED)
def test_kernels_are_limited_to_one_instruction_set(isa):
    compiler = shutil.which('g++')
    if compiler is None or not accepts(compiler, 'avx512bf16'):
        pytest.skip('no g++ that compiles for all instruction sets')
    flags = [flag for flag in _build.compile_flags(isa) if flag.startswith('-D')]
    built = set()
    for path in CSRC.glob('kernels_*_*.cpp'):
        # headers that were included, by the preprocessor alone
        command = [compiler, '-std=c++20', '-M', *flags, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        if 'kernels.h' in [Path(name).name for name in result.stdout.split()]:
            built.add(path.stem.removeprefix('kernels_'))
    assert built == LIMITED[isa]
