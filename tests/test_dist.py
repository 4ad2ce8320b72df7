"""The wheel and the sdist that ``make dist`` builds work without the clone.

The wheel is installed into a fresh environment on top of the prepared one. Everything runs in an
empty folder, with the clone neither there nor on the path.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DETECTOR = 'mmrednet::shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
SHORT = [
    '--cfg-options',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'train_dataloader.batch_size=2',
    # the base keeps its workers alive, which torch refuses without any
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
    'model.test_cfg.rcnn.score_thr=0.0',
]
pytestmark = pytest.mark.dist


def distribution(pattern):
    """Return the only distribution of a name."""
    (path,) = (ROOT / 'dist').glob(pattern)
    return path


@pytest.fixture(scope='module')
def call(tmp_path_factory):
    """Return a function that runs a program of a fresh environment in an empty folder."""
    folder = tmp_path_factory.mktemp('dist')
    environment, work = folder / 'environment', folder / 'work'
    work.mkdir()
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment], check=True)
    python = environment / 'bin/python'
    (packages,) = environment.glob('lib/python*/site-packages')
    (packages / 'prepared.pth').write_text(sysconfig.get_path('purelib') + '\n')
    # with the clone on its path, pip takes the package for installed
    variables = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--no-index', '--no-deps']
    command = [*pip, '--quiet', distribution('*.whl')]
    subprocess.run(command, check=True, cwd=work, env=variables)
    # what is not in the wheel would have to be compiled
    variables.update(MMREDNET_BUILD='0', MPLBACKEND='agg')

    def call(program, *words):
        result = subprocess.run(
            [str(environment / 'bin' / program), *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            cwd=work,
            env=variables,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    call.folder = work
    call.packages = packages
    return call


@pytest.fixture(scope='module')
def trained(call):
    """Return the checkpoint of two iterations on shapes that the wheel's own script wrote."""
    call('mmrednet', 'tool', 'synthetic/generate', '--train', 4, '--val', 2)
    output = call('mmrednet', 'train', DETECTOR, '--work-dir', 'work', *SHORT)
    assert 'Could not import' not in output
    return call.folder / 'work/iter_2.pth'


def test_compiled_kernels_are_active(call):
    code = 'import mmrednet, mmrednet.ops as o; print(mmrednet.__file__, o.active_kernels()["cpu"])'
    path, kernels = call('python', '-c', code).strip().split(maxsplit=1)
    assert Path(path) == call.packages / 'mmrednet/__init__.py'
    assert kernels.startswith('native')


def test_training(trained, call):
    scalars = next((call.folder / 'work').glob('*/vis_data/scalars.json')).read_text()
    entries = [json.loads(line) for line in scalars.splitlines()]
    assert [entry['step'] for entry in entries if 'loss' in entry] == [1, 2]
    assert trained.is_file()


def test_evaluation_and_confusion_matrix(trained, call):
    out = ['--out', 'predictions.pkl', '--work-dir', 'work']
    assert 'bbox_mAP' in call('mmrednet', 'test', DETECTOR, trained, *out, *SHORT)
    call('mmrednet', 'tool', 'confusion_matrix', DETECTOR, 'predictions.pkl', 'matrix')
    assert Image.open(call.folder / 'matrix/confusion_matrix.png').width > 100


def test_drawing(trained, call):
    call('mmrednet', 'draw', DETECTOR, trained, '--out-dir', 'pictures', *SHORT)
    names = sorted(path.name for path in (call.folder / 'pictures').iterdir())
    assert names == ['detections.png', 'kernels.png']
    photo = 'data/shapes/val/000000.png'
    call('mmrednet', 'infer', photo, DETECTOR, trained, '--out-dir', 'predictions')
    assert (call.folder / 'predictions/000000.png').is_file()


def test_counting(call):
    name = 'mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py'
    assert '31.60 M' in call('mmrednet', 'flops', name, '--shape', 64, 64)


def test_configs(call):
    names = call('mmrednet', 'configs', 'list').split()
    paths = (ROOT / 'configs').rglob('*.py')
    assert len(names) == sum('_base_' not in path.parts for path in paths)
    code = f"""
from mmengine.hub import get_config
from mmrednet.config_names import register_configs
register_configs()
print(get_config({DETECTOR!r}).filename)
"""
    path = Path(call('python', '-c', code).split()[-1])
    assert path.is_relative_to(call.packages / 'mmrednet/.mim/configs')


def test_the_demo_starts(call):
    assert 'mmrednet demo' in call('python', '-m', 'mmrednet', 'demo', '--help')


def test_nothing_is_a_link():
    with zipfile.ZipFile(distribution('*.whl')) as wheel:
        files = {info.filename: info for info in wheel.infolist()}
    for name in ('configs/rednet/metafile.yml', 'tools/train.py', 'model-index.yml'):
        # the type of a file is in the upper bits of its mode
        assert files[f'mmrednet/.mim/{name}'].external_attr >> 28 in (0, 0o10)
    assert not [name for name in files if '__pycache__' in name or name.startswith('tests')]


def test_the_sdist_builds_without_git(tmp_path):
    """Its wheel has the same files, but for the compiled library."""
    with tarfile.open(distribution('*.tar.gz')) as archive:
        archive.extractall(tmp_path, filter='data')
    (source,) = tmp_path.iterdir()
    assert not (source / '.git').exists()
    # pip's build has no torch: no kernel is compiled
    code = 'import sys; sys.modules["torch"] = None; exec(open("setup.py").read())'
    command = [sys.executable, '-c', code, '--quiet', 'bdist_wheel', '--dist-dir', tmp_path / 'out']
    setup = dict(cwd=source, capture_output=True, text=True, check=False)
    code = code.replace('exec(', '__file__ = "setup.py"; exec(')
    command[2] = code
    result = subprocess.run([str(word) for word in command], **setup)
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / 'out').glob('*.whl')
    names = [set(zipfile.ZipFile(path).namelist()) for path in (wheel, distribution('*.whl'))]
    assert {Path(name).name.partition('.')[0] for name in names[0] ^ names[1]} == {'_C'}
