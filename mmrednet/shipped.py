"""The files that come with the package: configs, tools and the model index.

In a clone they lie beside the package. A wheel has copies in ``mmrednet/.mim``, where mim and
mmengine look for them. ``setup.py`` loads this file by its path: it imports the standard library
alone.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
MIM = PACKAGE / '.mim'
NAMES = ('configs', 'tools', 'model-index.yml')


def clone() -> Path | None:
    """Return the folder of the clone that the package is imported from; None for a wheel."""
    root = PACKAGE.parent
    is_clone = (root / 'pyproject.toml').is_file() and (root / 'configs').is_dir()
    return root if is_clone else None


def shipped(name: str) -> Path:
    """Return the folder 'configs' or 'tools': that of the clone, or else of the wheel.

    Raises:
        FileNotFoundError: The package was installed without it.
    """
    path = (clone() or MIM) / name
    if not path.is_dir():
        raise FileNotFoundError(
            f'the {name} of mmrednet must be in {path}, but it does not exist: install the wheel '
            'that `make dist` builds, or work in a clone.'
        )
    return path


def copy_shipped(root: Path, target: Path) -> None:
    """Copy the files of a clone to the folder for mim.

    Files that are equal stay, and each file is replaced at once: other processes may be reading.

    Args:
        root: Folder of the clone.
        target: Folder to write, such as ``mmrednet/.mim``. Files that are not in the clone go.
    """
    sources = {source.relative_to(root): source for source in _sources(root)}
    for copy in list(target.rglob('*')):
        if copy.is_file() and copy.relative_to(target) not in sources:
            copy.unlink(missing_ok=True)
    for name, source in sources.items():
        copy = target / name
        if copy.is_file() and filecmp.cmp(source, copy):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f'{copy.name}.{os.getpid()}')
        # with its time, which tells filecmp that it is equal
        shutil.copy2(source, temporary)
        os.replace(temporary, copy)


def _sources(root: Path) -> Iterator[Path]:
    for name in NAMES:
        path = root / name
        for file in [path] if path.is_file() else path.rglob('*'):
            if file.is_file() and '__pycache__' not in file.parts:
                yield file
