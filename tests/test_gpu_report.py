"""The report for GPU machines, as far as it runs without one: parts, table, and what it says without a device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[1] / 'tools/analysis_tools'
pytest.importorskip('triton')
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')


def report(*arguments):
    environment = {**os.environ, 'TRITON_INTERPRET': '1'}
    return subprocess.run([sys.executable, TOOLS / 'gpu_report.py', *arguments], env=environment, capture_output=True,
                          text=True, check=False)


@without_gpu
def test_without_a_device():
    result = report()
    assert result.returncode == 2
    assert 'There is no CUDA device' in result.stderr


@without_gpu
def test_dry_run():
    result = report('--dry-run', '--dtypes', 'float32', '--parts', 'checks', 'involution', 'attention', 'axial',
                    'bottleneck')
    assert result.returncode == 0, result.stderr
    assert 'FAILED' not in result.stdout
    assert result.stdout.count('| passed |') == 4
    table = [[cell.strip() for cell in line.strip('|').split('|')] for line in result.stdout.splitlines()
             if line.startswith('|')][6:]
    assert table[0][0] == 'what'
    names = {row[1] for row in table[2:]}
    assert {'fused', 'unfold', 'shifts, compiled', 'FlexAttention', 'convolution 3x3', 'RedNet-50'} <= names
    # every way to the same function gives the same numbers and gradients, and nothing claims to have been measured
    for row in table[2:]:
        assert row[3:7] == ['–'] * 4
        if row[1] == 'FlexAttention':
            assert 'does not support backward on CPU' in row[7]
            continue
        assert row[7] == '–' or (row[7][0].isdigit() and float(row[7]) < 1e-5), row


@pytest.mark.filterwarnings('ignore:flex_attention called without:UserWarning')
def test_flex_attention_computes_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from gpu.contestants import attentions
    from gpu.problems import attention

    problem = attention(2, (32, 5, 6), 3, torch.float32, 'cpu')
    ways = attentions(problem.window, dry=True, compiled=True)
    with torch.no_grad():
        expected, found = (ways[name](*problem.inputs.values()) for name in ('fused', 'FlexAttention'))
    torch.testing.assert_close(found, expected)


def test_twins_are_alike(monkeypatch):
    """The networks for machines without the mm packages have the parameters of the real ones."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from gpu.twins import Twin

    from mmrednet.backbones import RedNet
    count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
    assert count(Twin(True)) == count(RedNet(50))
    twin = Twin(True, blocks=(1, 1, 1, 1)).eval()
    assert twin(torch.randn(1, 3, 45, 70)).shape == (1, 2048, 2, 3)


def test_a_wrong_kernel_is_reported(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from gpu import checks

    true = checks.fused_local.aggregate
    monkeypatch.setattr(checks, 'FAMILIES', {'primitives': checks.primitives})
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    for factor in (1.01, torch.nan):
        monkeypatch.setattr(checks.fused_local, 'aggregate', lambda *inputs, factor=factor: true(*inputs) * factor)
        assert checks.check_kernels([torch.float32], device, tiny=True)[0][3] is False
