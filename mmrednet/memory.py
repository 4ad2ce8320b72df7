"""Keep freed memory in the process, so that large tensors find pages that exist already.

The GNU C library returns large blocks to the system when they are freed. The next layer asks for
pages again, and each of them is cleared and mapped at its first touch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

SWITCH = 'MMREDNET_KEEP_MEMORY'
# allocators that replace the C library's, by a function of theirs
REPLACEMENTS = {
    'mallctl': 'jemalloc',
    'tc_malloc': 'tcmalloc',
    'mi_malloc': 'mimalloc',
}
# how users tune the same parameters; their values stay
TUNABLES = (
    'glibc.malloc.hugetlb',
    'glibc.malloc.mmap_max',
    'glibc.malloc.mmap_threshold',
    'glibc.malloc.trim_threshold',
)
VARIABLES = ('MALLOC_MMAP_MAX_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')
# parameters of mallopt, in malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
DEFAULT_MMAP_MAX = 1 << 16
# a larger block is rare enough to be returned to the system
MMAP_THRESHOLD = 1 << 30
# address space that is advised at once; most machines compute in less
MAX_RESERVE = 64 << 30
MADV_HUGEPAGE = 14
HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')
OVERCOMMIT = Path('/proc/sys/vm/overcommit_memory')


@dataclass(frozen=True)
class MemoryPolicy:
    """What the allocator of this process does with freed memory.

    Args:
        kept: Whether :func:`keep_memory` told it to keep all blocks but the largest.
        huge_pages: Whether kept memory lies in huge pages where the system has some.
        text: The same in words, with the reason where memory is not kept.
    """

    kept: bool
    huge_pages: bool
    text: str

    def __str__(self) -> str:
        return self.text


@functools.cache
def keep_memory() -> MemoryPolicy:
    """Tell the GNU C library to keep freed memory, in huge pages where the system allows it.

    Networks on a CPU take up to half the time, because no layer waits for new pages. Blocks of less
    than 1 GiB are kept until the process ends. They can be used again by all that allocates through
    the C library, such as torch and numpy. Call it early: earlier blocks stay where they are. Only
    the first call has an effect.

    It does nothing where the environment variable ``MMREDNET_KEEP_MEMORY`` is 0, with another C
    library or allocator, and where ``GLIBC_TUNABLES`` or a variable such as
    ``MALLOC_TRIM_THRESHOLD_`` sets the same parameters.

    Returns:
        What was done, or why not. Its text is meant for a log.
    """
    reason = _reason_against()
    if reason:
        return MemoryPolicy(False, False, f'Freed memory is not kept: {reason}')
    libc = _c_library()
    # -1 is the largest number: the end of the heap is never returned
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    # versions before 2.35 refuse so large a threshold; there all blocks are kept
    accepted = libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
    # no blocks outside the heap, until it has been advised
    libc.mallopt(M_MMAP_MAX, 0)
    huge_pages = _advise_huge_pages(libc)
    if accepted:
        libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
    pages = 'in huge pages' if huge_pages else 'in pages of the usual size'
    return MemoryPolicy(
        True, huge_pages, f'Freed memory is kept, {pages} ({SWITCH}=0 turns this off)'
    )


def _reason_against() -> str | None:
    """Return why the allocator is left as it is, or None."""
    if os.environ.get(SWITCH) == '0':
        return f'switched off by {SWITCH}=0'
    if not sys.platform.startswith('linux'):
        return f'the system is {sys.platform}, not Linux'
    libc = _c_library()
    for function, allocator in REPLACEMENTS.items():
        if hasattr(libc, function):
            return f'{allocator} is the allocator'
    if not hasattr(libc, 'gnu_get_libc_version'):
        return 'the C library is not that of GNU'
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    names = [setting.partition('=')[0] for setting in tunables.split(':')]
    if set(names) & set(TUNABLES):
        return f'GLIBC_TUNABLES={tunables} decides'
    for variable in VARIABLES:
        if variable in os.environ:
            return f'{variable}={os.environ[variable]} decides'
    return None


def _c_library() -> ctypes.CDLL:
    """Return the functions of the C library, and of what was loaded in place of it."""
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    return libc


def _advise_huge_pages(libc: ctypes.CDLL) -> bool:
    """Let the heap grow within huge pages, and return whether it does."""
    try:
        choices = HUGE_PAGES.read_text()
        strict = OVERCOMMIT.read_text().strip() == '2'
    except OSError:
        return False
    if '[always]' in choices:
        return True
    # where the system lends no more than it has, a reserve would be missing elsewhere
    if '[madvise]' not in choices or strict:
        return False
    page_size = os.sysconf('SC_PAGE_SIZE')
    size = min(MAX_RESERVE, os.sysconf('SC_PHYS_PAGES') * page_size // 2)
    # Advice holds for addresses that exist. So the heap gets its addresses at once: a block that is
    # advised and freed without being touched. It takes no memory, and later blocks are cut from it.
    address = libc.malloc(size)
    if not address:
        return False
    start = -(-address // page_size) * page_size
    length = (address + size - start) // page_size * page_size
    advised = libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_HUGEPAGE) == 0
    libc.free(address)
    return advised
