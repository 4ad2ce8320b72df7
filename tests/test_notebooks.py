"""The notebooks of the documentation run from top to bottom."""

import json
import os
import sys
from pathlib import Path

import pytest
from notebooks import read_cells, to_python
from running import run_warm

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'docs/notebooks').glob('*.ipynb'))
# fewer iterations than a reader runs, after which predictions are worse
ITERATIONS = ('iterations = 120', 'iterations = 50')
# what is checked after the last cell
CHECKS = {
    'first_training': """
assert metrics['aAcc'] > 45, metrics
assert metrics['mIoU'] > 12, metrics
assert picture.size[0] > 3 * 2 * 128, picture.size
assert 'Involution' in type(other.model.backbone.layer4[0].conv2).__name__
"""
}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path):
    code = '\n\n'.join(read_cells(path))
    assert ITERATIONS[0] in code
    script = tmp_path / 'notebook.py'
    script.write_text(to_python(code.replace(*ITERATIONS)) + CHECKS[path.stem])
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]),
        # where tempfile makes folders
        'TMPDIR': str(tmp_path),
    }
    result = run_warm(script, cwd=path.parent, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_stored_without_outputs(path):
    cells = json.loads(path.read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
