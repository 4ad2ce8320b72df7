import os
import sys
from pathlib import Path

import pytest
import torch

# benchmarks, synthetic data and the model zoo's generator stand beside the package
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))

if not torch.cuda.is_available():
    # read when triton is imported, which some of torch's modules do
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def registered_flop_handles(monkeypatch):
    """Let mmengine count by all handles of the package, for one test."""
    from mmengine.analysis import complexity_analysis

    import mmrednet

    table = dict(complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS)
    monkeypatch.setattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', table)
    mmrednet.register_flop_handles()
