"""Run a script that comes with mmdet, mmseg or mmrednet, with our operators and configs registered.

The name is that of the file, such as browse_dataset, with its folder or package where several have
it, such as mmseg/browse_dataset. Without the package a config among the arguments decides, and then
the order mmrednet, mmdet, mmseg. Configs may be named 'mmrednet::...'. Without a name all scripts
are listed.
"""

from __future__ import annotations

import argparse
import contextlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from .. import safe_loading
from ..config_names import SEPARATOR, register_configs, resolve_config
from ..engine import HOSTS, allow_checkpoint_globals, named_types, read_config, register_host
from ..shipped import shipped
from ..spelling import nearest
from .parser import CommandParser

PACKAGES = ('mmrednet', *HOSTS)
# what a script is run for
ENTRY = "if __name__ == '__main__':"
# scripts that are commands of their own
WRAPPER = 'from mmrednet.commands'


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('tool', __doc__)
    parser.add_argument('name', nargs='?', help='of the script')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='of the script, also --help')
    return parser


def tools_folder(package: str) -> Path | None:
    """Return the folder with the scripts of a package, or None if there is none."""
    if package == 'mmrednet':
        return shipped('tools')
    spec = find_spec(package)
    folder = Path(str(spec and spec.origin)).parent / '.mim' / 'tools'
    return folder if folder.is_dir() else None


def scripts_of(package: str) -> dict[str, Path]:
    """Return the scripts of a package by name, such as 'mmdet/analysis_tools/browse_dataset'."""
    folder = tools_folder(package)
    scripts: dict[str, Path] = {}
    if folder is None:
        return scripts
    for path in sorted(folder.rglob('*.py')):
        text = path.read_text()
        if ENTRY in text and WRAPPER not in text:
            name = path.relative_to(folder).with_suffix('').as_posix()
            scripts[f'{package}/{name}'] = path
    return scripts


def all_scripts() -> dict[str, Path]:
    """Return the scripts of all packages by name."""
    scripts: dict[str, Path] = {}
    for package in PACKAGES:
        scripts.update(scripts_of(package))
    return scripts


def find_script(name: str, arguments: Sequence[str]) -> tuple[str, Path]:
    """Return the package and the path of a script.

    Args:
        name: Name of the script, or its end.
        arguments: Arguments of the script. A config among them decides between packages.

    Raises:
        ValueError: There is no such script.
    """
    scripts = all_scripts()
    package, _, stem = name.partition('/')
    if package not in PACKAGES:
        package, stem = '', name
    matches = [full for full in scripts if full.startswith(package) and full.endswith(f'/{stem}')]
    if not matches:
        match = nearest(Path(stem).name, {Path(full).name for full in scripts})
        hint = f'did you mean {match!r}?' if match else '`mmrednet tool` lists them.'
        raise ValueError(f'there is no tool {name!r}; {hint}')
    owners = [full.partition('/')[0] for full in matches]
    scope = config_scope(arguments) if len(set(owners)) > 1 else None
    index = owners.index(scope) if scope in owners else 0
    return owners[index], scripts[matches[index]]


def config_scope(arguments: Sequence[str]) -> str | None:
    """Return the default scope of the first config among arguments, or None without one."""
    for argument in arguments:
        if argument.endswith('.py') and Path(argument).is_file():
            return read_config(argument).get('default_scope')
    return None


def resolve_names(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the paths of configs in place of their names."""
    names = tuple(f'{package}{SEPARATOR}' for package in PACKAGES)
    return [str(resolve_config(word)) if word.startswith(names) else word for word in arguments]


@contextlib.contextmanager
def command_line(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Let a script see its arguments, and import the modules beside it."""
    before = sys.argv, list(sys.path)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before


@safe_loading()
@named_types()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = make_parser().parse_args(argv)
    if args.name is None:
        print(*all_scripts(), sep='\n')
        return
    register_configs()
    arguments = resolve_names(args.arguments)
    package, script = find_script(args.name, arguments)
    if package in HOSTS:
        register_host(package, init_default_scope=False)
    allow_checkpoint_globals()
    with command_line(script, arguments):
        runpy.run_path(str(script), run_name='__main__')
