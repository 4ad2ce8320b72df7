"""Runs notebooks without Jupyter."""

import json


def read_cells(path):
    """Return the code of a notebook's cells."""
    cells = json.loads(path.read_text())['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']


def to_python(code):
    """Return code in which a line for the shell, ``!command {name}``, calls it from Python."""
    lines = []
    for line in code.splitlines():
        if line.startswith('!'):
            line = f'__import__("subprocess").run(f{line[1:]!r}, shell=True, check=True)'
        lines.append(line)
    return '\n'.join(lines)
