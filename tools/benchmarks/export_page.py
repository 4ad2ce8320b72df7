"""The table of docs/export.md, from the results of export_matrix.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END = '<!-- export_matrix.py: begin -->', '<!-- export_matrix.py: end -->'
# format and form of each column
COLUMNS = {
    'ONNX': ('onnx', 'portable'),
    'OpenVINO': ('openvino', 'portable'),
    'OpenVINO, native': ('openvino', 'native'),
    'program, native': ('exported-program', 'native'),
    'program, portable': ('exported-program', 'portable'),
    'AOTInductor, native': ('aoti', 'native'),
    'AOTInductor, portable': ('aoti', 'portable'),
}


class Results:
    """Results by the name of their case, in a JSON file that is written with every result.

    Args:
        path: Path of the file. What it has is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.entries = json.loads(path.read_text())

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Enter a result, in the place of an earlier one."""
        self.entries[key] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.entries, indent=1) + '\n')


def _cell(result: dict[str, Any] | None, failures: list[str]) -> str:
    """Return what a result looks like in the table. Reasons are collected below it."""
    if result is None:
        return ''
    if 'failure' in result:
        if result['failure'] not in failures:
            failures.append(result['failure'])
        return f'no ({failures.index(result["failure"]) + 1})'
    error = result['error']
    parts = ['equal' if error == 0 else f'{error:.0e}']
    if 'nodes' in result:
        parts.append(f'{result["nodes"]} nodes')
    parts.append(f'{result["mib"]:.1f} MiB')
    return ', '.join(parts)


def table(entries: dict[str, dict[str, Any]], sizes: str) -> list[str]:
    """Return the lines of the table of files for any size, or for one.

    Args:
        entries: Results by the name of their case.
        sizes: 'any' or 'one'.
    """
    networks = list(dict.fromkeys(key.split(' | ')[0] for key in entries))
    columns = {
        title: column
        for title, column in COLUMNS.items()
        if any(key.endswith(f'| {" | ".join(column)} | {sizes}') for key in entries)
    }
    lines = [_row(['network', *columns]), '|' + '---|' * (len(columns) + 1)]
    failures: list[str] = []
    for network in networks:
        keys = [' | '.join((network, *column, sizes)) for column in columns.values()]
        cells = [_cell(entries.get(key), failures) for key in keys]
        if any(cells):
            lines.append(_row([network, *cells]))
    if failures:
        lines.append('')
    for number, reason in enumerate(failures, 1):
        lines.append(f'{number}. `{reason}`')
    return lines


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def write_page(page: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Put the tables between the two marks of a page.

    Raises:
        ValueError: The page has no such marks.
    """
    before, found_begin, later = page.read_text().partition(BEGIN)
    _, found_end, after = later.partition(END)
    if not found_begin or not found_end:
        raise ValueError(f'{page} must have a line {BEGIN} and a line {END}.')
    lines = ['']
    for sizes, title in (('any', 'Files for any size:'), ('one', 'Files for one size:')):
        if any(key.endswith(f'| {sizes}') for key in entries):
            lines += ['', title, '', *table(entries, sizes)]
    page.write_text(before + BEGIN + '\n'.join([*lines, '', '']) + END + after)
