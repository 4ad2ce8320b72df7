"""List, search or copy the configs that come with the package."""

from __future__ import annotations

import ast
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..config_names import SEPARATOR, config_folder, config_names, resolve_config
from .parser import CommandParser


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser('configs', __doc__)
    actions = parser.add_subparsers(dest='action', required=True, parser_class=ArgumentParser)
    listing = actions.add_parser('list', help='print all names, or those of a family')
    listing.add_argument('family', nargs='?', help='a folder of configs, such as rednet')
    search = actions.add_parser('search', help='print the names that have all these words')
    search.add_argument('words', nargs='+', metavar='WORD', help='such as mask-rcnn van')
    copy = actions.add_parser('copy', help='write a config into your folder')
    copy.add_argument('name', help="such as 'mmrednet::rednet/...', or a path")
    copy.add_argument('target', nargs='?', type=Path, help='file to write; default: ./<its name>')
    copy.add_argument(
        '--flat', action='store_true', help='write all values, in place of the names of its bases'
    )
    copy.add_argument('--force', action='store_true', help='overwrite the file')
    return parser


def list_configs(args: Namespace) -> int:
    """Print the names of all configs or of a family."""
    names = config_names()
    families = sorted({name.partition(SEPARATOR)[2].partition('/')[0] for name in names})
    if args.family is not None and args.family not in families:
        raise ValueError(f'family must be one of {", ".join(families)}, got {args.family!r}')
    prefix = f'mmrednet{SEPARATOR}{args.family}/' if args.family else ''
    print(*(name for name in names if name.startswith(prefix)), sep='\n')
    return 0


def search_configs(args: Namespace) -> int:
    """Print the names that have all words. The exit status is 1 if there are none."""
    words = [word.lower() for word in args.words]
    matches = [name for name in config_names() if all(word in name.lower() for word in words)]
    if not matches:
        print(f'no config of mmrednet has {" and ".join(args.words)}', file=sys.stderr)
        return 1
    print(*matches, sep='\n')
    return 0


def copy_config(args: Namespace) -> int:
    """Write a config, with the names of its bases or with all their values."""
    source = resolve_config(args.name)
    target = args.target or Path(source.name)
    if target.is_dir():
        target /= source.name
    if target.exists() and not args.force:
        raise FileExistsError(f'{target} exists; --force overwrites it.')
    text = flat_text(args.name) if args.flat else linked_text(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    print(target)
    return 0


def flat_text(name: str) -> str:
    """Return a config with the values of its bases."""
    # mmengine takes seconds to import
    from ..engine import read_config

    return read_config(name).pretty_text


def linked_text(source: Path) -> str:
    """Return the text of a config whose bases have names in place of paths.

    The copy can then lie anywhere. Names of other packages stay.
    """
    text = source.read_text()
    lines = text.splitlines(keepends=True)
    # from the last one, so that the positions of the others stay right
    for base in reversed(base_strings(text)):
        value = str(base.value)
        if SEPARATOR in value:
            continue
        # positions are in bytes
        line = lines[base.lineno - 1].encode()
        new = repr(base_name(source, value)).encode()
        changed = line[: base.col_offset] + new + line[base.end_col_offset :]
        lines[base.lineno - 1] = changed.decode()
    return ''.join(lines)


def base_strings(text: str) -> list[ast.Constant]:
    """Return the strings of the ``_base_`` of a config, in their order."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == '_base_':
            strings = [node for node in ast.walk(statement.value) if isinstance(node, ast.Constant)]
            return sorted(strings, key=lambda node: (node.lineno, node.col_offset))
    return []


def base_name(source: Path, base: str) -> str:
    """Return the name of a base, or its absolute path if it is no config of the package."""
    path = (source.parent / base).resolve()
    folder = config_folder().resolve()
    if not path.is_relative_to(folder):
        return str(path)
    return f'mmrednet{SEPARATOR}{path.relative_to(folder).as_posix()}'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process."""
    args = make_parser().parse_args(argv)
    actions = {'list': list_configs, 'search': search_configs, 'copy': copy_config}
    return actions[args.action](args)
