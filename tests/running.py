"""What makes runs of the OpenMMLab stack quick: less work beside the runs, little garbage to look
through, and scripts in processes that begin with the stack imported.
"""

import contextlib
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).parents[1]
# what scripts and their children import, which takes seconds
PRELOADED = [
    *(f'mmdet.{name}' for name in ('apis', 'datasets', 'engine', 'evaluation', 'models', 'utils')),
    *(f'mmseg.{name}' for name in ('apis', 'datasets', 'engine', 'evaluation', 'models', 'utils')),
    'matplotlib.pyplot',
    'mmrednet.engine',
    'mmrednet.heads',
]
# starts processes that have imported torch alone
TORCH_SERVER = forkserver.ForkServer()
TORCH_SERVER.set_forkserver_preload(['torch'])


def lighten():
    """Leave out what mmengine does beside a run.

    It formats the config again for each checkpoint, which takes longer than a small training, and
    asks compilers for their versions.
    """
    if find_spec('yapf'):
        from yapf.yapflib import yapf_api

        yapf_api.FormatCode = lambda text, **_: (text, False)
    if 'mmengine.runner.runner' in sys.modules:
        sys.modules['mmengine.runner.runner'].collect_env = dict


def freeze():
    """Spare later collections of garbage the objects that are there now.

    mmengine's data sets collect garbage, which looks at every object of the imported modules.
    """
    gc.collect()
    gc.freeze()


def start_processes(function, arguments=(), count=1):
    """Call a function in processes that begin with the stack imported, and return their statuses.

    Args:
        function: Called with the number of the process and the arguments.
        arguments: Further arguments, which are pickled.
        count: Number of processes.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    processes = [
        context.Process(target=function, args=(number, *arguments)) for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def run_warm(path, *arguments, cwd=ROOT, env=None):
    """Run a script as ``subprocess.run`` does with ``capture_output``, without its imports.

    Args:
        path: Path of the script, or the name of a module for ``python -m``.
        arguments: Its arguments.
        cwd: Folder in which it runs.
        env: Its environment. Default: that of this process, with one thread.
    """
    words = [str(path), *map(str, arguments)]
    environment = dict(os.environ, OMP_NUM_THREADS='1') if env is None else env
    with tempfile.TemporaryDirectory() as folder:
        (status,) = start_processes(_run_script, (words, str(cwd), environment, folder))
        stdout, stderr = (Path(folder, name).read_text() for name in ('stdout', 'stderr'))
    return subprocess.CompletedProcess(words, status, stdout, stderr)


def run_code(code, *arguments, cwd=ROOT, env=None):
    """Run code as ``python -c`` does, in a process that has imported torch and nothing else.

    Args:
        code: Python code.
        arguments: Its arguments.
        cwd: Folder in which it runs.
        env: Its environment. Default: that of this process.
    """
    words = ['-c', *map(str, arguments)]
    environment = dict(os.environ) if env is None else env
    with tempfile.TemporaryDirectory() as folder, _processes_of(TORCH_SERVER):
        (status,) = start_processes(_run_code, (code, words, str(cwd), environment, folder))
        stdout, stderr = (Path(folder, name).read_text() for name in ('stdout', 'stderr'))
    return subprocess.CompletedProcess(words, status, stdout, stderr)


@contextlib.contextmanager
def _processes_of(server):
    """Let ``start_processes`` take processes of this server."""
    before = forkserver.connect_to_new_process
    forkserver.connect_to_new_process = server.connect_to_new_process
    try:
        yield
    finally:
        forkserver.connect_to_new_process = before


def _run_code(_, code, words, cwd, environment, folder):
    _enter(cwd, environment, folder)
    # that of this process has the folder of the tests
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    paths = environment.get('PYTHONPATH', '').split(os.pathsep)
    sys.path[:] = ['', *filter(None, paths), *installed]
    sys.argv = words
    exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})


def _enter(cwd, environment, folder):
    """Give a process its folder and its environment, and write what it prints to files."""
    for number, name in enumerate(('stdout', 'stderr'), start=1):
        os.dup2(os.open(Path(folder, name), os.O_CREAT | os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    # TMPDIR may be another one
    tempfile.tempdir = None
    os.chdir(cwd)


def _run_script(_, words, cwd, environment, folder):
    _enter(cwd, environment, folder)
    lighten()
    gc.freeze()
    sys.argv = words
    if words[0].endswith('.py'):
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name='__main__')
    else:
        runpy.run_module(words[0], run_name='__main__', alter_sys=True)
