"""Files that people take for weights, known by their first bytes."""

from __future__ import annotations

import json
from pathlib import Path

# how many bytes tell them
HEAD = 512
# where they are, what they are, and what the file is then
STARTS = (
    (0, b'<', 'a web page: the download gave a page instead of the file'),
    (0, b'version https://git-lfs', 'a pointer of Git LFS: the file itself was not fetched'),
    (
        0,
        b'\x89HDF\r\n\x1a\n',
        "an HDF5 file, as Keras writes: save its arrays by name with numpy's savez",
    ),
    (0, b'\x1f\x8b', 'a gzip file, as .tar.gz: unpack it, and give the file of weights in it'),
    (257, b'ustar', 'a tar archive: unpack it, and give the file of weights in it'),
)
# an index of all parts of a large model is smaller
MAX_INDEX = 16 << 20


def what_else(path: Path, head: bytes) -> str:
    """Return what a file is that holds no weights of a format that is read here, '' if that is not
    known.
    """
    text = head.lstrip()
    for place, start, what in STARTS:
        if (head[place:] if place else text).startswith(start):
            return what
    return _json(path) if text.startswith(b'{') else ''


def _json(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes() if path.stat().st_size <= MAX_INDEX else b'')
        files = sorted({str(name) for name in content['weight_map'].values()})
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 'a JSON file'
    more = f' and {len(files) - 5} more' if len(files) > 5 else ''
    return (
        f'the index of a model in {len(files)} files: give one that has the weights wanted, '
        f'{files[:5]}{more}, or '
        'join them in one'
    )
