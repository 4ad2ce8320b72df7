"""The table and the plot of trainings with several seeds, and the weights of classes."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.comparison import Entry, plot, table, within_spread
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def entry(name, *results, **options):
    return Entry(name, list(results), 1234, 2_500_000_000, 0.5, 3 * 2**30, **options)


def test_spread_is_that_of_a_sample():
    assert entry('a', 1.0, 2.0, 6.0).mean == 3
    assert entry('a', 1.0, 2.0, 6.0).spread == pytest.approx(math.sqrt(7))
    assert entry('a', 1.0).spread == 0


@pytest.mark.parametrize(('results', 'equal'), [((0.7, 0.9), True), ((0.1, 0.2), False)])
def test_what_is_as_good_as_the_best(results, equal):
    assert within_spread(entry('a', *results), entry('best', 0.8, 1.0)) is equal


def test_one_seed_says_nothing_of_a_spread():
    assert not within_spread(entry('a', 0.9), entry('best', 0.9))


def test_table():
    entries = [
        entry('best', 0.8, 1.0),
        entry('close', 0.7, 0.9),
        entry('worse', 0.1, 0.1, finite=False),
    ]
    assert list(table(entries, 'AP'))[2:] == [
        '| best | 0.900 ± 0.141 | 1,234 | 2.500 | 0.500 | 3.00 |',
        '| close | 0.800 ± 0.141 = | 1,234 | 2.500 | 0.500 | 3.00 |',
        '| worse | 0.100 ± 0.000 (loss not finite) | 1,234 | 2.500 | 0.500 | 3.00 |',
    ]


def test_plot(tmp_path):
    path = tmp_path / 'plots/operators.png'
    plot([entry('one', 0.8, 1.0), entry('two', 0.7, 0.9)], 'AP', 'Title', path)
    width, height = Image.open(path).size
    assert width > 2 * height


@pytest.fixture
def camvid(tmp_path):
    """Two label images of CamVid's size: three quarters sky, a quarter building, and void."""
    for kind in ('images', 'annotations'):
        (tmp_path / kind / 'train').mkdir(parents=True)
    labels = np.zeros((360, 480), np.uint8)
    labels[270:] = 1
    for index in range(2):
        Image.new('RGB', (480, 360)).save(tmp_path / f'images/train/{index}.png')
        Image.fromarray(labels).save(tmp_path / f'annotations/train/{index}.png')
        # ignored pixels do not count
        labels[:180] = 255
        labels[180:315], labels[315:] = 0, 1
    return tmp_path


def class_weights(folder, *arguments):
    config = 'configs/camvid/segnext_mscan-narrow_camvid-180x240.py'
    command = [sys.executable, 'tools/analysis_tools/class_weights.py', config, *arguments]
    command += ['--cfg-options', f'train_dataloader.dataset.data_root={folder}']
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_class_weights(camvid):
    """Three quarters, a quarter and nothing at all."""
    lines = class_weights(camvid, '--offset', '1.02').stdout.splitlines()
    shares = [float(line.split()[1]) for line in lines[-12:-1]]
    assert shares == [0.75, 0.25, *[0.0] * 9]
    weights = ast.literal_eval(lines[-1].removeprefix('class_weight = '))
    assert weights == pytest.approx([1 / math.log(1.02 + share) for share in shares], abs=6e-4)


def test_offset_of_class_weights(camvid):
    run = class_weights(camvid, '--offset', '1')
    assert '--offset must be greater than 1, got 1.0' in run.stderr
    assert run.returncode == 2
