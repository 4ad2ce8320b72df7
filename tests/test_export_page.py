"""The table of docs/export.md from results, and the files that its tutorial names."""

import re
import subprocess
import sys

import pytest
from benchmarks.export_page import BEGIN, END, Results, write_page
from snippets import ROOT

ENTRIES = {
    'VAN | onnx | portable | any': dict(error=7.6e-7, mib=0.34, nodes=104),
    'NAT | onnx | portable | any': dict(error=0.0, mib=5.4, nodes=1324),
    'NAT | exported-program | native | any': dict(failure='ValueError: a reason'),
    'VAN | onnx | portable | one': dict(error=1e-7, mib=0.3, nodes=90),
}
TABLES = """
Files for any size:

| network | ONNX | program, native |
|---|---|---|
| VAN | 8e-07, 104 nodes, 0.3 MiB |  |
| NAT | equal, 1324 nodes, 5.4 MiB | no (1) |

1. `ValueError: a reason`

Files for one size:

| network | ONNX |
|---|---|
| VAN | 1e-07, 90 nodes, 0.3 MiB |

"""


def test_tables_take_the_place_of_earlier_ones(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{BEGIN}\nearlier\n{END}\nafter\n')
    for _ in range(2):
        write_page(page, ENTRIES)
        assert page.read_text() == f'before\n{BEGIN}\n{TABLES}{END}\nafter\n'


def test_a_page_without_marks(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(f'{BEGIN}\n')
    with pytest.raises(ValueError, match='must have a line .*begin.* and a line .*end'):
        write_page(page, ENTRIES)
    assert page.read_text() == f'{BEGIN}\n'


def test_results_of_earlier_runs_are_kept(tmp_path):
    path = tmp_path / 'work_dirs' / 'results.json'
    for key, result in ENTRIES.items():
        Results(path).add(key, result)
    assert Results(path).entries == ENTRIES


def test_the_tutorial_names_an_image_of_the_demo(tmp_path):
    page = (ROOT / 'docs' / 'export.md').read_text()
    images = re.findall(r"'\.\./data/shapes/(val/.*?)'", page)
    assert images
    script = ROOT / 'tools' / 'synthetic' / 'generate.py'
    options = ['--out-dir', tmp_path / 'shapes', '--train', '1', '--val', '2']
    subprocess.run([sys.executable, script, *options], check=True, capture_output=True)
    for image in images:
        assert (tmp_path / 'shapes' / image).is_file()
