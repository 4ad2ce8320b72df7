"""The CPU kernels are compiled on first use where the package has none that fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrednet.ops import _build, _native

ROOT = Path(__file__).parents[1]
SOURCE = """
#include <torch/library.h>
TORCH_LIBRARY(mmrednet_test_build, library) {
  library.def("answer() -> int", []() -> int64_t { return 42; });
}
"""
CODE = """
import logging, sys
from pathlib import Path
import torch
logging.basicConfig(level=logging.WARNING)
from mmrednet.ops import _build
_build.CSRC = Path(sys.argv[1])
print(_build.compile_into_cache())
torch.ops.load_library(str(_build.cached_library()))
print(torch.ops.mmrednet_test_build.answer())
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    folder = tmp_path / 'csrc'
    folder.mkdir()
    (folder / 'answer.cpp').write_text(SOURCE)
    monkeypatch.setattr(_build, 'CSRC', folder)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return folder


def test_two_processes_compile_once(sources):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', CODE, str(sources)]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    results = [process.communicate() for process in processes]
    for (output, errors), process in zip(results, processes, strict=True):
        assert process.returncode == 0, errors
        assert output.split() == [str(_build.cached_library()), '42']
    said = ''.join(errors for _, errors in results)
    assert said.count('mmrednet compiles its CPU kernels for torch') == 1
    # a third one finds it
    before = _build.cached_library().stat().st_mtime_ns
    assert _build.compile_into_cache() == _build.cached_library()
    assert _build.cached_library().stat().st_mtime_ns == before


def test_a_failing_build_says_why(sources):
    (sources / 'answer.cpp').write_text('int answer() { return missing_name; }')
    with pytest.raises(RuntimeError, match='compilation failed: .*missing_name'):
        _build.compile_into_cache()


def test_without_a_compiler(sources, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler 'no-such-compiler': install one"):
        _build.compile_into_cache()


def test_it_can_be_switched_off(sources, monkeypatch):
    monkeypatch.setenv('MMREDNET_BUILD', '0')
    with pytest.raises(RuntimeError, match='switched off by MMREDNET_BUILD=0'):
        _build.compile_into_cache()


class TestFit:
    def test_a_library_in_the_package_is_loaded(self):
        """Else all tests of the kernels would be skipped."""
        if list(Path(_build.__file__).parent.glob('_C.*.so')):
            assert _native.MISSING is None

    def library(self, tmp_path):
        library = tmp_path / '_C.so'
        library.write_bytes(b'')
        _build.write_stamp(library)
        return library

    def test_a_library_of_the_same_sources_fits(self, tmp_path):
        assert _build.misfit(self.library(tmp_path)) is None

    def test_other_sources_and_another_torch(self, tmp_path, monkeypatch):
        library = self.library(tmp_path)
        folder = tmp_path / 'csrc'
        folder.mkdir()
        monkeypatch.setattr(_build, 'CSRC', folder)
        assert _build.misfit(library) == 'it was built from other sources'
        stamp = json.loads(_build.stamp_of(library).read_text())
        _build.stamp_of(library).write_text(json.dumps(dict(stamp, torch='1.0')))
        expected = f'it was built for torch 1.0, this is {torch.__version__}'
        assert _build.misfit(library) == expected
        _build.stamp_of(library).unlink()
        assert _build.misfit(library) == 'it does not say what it was built from'


def test_plain_torch_computes_without_a_compiler(tmp_path):
    """The first operator warns once, and the results are right."""
    ignored = shutil.ignore_patterns('_C*', '__pycache__')
    shutil.copytree(ROOT / 'mmrednet', tmp_path / 'mmrednet', ignore=ignored)
    code = """
import warnings
import torch
from mmrednet.ops import Window, active_kernels, local_aggregate
value, weight = torch.ones(1, 1, 1, 3, 3), torch.ones(1, 1, 9, 3, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    sums = {float(local_aggregate(value, weight, Window(3)).sum()) for _ in range(2)}
print(sums, len(caught), caught[0].message)
print(active_kernels()['cpu'])
"""
    environment = dict(os.environ, CXX='no-such-compiler', PYTHONPATH=str(tmp_path))
    result = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    reason = "there is no C++ compiler 'no-such-compiler': install one, such as g++, or set CXX"
    assert result.stdout.startswith('{49.0} 1 mmrednet: plain torch computes on the CPU')
    assert result.stdout.count(reason) == 2
