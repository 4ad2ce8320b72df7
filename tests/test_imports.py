"""Who may import whom, and that names resolve in a process that imported nothing of ours."""

import subprocess
import sys

import pytest
from running import run_code

# the kernels for GPUs, which import triton; where it is installed, torch's counter of FLOPs imports
# it too
KERNELS = 'mmrednet.ops._triton.tiles'
HEAVY = ('mmengine', 'mmcv', 'mmdet', 'mmseg', KERNELS)


def run(code):
    """Return the words that code prints; torch is imported before, but nothing of ours is."""
    result = run_code(code)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def run_cold(code):
    """The same in a process that has imported nothing."""
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


# modules in the order of what they may import, and what they must not
LIGHT = {
    'mmrednet': ('torch', 'triton', *HEAVY),
    'mmrednet.datasets': ('torch', 'triton', *HEAVY),
    'mmrednet.ops': HEAVY,
    'mmrednet.checkpoints': HEAVY,
    'mmrednet.backbones': ('mmdet', 'mmseg', KERNELS, 'mmcv._ext'),
    'mmrednet.necks': ('mmdet', 'mmseg', KERNELS, 'mmcv._ext'),
    'mmrednet.engine': ('mmdet', 'mmseg', KERNELS),
    'mmrednet.analysis': ('mmdet', 'mmseg', KERNELS),
    'mmrednet.heads': ('mmdet', 'mmseg', KERNELS),
}


def test_imports_stay_light():
    """In one process, where each module is imported after those that may import less."""
    code = f"""
import importlib, sys
for name, forbidden in {LIGHT!r}.items():
    importlib.import_module(name)
    print(*(f'{{name}}:{{module}}' for module in forbidden if module in sys.modules))
"""
    assert not [word for word in run_cold(code) if word.startswith('mmrednet')]


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_names_resolve_without_custom_imports(host):
    built = run(f"""
from mmengine.config import Config
from {host}.registry import MODELS
from {host}.utils import register_all_modules
register_all_modules()
cfg = Config(dict(model=dict(type='mmrednet.RedNet', depth=26)))
print(type(MODELS.build(cfg.model)).__name__)
neck = dict(type='mmrednet.SpatialFPN', in_channels=[16], out_channels=16, num_outs=1)
print(type(MODELS.build(neck)).__name__)
""")
    assert built[-2:] == ['RedNet', 'SpatialFPN']


# packages that are not there, for a process that has them
BLOCK = """
import sys, importlib.util
from importlib.machinery import PathFinder
blocked = {blocked!r}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in blocked:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Block())
real = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name in blocked else real(name, package)
importlib.util.find_spec = find_spec
"""


def test_operators_need_torch_alone():
    out = run(
        BLOCK.format(blocked=['mmengine', 'mmcv', 'mmdet', 'mmseg'])
        + """
import torch
from mmrednet.ops import Window, local_aggregate
value, weight = torch.ones(1, 1, 1, 3, 3), torch.ones(1, 1, 9, 3, 3)
print(tuple(local_aggregate(value, weight, Window(3)).flatten().tolist()))
try:
    import mmrednet.backbones
except ImportError as error:
    print(error)
"""
    )
    assert ' '.join(out).startswith('(4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0)')
    assert 'pip install onedl-mmengine onedl-mmcv (or, of the original distribution,' in ' '.join(
        out
    )


def test_operators_do_not_need_triton():
    out = ' '.join(
        run("""
import importlib.metadata, sys
sys.modules['triton'] = None
found = importlib.metadata.version
def version(name):
    if name == 'triton':
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
import torch
from mmrednet.ops import Window, active_kernels, local_aggregate
print(active_kernels()['cuda'])
print(float(local_aggregate(torch.ones(1, 1, 1, 3, 3), torch.ones(1, 1, 9, 3, 3), Window(3)).sum()))
""")
    )
    assert out == 'plain torch, one tap at a time (triton: not installed: pip install triton) 49.0'


def test_triton_can_be_switched_off():
    out = run("""
import os
os.environ['MMREDNET_TRITON'] = '0'
from mmrednet.ops import active_kernels
print(active_kernels()['cuda'])
""")
    assert (
        ' '.join(out)
        == 'plain torch, one tap at a time (triton: switched off by MMREDNET_TRITON=0)'
    )


def test_a_detector_without_mmdet_says_what_is_missing():
    out = run(
        BLOCK.format(blocked=['mmdet'])
        + """
from mmrednet.registry import MODELS
print(type(MODELS.build(dict(type='RedNet', depth=26))).__name__)
for action in (lambda: MODELS.build(dict(type='SpatialRPNHead', in_channels=16)),
               lambda: __import__('mmrednet.heads', fromlist=['x']).SpatialRPNHead):
    try:
        action()
    except ImportError as error:
        print(error)
"""
    )
    assert 'RedNet' in out
    assert (
        ' '.join(out).count(
            'needs mmdet, which cannot be imported. Install: pip install onedl-mmdetection'
        )
        == 2
    )


@pytest.mark.parametrize(
    'first', ['mmrednet.registry, mmengine.analysis', 'mmengine.analysis, mmrednet.flop_handles']
)
def test_mmengine_counts_our_operators(first):
    """Once anything of ours that mmengine can build is imported, or the handles themselves."""
    out = run(f"""
import {first}
from mmengine.analysis import get_model_complexity_info
import torch
from mmrednet.ops import Window, local_aggregate
class Model(torch.nn.Identity):
    def forward(self, x):
        return local_aggregate(x[:, None, :4], x[:, None, 4:], Window(3))
model = Model().eval()
model.weight = torch.nn.Parameter(torch.zeros(1))
print(get_model_complexity_info(model, (13, 5, 6), show_table=False, show_arch=False)['flops'])
""")
    assert out[-1] == str(4 * 9 * 30)


def test_models_of_others_count_the_same_after_our_import():
    """mmengine rounds a product of three tensors; only an explicit call changes that."""
    out = run("""
import torch
from mmengine.analysis import get_model_complexity_info
class Model(torch.nn.Identity):
    def forward(self, x):
        return torch.einsum('bij,bjk,bkl->bil', x, x, x)
model = Model().eval()
model.weight = torch.nn.Parameter(torch.zeros(1))
def count():
    info = get_model_complexity_info(model, (32, 32), show_table=False, show_arch=False)
    print('counted', int(info['flops']))
count()
import mmrednet.layers, mmrednet.backbones, mmrednet.analysis, mmrednet.engine
from mmrednet.analysis import count_network
assert count_network(model, torch.zeros(1, 32, 32)).total() == 2 * 32**3
count()
mmrednet.register_flop_handles()
count()
""")
    before, after, registered = [
        int(value) for name, value in zip(out, out[1:], strict=False) if name == 'counted'
    ]
    assert before == after != 2 * 32**3
    assert registered == 2 * 32**3


def test_only_public_functions_are_found_in_the_package():
    out = run_cold("""
import sys, mmrednet
try:
    mmrednet.register_handles
except AttributeError as error:
    print(error)
assert 'torch' not in sys.modules
""")
    assert ' '.join(out) == "module 'mmrednet' has no attribute 'register_handles'"
