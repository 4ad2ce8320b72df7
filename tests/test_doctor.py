"""``mmrednet doctor``: the report of this machine, and of machines that lack something."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import run_code
from test_imports import BLOCK

from mmrednet.commands import doctor
from mmrednet.diagnosis import kernels, mmcv_operators, operators, versions
from mmrednet.diagnosis.sections import Problem, Section, scrubbed
from mmrednet.layers import OPERATORS, involution
from mmrednet.ops import _native

ROOT = Path(__file__).parents[1]
RUN = '\nfrom mmrednet.commands.doctor import main\nsys.exit(main([]))'
BLOCK_EXTENSION = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def somebody(tmp_path):
    """Return the environment of a user whose name and folders must not be printed."""
    home = tmp_path / 'somebody'
    home.mkdir()
    environment = dict(os.environ, HOME=str(home), LOGNAME='somebody', PYTHONPATH=str(ROOT))
    environment.pop('XDG_CACHE_HOME', None)
    return environment


def run_cold(code, **options):
    """Run code in a child process that has imported nothing."""
    command = [sys.executable, '-c', code]
    return subprocess.run(command, capture_output=True, text=True, **options)


def report(code, environment, status, run=run_code):
    """Return what a process prints that runs code and then the command."""
    result = run(code + RUN, env=environment, cwd=environment['HOME'])
    assert result.returncode == status, result.stdout + result.stderr
    assert result.stderr == ''
    for private in ('somebody', environment['HOME'], str(ROOT)):
        assert private not in result.stdout
    return result.stdout


def processor_seconds():
    """Return the time of the processor that finished child processes took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_this_machine(somebody):
    start = processor_seconds()
    text = report('import sys', somebody, 0, run_cold)
    assert text.endswith('No problems were found.\n')
    assert 'OneDL' not in text
    assert f'torch      {torch.__version__}' in text
    ours = [name for name, layer in OPERATORS.items() if layer.__module__.startswith('mmrednet')]
    for name in ours:
        error = re.search(rf'^  {name} +cpu (\S+)', text, re.MULTILINE).group(1)
        assert 0 < float(error) < operators.TOLERANCE
    # of the processor, which other processes may keep busy, and with all imports
    assert processor_seconds() - start < 20


def test_without_operators_of_mmcv(somebody):
    text = report(BLOCK_EXTENSION, somebody, 1)
    assert "1. mmcv's compiled operators cannot be imported, which detectors and" in text
    assert re.search(r'MMCV_WITH_OPS=1 pip install --no-build-isolation .* (onedl-)?mmcv==2', text)
    assert re.search(r'^  DCNv2 +cpu fails', text, re.MULTILINE)
    assert re.search(r'^  Involution +cpu \d', text, re.MULTILINE)
    assert text.count("   Mend mmcv's compiled operators.\n") == 2


def test_without_the_stack(somebody):
    blocked = ['mmengine', 'mmcv', 'mmdet', 'mmseg']
    text = report(BLOCK.format(blocked=blocked), somebody, 1)
    assert '1. mmengine is missing: without it mmrednet.ops works' in text
    assert 'pip install onedl-mmcv (or, of the original distribution, mmcv)' in text
    assert '  mmdet      missing; detectors need it\n' in text
    assert '\n3. ' not in text
    assert 'not run  This needs mmengine and mmcv' in text


def test_without_a_compiler_and_a_cache(somebody, tmp_path):
    ignored = shutil.ignore_patterns('_C*', '__pycache__')
    shutil.copytree(ROOT / 'mmrednet', tmp_path / 'copy' / 'mmrednet', ignore=ignored)
    somebody.update(PYTHONPATH=str(tmp_path / 'copy'), CXX='no-such-compiler')
    block = BLOCK.format(blocked=['mmdet', 'mmseg'])
    text = report(block, somebody, 1)
    assert "there is no C++ compiler 'no-such-compiler'." in ' '.join(text.split())
    assert '   Install one, such as g++, or set CXX, and run this again.\n' in text
    assert re.search(r'^  Involution +cpu \d', text, re.MULTILINE)
    del somebody['CXX']
    (Path(somebody['HOME']) / '.cache').write_text('a file in place of the folder')
    text = report(block, somebody, 1)
    assert 'cannot be written' in text
    assert '   Set XDG_CACHE_HOME to a folder that can, and run this again.\n' in text


def test_a_wrong_kernel_is_found(monkeypatch):
    correct = involution.local_involution

    def wrong(*arguments, **options):
        result = correct(*arguments, **options)
        # the definition stays right
        return result if torch._C._are_functorch_transforms_active() else 1.01 * result

    monkeypatch.setattr(involution, 'local_involution', wrong)
    section = operators.examine_operators()
    names = [problem.text.split()[0] for problem in section.problems]
    # the chain has an involution too
    assert names == ['OperatorChain', 'Involution']
    assert 'differs from its definition by 1.0e-02, more than 0.001' in section.problems[1].text
    assert dict(section.rows)['Involution'] == 'cpu 1e-02 (wrong)'


def test_nan_is_wrong():
    tensors = dict(result=torch.tensor([1.0, float('nan')]), input=torch.ones(2))
    expected = dict(result=torch.ones(2), input=torch.ones(2))
    assert operators._largest_error(tensors, expected) != operators.TOLERANCE
    assert not operators._largest_error(tensors, expected) <= operators.TOLERANCE


def test_wrong_operators_of_mmcv(monkeypatch):
    from mmcv import ops

    monkeypatch.setattr(ops, 'nms', lambda *_: (None, torch.tensor([0, 1, 2])))
    section = mmcv_operators.examine_mmcv()
    assert 'cannot compute on cpu' in section.problems[0].text
    assert 'wrong results, [0, 1, 2] and [2.5, 4.5]' in section.problems[0].text


def test_two_distributions(monkeypatch):
    providers = dict(mmcv=['mmcv', 'onedl-mmcv', 'mmcv'])
    monkeypatch.setattr(versions, 'packages_distributions', lambda: providers)
    monkeypatch.setattr(versions, '_version', lambda name: '2.1.0')
    section = versions.examine_versions()
    assert dict(section.rows)['mmcv'] == '2.1.0 (mmcv) and 2.1.0 (onedl-mmcv)'
    problem = Problem(
        'mmcv and onedl-mmcv both install mmcv, over each other.',
        'pip uninstall mmcv onedl-mmcv, then install one of them again.',
    )
    assert section.problems == [problem]


def test_a_package_that_cannot_be_imported(monkeypatch):
    def fail(name):
        raise AssertionError(f'{name} is of a wrong version')

    monkeypatch.setattr(versions, 'import_module', fail)
    texts = [problem.text for problem in versions.examine_versions().problems]
    assert 'mmdet cannot be imported: AssertionError: mmdet is of a wrong version' in texts


@pytest.mark.parametrize(
    ('cuda', 'text'),
    [
        (None, 'There is an NVIDIA driver, but this torch was built without CUDA.'),
        ('12.8', 'There is an NVIDIA driver, but torch, built for CUDA 12.8, sees no device.'),
    ],
)
def test_an_unused_driver(monkeypatch, cuda, text):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(versions.shutil, 'which', lambda name: f'/usr/bin/{name}')
    assert text in [problem.text for problem in versions.examine_versions().problems]


@pytest.mark.skipif(_native.MISSING is not None, reason='the CPU kernels are not built')
def test_a_limit_of_the_instruction_set(monkeypatch):
    monkeypatch.setattr(_native, 'capability', lambda: 'plain')
    monkeypatch.setattr(kernels._processor, 'widest_instruction_set', lambda: 'avx2')
    monkeypatch.setenv('MMREDNET_CPU_CAPABILITY', 'plain')
    note = 'the processor has avx2; MMREDNET_CPU_CAPABILITY=plain limits the kernels'
    assert ('', note) in kernels.examine_kernels().rows
    monkeypatch.delenv('MMREDNET_CPU_CAPABILITY')
    assert 'for which the kernels need GCC' in dict(kernels.examine_kernels().rows)['']


def test_triton_that_is_missing_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(kernels._triton, 'MISSING', 'not installed: pip install triton')
    problems = kernels.examine_kernels().problems
    assert [problem.remedy[:21] for problem in problems] == ['pip install -U triton']
    assert 'several times slower: not installed' in problems[0].text


def test_an_examination_that_fails(monkeypatch, capsys):
    def fail():
        raise ValueError('MMREDNET_CPU_CAPABILITY must be one of these')

    monkeypatch.setattr(kernels, 'examine_kernels', fail)
    monkeypatch.setattr(doctor, 'EXAMINATIONS', doctor.EXAMINATIONS[1:3])
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert '1. The kernels cannot be examined: ValueError: MMREDNET_CPU_CAPABILITY must' in text
    assert "mmcv's compiled operators\n  cpu  work" in text


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('in /home/ada/.cache/x/_C.so:', 'in _C.so:'),
        ("'~/work/a b.py' and ~/x/y", "'a b.py' and y"),
        (r'at C:\Users\ada\f.py', 'at f.py'),
        ('https://pytorch.org/get-started/locally', 'https://pytorch.org/get-started/locally'),
        ('docs/install.md, 3 / 4', 'docs/install.md, 3 / 4'),
        ('ada, adage', '<user>, adage'),
    ],
)
def test_private_names_are_left_out(monkeypatch, text, expected):
    monkeypatch.setenv('LOGNAME', 'ada')
    assert scrubbed(text) == expected


def test_the_transcripts_have_every_operator():
    text = (ROOT / 'docs/doctor.md').read_text()
    for name, layer in OPERATORS.items():
        if layer.__module__.startswith('mmrednet'):
            assert len(re.findall(rf'^  {name} ', text, re.MULTILINE)) == 2, name


def test_sections_are_aligned():
    section = Section('Title', [('a', 'one'), ('long', 'two')])
    assert section.lines() == ['Title', '  a     one', '  long  two']


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        doctor.main(['--help'])
    assert 'example:\n  mmrednet doctor' in capsys.readouterr().out
