"""Configs by name: ``mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py``.

mmengine resolves ``package::path`` in ``_base_`` and in ``mmengine.hub`` for the packages of a
table alone, and offers no function that adds one. ``register_configs()`` does it. Our commands call
it, and so does everything that reads a config through ``mmrednet.engine``.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

from .packages import DISTRIBUTIONS, require
from .shipped import MIM, clone, copy_shipped, shipped

SEPARATOR = '::'
# how many names an error for a misspelt one lists
MATCHES = 3


def register_configs() -> None:
    """Let mmengine find configs named ``mmrednet::...``.

    In a clone the copy in ``mmrednet/.mim``, where mmengine looks, is brought up to date first.

    Raises:
        ImportError: mmengine is missing.
        OSError: The copy is not up to date and cannot be written.
    """
    require('mmrednet.config_names', 'mmengine')
    from mmengine.config.utils import MODULE2PACKAGE

    root = clone()
    if root is not None:
        copy_shipped(root, MIM)
    # the name of a module, not of the distribution: another version may be installed than the one
    # that is imported
    MODULE2PACKAGE['mmrednet'] = 'mmrednet.config_names'


def config_folder(package: str = 'mmrednet') -> Path:
    """Return the folder with the configs of a package.

    Args:
        package: 'mmrednet', or a framework such as 'mmdet'. Default: 'mmrednet'.

    Raises:
        FileNotFoundError: It has none.
        ImportError: The package is missing.
        ValueError: It is no package with configs.
    """
    if package == 'mmrednet':
        return shipped('configs')
    if package not in DISTRIBUTIONS:
        raise ValueError(
            f"the name of a config must begin with 'mmrednet::', 'mmdet::' or 'mmseg::', got "
            f"'{package}::'."
        )
    require(f'a config of {package}', package)
    spec = find_spec(package)
    folder = Path(str(spec and spec.origin)).parent / '.mim' / 'configs'
    if not folder.is_dir():
        raise FileNotFoundError(f'{package} must have its configs in {folder}: reinstall it.')
    return folder


def config_names(package: str = 'mmrednet') -> list[str]:
    """Return the names of the configs of a package, without parts that others inherit."""
    folder = config_folder(package)
    paths = (path.relative_to(folder) for path in sorted(folder.rglob('*.py')))
    return [f'{package}{SEPARATOR}{path}' for path in paths if '_base_' not in path.parts]


def resolve_config(config: str) -> Path:
    """Return the file of a config.

    Args:
        config: Path, or a name such as 'mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py'.

    Raises:
        FileNotFoundError: It does not exist. The message has the names that are most like it.
    """
    package, separator, name = config.partition(SEPARATOR)
    path = config_folder(package) / name if separator else Path(config)
    if not path.is_file():
        raise FileNotFoundError(_missing(config, package if separator else 'mmrednet'))
    return path


def _missing(config: str, package: str) -> str:
    """Return the message for a config that does not exist."""
    if SEPARATOR in config:
        message = f'{package} has no config {config!r}'
    else:
        message = f'config must be an existing file, got {config!r}'
    try:
        names = nearest_configs(config, package)
    except FileNotFoundError as error:
        # the file is missing whether there are names or not
        return f'{message}; {error}'
    if names:
        return f'{message}; did you mean {" or ".join(names)}?'
    return f'{message}; `mmrednet configs list` names those of mmrednet.'


def nearest_configs(config: str, package: str = 'mmrednet') -> list[str]:
    """Return the names of configs that are most like a misspelt name or path.

    Args:
        config: Path or name. The names of files are compared, folders and prefixes are not.
        package: Package to search. Default: 'mmrednet'.
    """
    stems: dict[str, list[str]] = {}
    for name in config_names(package):
        stems.setdefault(Path(name).stem, []).append(name)
    stem = Path(config.rpartition(SEPARATOR)[2]).name.removesuffix('.py')
    matches = difflib.get_close_matches(stem, stems, n=MATCHES)
    if matches[:1] == [stem]:
        # the file is right, and the folder wrong
        matches = [stem]
    return [name for match in matches for name in stems[match]]
