"""Freed memory is kept: by mallopt and in huge pages, once, and only where nobody else decides.

Each case runs in a process of its own, since an allocator cannot be reset.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmrednet
from mmrednet import memory

ROOT = Path(__file__).parents[1]
HAS_GLIBC = sys.platform.startswith('linux') and hasattr(ctypes.CDLL(None), 'gnu_get_libc_version')
needs_glibc = pytest.mark.skipif(not HAS_GLIBC, reason='needs the C library of GNU')
ALLOCATOR_VARIABLES = ('GLIBC_TUNABLES', 'LD_PRELOAD', memory.SWITCH, *memory.VARIABLES)

# Blocks of 8 MiB are touched and freed. Prints the page faults of a second turn, and what
# keep_memory says.
FAULTS = """
import ctypes, resource, mmrednet
from mmrednet.memory import _c_library

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def turn():
    blocks = [libc.malloc(8 << 20) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in blocks:
        libc.free(block)

libc = _c_library()
policy = mmrednet.keep_memory()
turn()
before = faults()
turn()
print(faults() - before, policy.kept, policy.huge_pages, policy, sep='|')
"""


def run(code, *arguments, **variables):
    environment = {
        key: value for key, value in os.environ.items() if key not in ALLOCATOR_VARIABLES
    }
    result = subprocess.run(
        [sys.executable, '-c', code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**environment, **variables},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def keep(**variables):
    faults, *policy = run(FAULTS, **variables).split('|')
    return int(faults), *policy


@needs_glibc
def test_freed_blocks_are_not_returned():
    faults, kept, _, text = keep()
    assert faults < 100
    assert kept == 'True'
    assert text.startswith('Freed memory is kept, in ')
    # the same blocks, 2048 pages each, are touched anew without it
    returned, *_ = keep(MMREDNET_KEEP_MEMORY='0')
    assert returned > 10 * 100


@needs_glibc
@pytest.mark.parametrize(
    ('variables', 'reason'),
    [
        ({memory.SWITCH: '0'}, 'switched off by MMREDNET_KEEP_MEMORY=0'),
        (
            dict(GLIBC_TUNABLES='glibc.cpu.hwcaps=-x:glibc.malloc.trim_threshold=123456'),
            'GLIBC_TUNABLES=glibc.cpu.hwcaps=-x:glibc.malloc.trim_threshold=123456 decides',
        ),
        (dict(MALLOC_MMAP_THRESHOLD_='123456'), 'MALLOC_MMAP_THRESHOLD_=123456 decides'),
    ],
)
def test_settings_of_users_stay(variables, reason):
    faults, *policy = keep(**variables)
    assert policy == ['False', 'False', f'Freed memory is not kept: {reason}']
    assert faults > 1000


@needs_glibc
def test_other_tunables_do_not_matter():
    _, kept, _, _ = keep(GLIBC_TUNABLES='glibc.malloc.arena_max=2')
    assert kept == 'True'


# prints whether huge pages are used, how much memory they took at once in KiB, and the flags of
# the memory that holds a block
ADVICE = """
import pathlib, re, mmrednet
from mmrednet.memory import _c_library

def resident():
    return int(re.search(r'VmRSS:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])

before = resident()
print(mmrednet.keep_memory().huge_pages)
print(resident() - before)
# its middle, since the first page is shared with what lies before
address = _c_library().malloc(64 << 20) + (32 << 20)
inside = False
for line in pathlib.Path('/proc/self/smaps').read_text().splitlines():
    if match := re.match('([0-9a-f]+)-([0-9a-f]+) ', line):
        inside = int(match[1], 16) <= address < int(match[2], 16)
    if inside and line.startswith('VmFlags:'):
        print(line)
"""


@needs_glibc
def test_blocks_lie_where_huge_pages_are_advised():
    if '[madvise]' not in memory.HUGE_PAGES.read_text():
        pytest.skip('the system has no huge pages on demand')
    huge_pages, taken, flags = run(ADVICE).splitlines()
    assert huge_pages == 'True'
    # what is reserved takes no memory
    assert int(taken) < 4096
    assert ' hg ' in f'{flags} '
    assert ' hg ' not in f'{run(ADVICE, MMREDNET_KEEP_MEMORY="0").splitlines()[-1]} '


@pytest.fixture
def fresh():
    memory.keep_memory.cache_clear()
    yield
    memory.keep_memory.cache_clear()


class Library:
    """A C library that notes the calls that it gets."""

    def __init__(self, accepted=1, address=0x1001, advised=0, **functions):
        self.calls = []
        self.accepted, self.address, self.advised = accepted, address, advised
        self.__dict__.update(functions)

    def mallopt(self, parameter, value):
        self.calls.append((parameter, value))
        return self.accepted if parameter == memory.M_MMAP_THRESHOLD else 1

    def malloc(self, size):
        self.calls.append(('malloc', size))
        return self.address

    def madvise(self, start, length, advice):
        self.calls.append(('madvise', start.value, length.value, advice))
        return self.advised

    def free(self, address):
        self.calls.append(('free', address))


@pytest.fixture
def library(fresh, monkeypatch, tmp_path):
    """Return a function that makes a library, on a system of these settings."""
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, 'platform', 'linux')
    sizes = dict(SC_PAGE_SIZE=4096, SC_PHYS_PAGES=1 << 20)
    monkeypatch.setattr(os, 'sysconf', sizes.get)

    def make(huge_pages='always [madvise] never', overcommit='0', **options):
        for name, text in (('HUGE_PAGES', huge_pages), ('OVERCOMMIT', overcommit)):
            path = tmp_path / name
            path.write_text(f'{text}\n')
            monkeypatch.setattr(memory, name, path)
        result = Library(**options)
        if 'mallctl' not in options:
            result.gnu_get_libc_version = lambda: b'2.36'
        monkeypatch.setattr(memory, '_c_library', lambda: result)
        return result

    return make


PARAMETERS = [(-1, -1), (-3, 1 << 30), (-4, 0)]


def test_a_block_is_advised_and_freed(library):
    """Whole pages of it: from 0x2000 to 0x80001001, rounded down."""
    libc = library()
    policy = mmrednet.keep_memory()
    assert policy == memory.MemoryPolicy(
        True, True, 'Freed memory is kept, in huge pages (MMREDNET_KEEP_MEMORY=0 turns this off)'
    )
    advice = ('madvise', 0x2000, (2 << 30) - 0x1000, 14)
    block = [('malloc', 2 << 30), advice, ('free', 0x1001)]
    assert libc.calls == [*PARAMETERS, *block, (-4, 65536)]
    # the second call finds everything done
    assert mmrednet.keep_memory() is policy
    assert len(libc.calls) == 7


@pytest.mark.parametrize(
    ('options', 'huge_pages'),
    [
        (dict(huge_pages='[always] madvise never'), True),
        (dict(huge_pages='always madvise [never]'), False),
        (dict(overcommit='2'), False),
        (dict(address=None), False),
        (dict(advised=-1), False),
    ],
)
def test_systems_without_huge_pages_on_demand(library, options, huge_pages):
    libc = library(**options)
    policy = mmrednet.keep_memory()
    assert (policy.kept, policy.huge_pages) == (True, huge_pages)
    assert libc.calls[:3] == PARAMETERS
    assert libc.calls[-1] == (-4, 65536)
    freed = [call for call in libc.calls if call[0] == 'free']
    assert freed == ([('free', 0x1001)] if options.get('advised') else [])


def test_an_old_library_puts_all_blocks_on_the_heap(library):
    libc = library(accepted=0)
    assert mmrednet.keep_memory().kept
    assert (-4, 65536) not in libc.calls


@pytest.mark.parametrize(
    ('function', 'allocator'),
    [('mallctl', 'jemalloc'), ('tc_malloc', 'tcmalloc'), ('mi_malloc', 'mimalloc')],
)
def test_another_allocator_is_left_alone(library, function, allocator):
    libc = library(**{function: None})
    text = f'Freed memory is not kept: {allocator} is the allocator'
    assert str(mmrednet.keep_memory()) == text
    assert libc.calls == []


def test_other_c_libraries_and_systems(library, monkeypatch):
    libc = library()
    del libc.gnu_get_libc_version
    text = 'Freed memory is not kept: the C library is not that of GNU'
    assert str(mmrednet.keep_memory()) == text
    memory.keep_memory.cache_clear()
    monkeypatch.setattr(sys, 'platform', 'darwin')
    text = 'Freed memory is not kept: the system is darwin, not Linux'
    assert str(mmrednet.keep_memory()) == text
    assert libc.calls == []


@pytest.mark.parametrize(('device', 'lines'), [('cpu', 1), ('cuda:0', 0)])
def test_runs_on_a_cpu_say_so_once(library, monkeypatch, device, lines):
    from mmrednet.engine import kept_memory

    library()
    messages = []
    monkeypatch.setattr(kept_memory, 'print_log', lambda text, logger: messages.append(text))
    monkeypatch.setattr(kept_memory, 'get_device', lambda: device.partition(':')[0])
    kept_memory.keep_memory_on_cpu()
    assert len(messages) == lines
    kept_memory.keep_memory_on_cpu(device)
    assert len(messages) == 2 * lines


@pytest.mark.parametrize('tool', ['train', 'test', 'pretrain', 'infer'])
def test_tools_keep_memory(tool):
    assert 'keep_memory_on_cpu(' in (ROOT / f'mmrednet/commands/{tool}.py').read_text()
