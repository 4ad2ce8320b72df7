"""The report for GPU machines, as far as it runs without one: parts, table, and what it says
without a device.
"""

import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[1] / 'tools/benchmarks'
pytest.importorskip('triton')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytestmark = pytest.mark.filterwarnings('ignore:.*encountered:RuntimeWarning')
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')


def report(*arguments):
    environment = {**os.environ, 'TRITON_INTERPRET': '1'}
    return subprocess.run(
        [sys.executable, TOOLS / 'gpu_report.py', *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@without_gpu
def test_without_a_device():
    result = report()
    assert result.returncode == 2
    assert 'There is no CUDA device' in result.stderr


@without_gpu
def test_dry_run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    # set by the script
    monkeypatch.setenv('MMREDNET_TRITON', '1')
    from benchmarks.gpu import checks

    # the kernels of all relations and layouts have tests of their own
    monkeypatch.setattr(checks, 'RELATIONS', ('subtraction', 'concatenation'))
    monkeypatch.setattr(checks, 'LAYOUTS', ('channels-last', 'strided'))
    arguments = [
        'gpu_report.py',
        '--dry-run',
        '--dtypes',
        'float32',
        '--parts',
        'checks',
        'involution',
        'attention',
        'axial',
        'vector',
        'patchwise',
        'statistics',
        'patchwise-statistics',
        'bottleneck',
        # few taps and one map: the compiled contestants have an addition for each tap
        '--kernel-size',
        '3',
        '--compiled',
        '1',
    ]
    monkeypatch.setattr(sys, 'argv', arguments)
    import_module('gpu_report').main()
    output = capsys.readouterr().out
    assert 'FAILED' not in output
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in output.splitlines()
        if line.startswith('|')
    ]
    start = next(number for number, line in enumerate(lines) if line[0] == 'what')
    rows, table = lines[2:start], lines[start:]
    # five families in two layouts, lines in one; eight operators, repeated and compiled
    assert [line[3] for line in rows] == ['passed'] * (5 * 2 + 1 + 8 * 2)
    names = {row[1] for row in table[2:]}
    assert {
        'fused',
        'unfold',
        'shifts, compiled',
        'FlexAttention',
        'convolution 3x3',
        'RedNet-50',
    } <= names
    # every way to the same function gives the same numbers and gradients, and nothing claims to
    # have been measured
    vector_rows = [row for row in table[2:] if row[0].startswith('vector')]
    titles = [' '.join(row[0].split()[:3]) for row in vector_rows]
    kinds = ('pairwise', 'pairwise', 'patchwise', 'patchwise')
    operators = ('attention', 'statistics')
    assert titles == [f'vector {name}, {kind}' for name in operators for kind in kinds]
    for row in table[2:]:
        assert row[3:10] == ['–'] * 7
        if row[1] == 'FlexAttention':
            assert 'does not support backward on CPU' in row[10]
            continue
        compared = row[1] != 'convolution 3x3' and not row[0].startswith('bottleneck')
        tolerance = 1e-4 if row in vector_rows else 1e-5
        assert (float(row[10]) < tolerance) if compared else row[10] == '–', row


def test_the_entry_of_a_verified_chip(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from mmrednet.ops._triton import trust
    from mmrednet.ops._triton.verified import Verified

    monkeypatch.setenv('MMREDNET_TRITON', '')
    text = import_module('gpu_report').table_entry(DEVICE)
    (line,) = [line for line in text.splitlines() if line.startswith('    Verified(')]
    assert eval(line.strip(' ,'), dict(Verified=Verified)) == trust.entry(torch.device(DEVICE))


@pytest.mark.filterwarnings('ignore:flex_attention called without:UserWarning')
@pytest.mark.parametrize('dry', [True, False])
def test_flex_attention_computes_the_same(dry, monkeypatch):
    """In the order of the report: in inference mode first, then with gradients."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.cases import Setting, attention
    from benchmarks.gpu.contestants import attentions
    from benchmarks.gpu.operators import difference, steps
    from torch.nn.attention import flex_attention

    # torch has no kernel for gradients on a CPU; traced as for a GPU, they are those of its
    # definition
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    torch._dynamo.reset()
    monkeypatch.setattr(flex_attention, '_validate_device', lambda *_: None)
    case = attention(Setting(2, (32, 5, 6), 3, torch.float32))
    contestants = attentions(case, dry=dry, compiled=False, flex=True)
    expected, results = (
        [forward(), [tensor.detach() for tensor in both()]]
        for forward, both in (steps(contestants[name], case) for name in ('fused', 'FlexAttention'))
    )
    torch.testing.assert_close(results[0], expected[0])
    assert len(results[1]) == 6
    assert difference(results[1], expected[1]) < 1e-5


def test_heads_are_wide_enough_for_flex_attention(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.cases import STAGES, Setting, attention

    for channels, *_ in STAGES['800x1344']:
        case = attention(Setting(1, (channels, 2, 2), 3, torch.float32))
        assert case.inputs['query'].shape[1:3] == (channels // 16, 16)


def test_convolution_has_all_gradients(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.cases import Setting, involution
    from benchmarks.gpu.contestants import CONTEXT, CONVOLUTION, involutions
    from benchmarks.gpu.operators import steps
    from torch.utils.flop_counter import FlopCounterMode

    case = involution(Setting(2, (32, 5, 6), 3, torch.float32))
    contestants = involutions(case, dry=True, compiled=False, flex=False)
    forward, both = steps(contestants[CONVOLUTION], case)
    counts = []
    for call in (forward, both):
        with FlopCounterMode(display=False) as count:
            call()
        counts.append(count.get_total_flops())
    works = CONTEXT[CONVOLUTION](case)
    assert counts == [works[0].matrix, works[0].matrix + works[1].matrix]
    assert counts == [2 * 2 * 5 * 6 * 9 * 32**2, 3 * 2 * 2 * 5 * 6 * 9 * 32**2]
    assert both()[-1].shape == (32, 32, 3, 3)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('operator', ['involution', 'attention', 'axial', 'statistics'])
def test_floors_are_those_of_the_documentation(operator, dtype, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.cases import CASES, Setting
    from benchmarks.gpu.ceilings import Ceilings

    batch, (channels, height, width), kernel = 2, (64, 5, 6), 3
    case = CASES[operator](Setting(batch, (channels, height, width), kernel, dtype))
    positions, taps, size = batch * height * width, kernel**2, dtype.itemsize
    if operator == 'involution':
        groups, hidden = channels // 16, channels // 4
        moved = (
            size * (positions * (2 * channels + hidden) + groups * taps * (hidden + 1)),
            size * (positions * (3 * channels + 2 * hidden) + 2 * groups * taps * (hidden + 1)),
        )
        vector = 2 * positions * taps * channels, 4 * positions * taps * channels
        matrix = 2 * positions * groups * taps * hidden, 6 * positions * groups * taps * hidden
    elif operator == 'attention':
        heads, tables = channels // 16, 2 * channels // 2 * kernel
        moved = (
            size * (positions * 4 * channels + tables) + 4 * positions * heads,
            size * (positions * 7 * channels + 2 * tables) + 4 * positions * heads,
        )
        vector = 4 * positions * taps * channels, 10 * positions * taps * channels
        matrix = 2 * positions * channels * kernel, 6 * positions * channels * kernel
    elif operator == 'statistics':
        features, hidden = channels // 4 + 2, channels // 4
        # queries, keys and the weight have the dtype; norms and statistics are in float32
        inputs = size * (2 * positions * features + hidden * features) + 4 * 2 * features
        moved = (inputs + 4 * 2 * hidden, 2 * inputs + 4 * 2 * hidden)
        vector = 0, 0
        products = 2 * positions * taps * hidden * features
        matrix = products, 3 * products
    else:
        keys, values, table = 8 * 4, 8 * 8, 16 * (2 * width - 1)
        moved = (
            size * (positions * (2 * keys + 3 * values) + table) + 4 * 24,
            size * (positions * (4 * keys + 4 * values) + 2 * table) + 8 * 24,
        )
        vector = 0, 0
        matrix = (
            2 * positions * width * (3 * keys + 2 * values),
            2 * positions * width * (3 * keys + 2 * (3 * keys + 2 * values)),
        )
    for work, *expected in zip((case.forward, case.backward), moved, matrix, vector, strict=True):
        assert [work.bytes, work.matrix, work.vector] == expected
        # each unit at its own rate, side by side
        floors = Ceilings(4e12, {dtype: 5e14}, 6e13).floors(work, dtype)
        assert floors == (expected[0] / 4e12, max(expected[1] / 5e14, expected[2] / 6e13))


def test_a_line_says_times_floors_and_shares(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.gpu.table import HEADER, Pass, row

    line = row(
        'involution', 'fused', torch.bfloat16, Pass(0.5, (2e-4, 1e-4)), Pass(2.0), 3 << 20, 1e-3
    )
    assert line == (
        '| involution | fused | bfloat16 | 0.500 | 0.200 / 0.100 | 40 % | 2.000 | – | – | 3.0 | '
        '1.0e-03 |'
    )
    assert HEADER.splitlines()[0].count('|') == HEADER.splitlines()[1].count('|') == line.count('|')


@without_gpu
def test_chains_of_multiply_adds(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.gpu.chains import multiply_adds

    factors = torch.rand(64) / 2
    expected = sum(factors.double() ** power for power in range(1, 50))
    torch.testing.assert_close(multiply_adds(factors, 32, 48).double(), expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match='chains must divide'):
        multiply_adds(factors, 48, 48)


def test_twins_are_alike(monkeypatch):
    """The networks for machines without the mm packages have the parameters of the real ones."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.gpu.twins import Twin

    from mmrednet.backbones import RedNet

    count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
    assert count(Twin(True)) == count(RedNet(50))
    twin = Twin(True, blocks=(1, 1, 1, 1)).eval()
    assert twin(torch.randn(1, 3, 45, 70)).shape == (1, 2048, 2, 3)


def test_a_wrong_kernel_is_reported(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.gpu import checks

    true = checks.fused_local.aggregate
    monkeypatch.setattr(checks, 'FAMILIES', {'primitives': checks.primitives})
    monkeypatch.setattr(checks, 'LAYOUTS', ('contiguous',))
    for factor in (1.01, torch.nan):
        monkeypatch.setattr(
            checks.fused_local, 'aggregate', lambda *inputs, factor=factor: true(*inputs) * factor
        )
        assert [row[3] for row in checks.check_kernels([torch.float32], DEVICE, tiny=True)] == [
            False
        ]


def test_a_check_that_raises_leaves_the_others(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.gpu import launches

    def broken(*_):
        raise RuntimeError('no such | kernel\nand more')

    monkeypatch.setattr(launches, 'compiled', broken)
    rows = launches.check_launches(DEVICE, tiny=True)
    failed = [row for row in rows if not row[3]]
    assert [row[0] for row in failed] == [
        f"{name}, torch.compile: RuntimeError 'no such / kernel'"
        for name in (
            *('aggregate', 'correlate', 'involution'),
            *('local attention', 'neighbourhood attention', 'axial attention'),
            *('vector attention', 'vector statistics'),
        )
    ]
    assert len(rows) - len(failed) >= 8


def test_an_operator_that_does_not_repeat_is_reported(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.gpu import launches

    calls = []

    def drifting(value, weight, window):
        calls.append(window)
        return (value + 0 * weight.sum()) * (1 + len(calls) / 8)

    monkeypatch.setattr(launches, 'local_aggregate', drifting)
    monkeypatch.setattr(launches, 'ways', lambda _: {'repeated': launches.both_passes})
    assert [row[3] for row in launches.check_launches(DEVICE, tiny=True)] == [
        False,
        *[True] * 7,
    ]


def test_strided_inputs_of_checks_stay_so(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks.cases import LAYOUTS, features

    from mmrednet.ops._triton.tiles import layout

    layouts = {
        name: layout(features(name, 2, 3, 16, (4, 5), torch.float16, DEVICE)) for name in LAYOUTS
    }
    assert layouts == {'channels-last': 16, 'contiguous': -1, 'strided': 0}
