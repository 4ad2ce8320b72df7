import os

import pytest
import torch

if not torch.cuda.is_available():
    # read when triton is imported, which some of torch's modules do
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
