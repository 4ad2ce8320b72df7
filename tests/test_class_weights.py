"""The tool that computes the weights of classes."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import run_warm

ROOT = Path(__file__).resolve().parents[1]


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
    options = ['--cfg-options', f'train_dataloader.dataset.data_root={folder}']
    script = ROOT / 'tools/analysis_tools/class_weights.py'
    return run_warm(script, config, *arguments, *options)


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
