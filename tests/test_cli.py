"""The ``mmrednet`` command: its table, help, errors and completion."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from mmrednet import cli
from mmrednet.commands import completion

ROOT = Path(__file__).parents[1]
HEAVY = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
# prints what bash would offer at the end of a line: bash splits words at spaces and around colons
COMPLETE = r"""
COMP_LINE="$2"; COMP_POINT=${#2}
eval "$1"
IFS=$'\n' COMP_WORDS=($(sed -E 's/(:+)/\n\1\n/g; s/ +/\n/g' <<< "$2"))
[[ $2 != *' ' ]] || COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_mmrednet
printf '%s\n' "${COMPREPLY[@]}"
"""
# the same for zsh, with the options under which bashcompinit calls a function; zsh splits at spaces
COMPLETE_IN_ZSH = r"""
compdef() { : }
eval "$1"
complete_line() {
    emulate -L sh
    setopt kshglob noshglob braceexpand nokshautoload
    COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=($1)
    [[ $1 != *' ' ]] || COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _mmrednet
    printf '%s\n' "${COMPREPLY[@]}"
}
complete_line "$2"
"""


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_has_the_example(name, capsys):
    with pytest.raises(SystemExit, match='0'):
        cli.load(name).main(['--help'])
    text = capsys.readouterr().out
    assert text.startswith(f'usage: mmrednet {name} ')
    assert text.rstrip().endswith(f'example:\n  {cli.COMMANDS[name].example}')


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_examples_call_their_command(name):
    assert f'mmrednet {name}' in cli.COMMANDS[name].example


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_the_page_has_every_command(name):
    assert f'| `mmrednet {name}` |' in (ROOT / 'docs/commands.md').read_text()


def test_the_overview_loads_nothing_heavy():
    code = 'import sys; from mmrednet.cli import main; print(main(["--help"])); print(*sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    *overview, status, modules = result.stdout.splitlines()
    assert status == '0'
    for name, command in cli.COMMANDS.items():
        assert any(line.split()[:1] == [name] and command.help in line for line in overview)
        assert f'  {command.example}' in overview
    assert not set(HEAVY) & set(modules.split())


def test_the_module_is_the_command():
    command = [sys.executable, '-m', 'mmrednet', '--version']
    assert subprocess.check_output(command, text=True, cwd=ROOT) == 'mmrednet 0.1.0\n'


@pytest.mark.parametrize(
    ('arguments', 'status', 'message'),
    [
        ([], 2, 'usage: mmrednet COMMAND'),
        (['trian'], 2, "mmrednet: error: 'trian' is no command; did you mean 'train'?"),
        (['xyz'], 2, "'xyz' is no command; there are demo, train, "),
        (['configs', 'list', 'rednt'], 1, 'mmrednet configs: error: family must be one of axial, '),
    ],
)
def test_wrong_calls(arguments, status, message, capsys):
    assert cli.main(arguments) == status
    assert message in capsys.readouterr().err


class TestErrors:
    @pytest.fixture
    def fail(self, monkeypatch):
        """Return a function that lets a command fail with an error from a module."""

        def fail(error, module):
            names = dict(__name__=module, error=error)
            exec('def main(argv):\n    raise error', names)
            monkeypatch.setattr(cli, 'load', lambda name: type('M', (), dict(main=names['main'])))

        return fail

    def test_our_sentences_have_no_traceback(self, fail, capsys):
        fail(KeyError("type='X' is no model; did you mean 'Y'?"), 'mmrednet.engine.name_hints')
        assert cli.main(['train']) == 1
        expected = "mmrednet train: error: type='X' is no model; did you mean 'Y'?\n"
        assert capsys.readouterr().err == expected

    @pytest.mark.parametrize(
        ('error', 'module'),
        [
            (ValueError('a shape is wrong'), 'torch.nn.functional'),
            (KeyError('key'), 'mmrednet.engine.hosts'),
            (AssertionError('not ours'), 'mmrednet.engine.hosts'),
        ],
    )
    def test_others_have_one(self, fail, error, module):
        fail(error, module)
        with pytest.raises(type(error)):
            cli.main(['train'])

    def test_a_traceback_can_be_asked_for(self, fail, monkeypatch):
        fail(ValueError('a sentence of ours'), 'mmrednet.engine.hosts')
        monkeypatch.setenv('MMREDNET_TRACEBACK', '1')
        with pytest.raises(ValueError, match='a sentence of ours'):
            cli.main(['train'])


@cache
def script(shell):
    return completion.script(shell)


def complete(command, line, shell='bash'):
    """Return what a shell completes, by a command that calls the function."""
    words = [*command, shell, script(shell), line]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert not result.stderr
    return result.stdout.split()


LINES = {
    'mmrednet tr': ['train'],
    'mmrednet ': list(cli.COMMANDS),
    'mmrednet train --au': ['--auto-scale-lr'],
    'mmrednet train x.py --launcher ': ['none', 'pytorch', 'slurm', 'mpi'],
    'mmrednet configs ': ['list', 'search', 'copy'],
    'mmrednet configs copy --fl': ['--flat'],
    # many names: after a letter
    'mmrednet train ': [],
    # files are left to the shell
    'mmrednet train own': [],
}


@pytest.mark.parametrize('line', LINES)
def test_bash_completes(line):
    assert complete(['bash', '-c', COMPLETE], line) == LINES[line]


def test_bash_completes_what_follows_the_last_colon():
    words = complete(['bash', '-c', COMPLETE], 'mmrednet train mmrednet::streets/')
    assert words == ['streets/segnext_mscan-narrow_streets.py']


def test_bash_completes_files():
    words = complete(['bash', '-c', 'eval "$1"; complete -p mmrednet'], '')
    assert words == ['complete', '-o', 'default', '-F', '_mmrednet', 'mmrednet']


@pytest.mark.skipif(shutil.which('zsh') is None, reason='there is no zsh')
@pytest.mark.parametrize('line', [*LINES, 'mmrednet train mmrednet::streets/'])
def test_zsh_completes(line):
    whole_name = ['mmrednet::streets/segnext_mscan-narrow_streets.py']
    words = complete(['zsh', '-f', '-c', COMPLETE_IN_ZSH], line, 'zsh')
    assert words == LINES.get(line, whole_name)


def test_zsh_runs_the_same_script():
    assert completion.script('zsh').startswith('autoload -U +X bashcompinit && bashcompinit\n')
    assert completion.script('zsh').endswith(completion.script('bash'))


class TestDevices:
    @pytest.mark.parametrize(
        ('device', 'gpus', 'cuda', 'message'),
        [
            ('gpu', 0, None, "device must be such as 'cpu' or 'cuda:0', got 'gpu'"),
            ('cuda:0', 0, None, "got 'cuda:0': torch .* is built without CUDA, use 'cpu'"),
            ('cuda', 0, '13.0', "got 'cuda': torch .* finds no NVIDIA GPU, use 'cpu'"),
            ('cuda:2', 2, '13.0', "got 'cuda:2': there are 2, the last one is 'cuda:1'"),
        ],
    )
    def test_a_wrong_device(self, device, gpus, cuda, message, monkeypatch):
        from mmrednet.engine import check_device

        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        monkeypatch.setattr(torch.version, 'cuda', cuda)
        with pytest.raises(ValueError, match=message):
            check_device(device)
        check_device('cpu', 'mmdet')

    def test_mmcv_without_cuda(self, monkeypatch):
        import mmcv.ops

        from mmrednet.engine import check_device

        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
        monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: 'not available')
        with pytest.raises(ImportError, match="detectors on 'cuda:0' need the CUDA operators"):
            check_device('cuda:0', 'mmdet')
        # segmenters need none of them
        check_device('cuda:0', 'mmseg')
        monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: '13.0')
        check_device('cuda:0', 'mmdet')

    def test_what_mmcv_says_without_cuda(self):
        from mmcv.ops import get_compiling_cuda_version

        if torch.version.cuda is None:
            assert get_compiling_cuda_version() == 'not available'

    @pytest.mark.parametrize(
        'text', ["No module named 'mmcv._ext'", '/site/mmcv/_ext.so: undefined symbol: x']
    )
    def test_mmcv_without_operators(self, text, monkeypatch):
        from mmrednet.engine import hosts

        def fail(name):
            raise ImportError(text)

        monkeypatch.setattr(hosts, 'import_module', fail)
        with pytest.raises(ImportError, match=r'mmcv has no compiled operators that fit torch'):
            hosts.register_host('mmdet')

    @pytest.mark.parametrize('command', ['infer', 'draw'])
    def test_commands_check_it(self, command, tmp_path, capsys):
        (tmp_path / 'photo.png').touch()
        config = 'mmrednet::shapes/faster-rcnn_r26_fpn_shapes.py'
        words = {
            'infer': ['infer', str(tmp_path / 'photo.png'), config, 'w.pth'],
            'draw': ['draw', config, 'w.pth'],
        }[command]
        assert cli.main([*words, '--device', 'cuda:99']) == 1
        assert capsys.readouterr().err.startswith(
            f"mmrednet {command}: error: device must be one that is here, got 'cuda:99'"
        )


def test_no_workers():
    """The stock config keeps workers alive, which torch refuses without any."""
    from mmrednet.engine import load_config

    config = 'mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py'
    assert load_config(config).train_dataloader.persistent_workers
    cfg = load_config(config, options={'train_dataloader.num_workers': 0})
    assert 'persistent_workers' not in cfg.train_dataloader


def test_what_frameworks_print_is_left_out(monkeypatch, capsys):
    from mmrednet.engine import hosts

    def print_lines(name):
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('something else')
        return type('Module', (), dict(register_all_modules=lambda init_default_scope: None))

    monkeypatch.setattr(hosts, 'import_module', print_lines)
    hosts.register_host('mmdet')
    assert capsys.readouterr().out == 'something else\n'
