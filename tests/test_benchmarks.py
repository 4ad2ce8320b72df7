"""The cases and baselines of the benchmarks: all formulations compute the same."""

import pytest
import torch
from benchmarks import benchmark_ops
from benchmarks.baselines import TAPS, UNFOLD, shifts_involution
from benchmarks.cases import CASES, LAYOUTS, Setting, features, size_of


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
