import os
import sys
from pathlib import Path

import pytest
import torch
from running import freeze, lighten

# benchmarks, synthetic data and the model zoo's generator stand beside the package
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))

if not torch.cuda.is_available():
    # read when triton is imported, which some of torch's modules do
    os.environ.setdefault('TRITON_INTERPRET', '1')


def pytest_addoption(parser):
    parser.addoption(
        '--operator',
        type=Path,
        metavar='FILE',
        help='run tests/test_contract.py also over the operators that this file registers',
    )


def pytest_configure(config):
    if path := config.getoption('operator'):
        if not path.is_file():
            raise pytest.UsageError(f'--operator must be a Python file, got {path}')
        # not at the top: most tests of mmrednet.ops need torch alone
        import operators

        operators.register_file(path)


def pytest_collection_finish():
    lighten()
    freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Let torch compute on one thread, for one test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def registered_flop_handles(monkeypatch):
    """Let mmengine count by all handles of the package, for one test."""
    from mmengine.analysis import complexity_analysis

    import mmrednet

    table = dict(complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS)
    monkeypatch.setattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', table)
    mmrednet.register_flop_handles()
