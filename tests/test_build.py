"""The CPU kernels are compiled on first use where the package has none that fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import run_code
from torch.utils import cpp_extension

from mmrednet.ops import _build, _first_use, _native, _processor

ROOT = Path(__file__).parents[1]
# of torch's headers one that takes no seconds
SOURCE = """
#include <c10/macros/Macros.h>
extern "C" int answer() { return 42; }
"""
CODE = """
import ctypes, logging, sys
from pathlib import Path
logging.basicConfig(level=logging.WARNING)
from mmrednet.ops import _build, _first_use
_build.CSRC = Path(sys.argv[1])
print(_first_use.compile_into_cache())
print(ctypes.CDLL(str(_first_use.cached_library())).answer())
"""
# a compiler that is not done before the second process asks for the library
SLOW_COMPILER = """#!/bin/sh
case "$*" in *-c*answer.cpp*) sleep 3 ;; esac
exec c++ "$@"
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    folder = tmp_path / 'csrc'
    folder.mkdir()
    (folder / 'answer.cpp').write_text(SOURCE)
    monkeypatch.setattr(_build, 'CSRC', folder)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return folder


def test_two_processes_compile_once(sources, tmp_path, monkeypatch):
    compiler = tmp_path / 'g++'
    compiler.write_text(SLOW_COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', CODE, str(sources)]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    results = [process.communicate() for process in processes]
    for (output, errors), process in zip(results, processes, strict=True):
        assert process.returncode == 0, errors
        assert output.split() == [str(_first_use.cached_library()), '42']
    said = ''.join(errors for _, errors in results)
    assert said.count('mmrednet compiles its CPU kernels for torch') == 1
    # a third one finds it
    before = _first_use.cached_library().stat().st_mtime_ns
    assert _first_use.compile_into_cache() == _first_use.cached_library()
    assert _first_use.cached_library().stat().st_mtime_ns == before


def test_a_failing_build_says_why(sources):
    (sources / 'answer.cpp').write_text('int answer() { return missing_name; }')
    with pytest.raises(RuntimeError, match='compilation failed: .*missing_name'):
        _first_use.compile_into_cache()


def test_without_a_compiler(sources, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler 'no-such-compiler': install one"):
        _first_use.compile_into_cache()


def test_it_can_be_switched_off(sources, monkeypatch):
    monkeypatch.setenv('MMREDNET_BUILD', '0')
    with pytest.raises(RuntimeError, match='switched off by MMREDNET_BUILD=0'):
        _first_use.compile_into_cache()


@pytest.mark.parametrize(
    ('error', 'remedy'),
    [
        ('Ninja is required to load C++ extensions', 'pip install ninja'),
        ('fatal error: Killed signal terminated program cc1plus', 'set MAX_JOBS=1'),
        ('ninja: build stopped', 'set CXX to a compiler that this torch supports'),
    ],
)
def test_a_failing_build_says_what_to_do(sources, monkeypatch, error, remedy):
    def fail(**_):
        raise RuntimeError(error)

    monkeypatch.setattr(cpp_extension, 'load', fail)
    with pytest.raises(_first_use.BuildError) as caught:
        _first_use.compile_into_cache()
    assert error in caught.value.reason
    assert caught.value.remedy.startswith(remedy)


class TestProcessor:
    """Which instruction set is compiled on first use."""

    @pytest.fixture
    def cpuinfo(self, tmp_path, monkeypatch):
        path = tmp_path / 'cpuinfo'
        monkeypatch.setattr(_processor, 'CPUINFO', path)
        monkeypatch.delenv(_processor.LIMIT, raising=False)
        _processor.processor_flags.cache_clear()
        yield path
        _processor.processor_flags.cache_clear()

    @pytest.mark.parametrize(
        ('flags', 'expected'),
        [
            ('fpu sse2', 'plain'),
            ('avx2 fma', 'avx2'),
            ('avx2', 'plain'),
            ('avx2 fma avx512f avx512bw avx512dq avx512vl', 'avx512'),
            ('avx2 fma avx512f avx512bw avx512dq', 'avx2'),
            ('avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16', 'avx512bf16'),
        ],
    )
    def test_the_widest_one_of_the_processor(self, cpuinfo, flags, expected):
        cpuinfo.write_text(f'processor : 0\nflags : {flags}\n\nprocessor : 1\nflags : sse\n')
        assert _processor.instruction_set() == expected

    def test_the_limit(self, cpuinfo, monkeypatch):
        cpuinfo.write_text('flags : avx2 fma')
        for limit, expected in [('avx512', 'avx2'), ('plain', 'plain'), ('AVX', 'avx2')]:
            monkeypatch.setenv(_processor.LIMIT, limit)
            assert _processor.instruction_set() == expected

    def test_all_without_a_list_of_features(self, cpuinfo):
        assert _processor.instruction_set() is None

    def test_each_has_its_own_library(self, cpuinfo, monkeypatch):
        cpuinfo.write_text('flags : avx2 fma')
        wide = _first_use.cached_library()
        monkeypatch.setenv(_processor.LIMIT, 'plain')
        assert _first_use.cached_library() != wide

    def test_it_is_what_the_kernels_use(self):
        """The system and the compiler's builtins agree."""
        if _native.MISSING or _processor.instruction_set() is None:
            pytest.skip('no kernels, or no list of features')
        assert _processor.instruction_set() == _native.capability()


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
    result = run_code(code, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reason = "there is no C++ compiler 'no-such-compiler': install one, such as g++, or set CXX"
    assert result.stdout.startswith('{49.0} 1 mmrednet: plain torch computes on the CPU')
    assert result.stdout.count(reason) == 2
