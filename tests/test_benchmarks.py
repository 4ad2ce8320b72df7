"""The cases and baselines of the benchmarks: all formulations compute the same."""

import re
import sys

import pytest
import torch
from benchmarks import (
    backbones,
    benchmark_allocator,
    benchmark_backbone,
    benchmark_ops,
    machine,
    peers,
    timing,
)
from benchmarks.baselines import TAPS, UNFOLD, shifts_involution
from benchmarks.cases import CASES, LAYOUTS, Setting, features, size_of
from benchmarks.report import Report
from benchmarks.training_memory import in_own_process

from mmrednet.diagnosis import processor


def make_case(operator, layout='channels-last', heads=None):
    torch.manual_seed(0)
    return CASES[operator](
        Setting(2, (32, 5, 6), 3, torch.float32, layout=layout, heads=heads),
    )


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('operator', list(UNFOLD))
def test_baselines_compute_what_the_operator_computes(operator, layout):
    case = make_case(operator, layout, heads=4)
    inputs = case.inputs.values()
    expected = case.operator(*inputs)
    assert expected.shape == case.grad.shape
    torch.testing.assert_close(UNFOLD[operator](*inputs, case.window), expected)
    torch.testing.assert_close(TAPS[operator](*inputs, case.window), expected)


def test_shifts_compute_what_involution_computes():
    case = make_case('involution')
    inputs = case.inputs.values()
    result = shifts_involution(*inputs, case.window)
    torch.testing.assert_close(result, case.operator(*inputs))


@pytest.mark.parametrize(
    ('operator', 'outputs'), [('aggregate', 2 * 32 * 5 * 6), ('correlate', 2 * 2 * 9 * 5 * 6)]
)
def test_work_of_a_primitive(operator, outputs):
    case = make_case(operator)
    products = 2 * 32 * 9 * 5 * 6
    inputs_bytes = size_of(*case.inputs.values())
    assert case.grad.numel() == outputs
    assert (case.forward.matrix, case.forward.vector) == (0, 2 * products)
    assert (case.backward.matrix, case.backward.vector) == (0, 4 * products)
    assert case.forward.bytes == inputs_bytes + 4 * outputs == case.bytes
    assert case.backward.bytes == 2 * inputs_bytes + 4 * outputs


def test_layouts_of_features():
    strides = {
        layout: features(layout, 2, 3, 4, (5, 6), torch.float32).stride() for layout in LAYOUTS
    }
    assert strides == {
        'channels-last': (360, 4, 1, 72, 12),
        'contiguous': (360, 120, 30, 6, 1),
        'strided': (1440, 480, 120, 24, 2),
    }


@pytest.mark.parametrize('operator', list(UNFOLD))
def test_a_row_has_a_cell_for_each_column(operator):
    setting = Setting(1, (32, 5, 6), 3, torch.float32, layout='contiguous', heads=8)
    cells = [cell.strip() for cell in benchmark_ops.row(operator, setting, 1).split('|')[1:-1]]
    assert len(cells) == len(benchmark_ops.COLUMNS)
    assert cells[0] == f'{operator}, 32 x 5 x 6, contiguous'
    assert cells[1] == f'{CASES[operator](setting).bytes / 1e6:.2f}'
    # too little memory for the system's counters
    assert cells[-2:] == ['-', '-']


class Clock:
    """A clock that contestants set forward."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def contestant(self, *seconds):
        remaining = list(seconds)

        def run():
            self.now += remaining.pop(0)

        return run


@pytest.mark.parametrize(
    ('rounds', 'budget', 'counted'), [(3, None, 3), (3, 40.0, 1), (3, 1.0, 1), (3, 45.0, 2)]
)
def test_contestants_take_turns_within_a_budget(monkeypatch, rounds, budget, counted):
    """Two cold rounds of 20 seconds do not count; a round takes 4 or 5 seconds then."""
    clock = Clock()
    monkeypatch.setattr(timing, 'time', clock)
    contestants = dict(slow=clock.contestant(19, 19, 3, 4, 3), fast=clock.contestant(1, 1, 1, 1, 1))
    times = timing.measure_rounds(contestants, rounds, budget)
    assert times == dict(slow=[3, 4, 3][:counted], fast=[1] * counted)


def test_calls_before_the_timed_one(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, 'time', clock)
    contestants = dict(only=clock.contestant(1, 2, 3, 4, 5, 6, 7, 8))
    # two rounds are cold
    assert timing.measure_rounds(contestants, 2, untimed=1) == dict(only=[6, 8])


def test_a_contest_has_rounds():
    with pytest.raises(ValueError, match='rounds must be at least 1, got 0'):
        timing.medians({}, 0)
    clock_free = timing.medians(dict(nothing=lambda: None), 3)
    assert 0 <= clock_free['nothing'] < 1


def test_a_report_goes_to_a_file(tmp_path, capsys):
    path = tmp_path / 'tables.md'
    for report in (Report(path), Report()):
        report.write('ours:')
        report.table(['name', 'ms'], [['a', '1'], ['b', '2']])
    text = 'ours:\n| name | ms |\n|---|---|\n| a | 1 |\n| b | 2 |\n\n'
    assert path.read_text() == text
    assert capsys.readouterr().out == 2 * text


def test_the_machine_is_described(monkeypatch, tmp_path):
    path = tmp_path / 'cpuinfo'
    path.write_text('model name\t: Some Chip\nflags\t\t: avx2 avx512f avx512_bf16\n')
    monkeypatch.setattr(processor, 'CPUINFO', path)
    described, memory = machine.describe().splitlines()
    start = 'Some Chip (AVX2, AVX-512, AVX512-BF16, no AMX), '
    assert described.startswith(start + f'{torch.get_num_threads()} threads, torch ')
    assert memory.startswith('Freed memory is ')


def test_multiply_adds_are_those_of_the_paper():
    """4.1 and 2.7 billion at 224 x 224 (Li et al., table 1)."""
    counts = [backbones.multiply_adds(name, (224, 224)) for name in benchmark_backbone.PEERS]
    assert counts == [4087136256, 2670542336]


def test_peers_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(peers, 'find_spec', lambda name: None)
    assert [len(peers.missing(way)) for way in peers.PACKAGES] == [0, 0, 3, 3, 3]


def test_differences_of_peers():
    results = dict(
        eager=lambda: [torch.tensor([1.0, 4.0])], other=lambda: [torch.tensor([1.5, 4.0]).numpy()]
    )
    assert peers.differences(results) == dict(eager=0.0, other=0.125)


def table_of(capsys, monkeypatch, *options):
    names = ['--backbones', 'MSCAN-tiny', 'MSCAN-tiny, strips of 1', '--shape', '32', '32']
    monkeypatch.setattr('sys.argv', ['benchmark_backbone.py', *names, '--rounds', '1', *options])
    benchmark_backbone.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r' *\| *', line)[1:-1] for line in lines if line.startswith('|')]
    return lines, rows


def test_ratios_and_e(capsys, monkeypatch):
    seconds = {'contiguous': 0.3, 'channels-last': 0.2}

    def measure(contestants, rounds, budget):
        # without its strips, the network is said to take half the time
        return {
            (name, layout): [seconds[layout] * (0.5 if name.endswith('1') else 1)]
            for name, layout in contestants
        }

    monkeypatch.setattr(benchmark_backbone, 'measure_rounds', measure)
    monkeypatch.setattr(
        benchmark_backbone, 'multiply_adds', lambda name, *_: 30 if name.endswith('1') else 40
    )
    lines, (header, _, first, second) = table_of(capsys, monkeypatch)
    assert 'Inference, folded, medians of 1 rounds, float32, batch 1, 32 x 32:' in lines
    assert header[3:] == [
        'contiguous / channels-last',
        'better / MSCAN-tiny',
        'multiply-adds / MSCAN-tiny',
        'E',
    ]
    assert first[1:] == ['300.0', '200.0', '1.50', '1.00', '1.00', '1.00']
    assert second[1:] == ['150.0', '100.0', '1.50', '0.50', '0.75', '0.67']


@pytest.mark.parametrize(
    'options',
    [
        ['--precision', 'bfloat16'],
        ['--train', '--precision', 'autocast', '--batch', '2'],
        ['--plain', '--layouts', 'contiguous'],
    ],
)
def test_every_kind_of_step_is_timed(capsys, monkeypatch, options):
    _, rows = table_of(capsys, monkeypatch, *options)
    assert [float(row[1]) > 0 for row in rows[2:]] == [True, True]


def test_results_of_threads_are_compared(capsys, monkeypatch):
    threads = torch.get_num_threads()
    _, rows = table_of(capsys, monkeypatch, '--check-threads')
    assert rows[2][1:] == ['4 of 4', '0.0e+00']
    assert torch.get_num_threads() == threads


STEP = dict(shape=(256, 256), batch=4, layout='channels-last', precision='float32')


def test_memory_of_a_training_step():
    """The backward pass needs two wide maps of each of three blocks; libraries do not count."""
    peak = in_own_process('MSCAN-tiny', **STEP)
    assert 3 * 2 * (4 * 256 * 64 * 64) * 4 < peak < 1e9


def test_a_training_step_that_fails(monkeypatch):
    # a program that takes any arguments and fails
    monkeypatch.setattr(sys, 'executable', 'false')
    with pytest.raises(RuntimeError, match='MSCAN-tiny: the training step failed'):
        in_own_process('MSCAN-tiny', **STEP)


def test_settings_of_the_allocator(monkeypatch):
    monkeypatch.setattr(
        'sys.argv', ['benchmark_allocator.py', '--jemalloc', 'a.so', '--tcmalloc', 'b.so']
    )
    args = benchmark_allocator.parse_args()
    assert list(benchmark_allocator.settings_of(args)) == [
        'default',
        'keep_memory',
        'GLIBC_TUNABLES',
        'jemalloc',
        'jemalloc, kept',
        'tcmalloc',
    ]
    figures = dict(wall=2.0, processor=1.0, faults=0.0, peak=100.0)

    def measure(args, name, variables):
        return dict(figures, wall=4.0) if 'MMREDNET_KEEP_MEMORY' in variables else figures

    monkeypatch.setattr(benchmark_allocator, 'measure', measure)
    rows = benchmark_allocator.rows_of(args, 'VAN-b1')
    assert rows[0] == ['VAN-b1', 'default', '4000', '1.00', '1000', '1.00', '0', '100', '1.00']
    assert rows[1][:4] == ['VAN-b1', 'keep_memory', '2000', '0.50']
    assert len(rows[1]) == len(benchmark_allocator.COLUMNS)
