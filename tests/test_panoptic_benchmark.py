"""The benchmark of the post-processing compares two forms of one function."""

import pytest
import torch
from benchmarks import benchmark_panoptic
from benchmarks.benchmark_panoptic import CLASSES, SETTINGS, THINGS, VOID, direct, draw_scene

from mmrednet.panoptic.merging import PanopticMerger

ARGUMENTS = ['--shape', '128', '256', '--centers', '12', '--no-network']


@pytest.mark.parametrize('noise', [0.0, 2.0, 40.0])
def test_both_forms_give_the_same_map(noise):
    maps = draw_scene((200, 320), 30, 0.5, noise)
    merger = PanopticMerger(CLASSES, THINGS, numbering='center', **SETTINGS)
    ids = merger(*maps).ids(VOID)
    assert torch.equal(ids, direct(*maps))
    assert len(ids.unique()) > 20


def test_the_table(capsys):
    benchmark_panoptic.main([*ARGUMENTS, '--rounds', '1'])
    text = capsys.readouterr().out
    assert '128 x 256, 12 instances' in text
    assert '| mmrednet |' in text
    assert '| direct |' in text


def test_forms_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setattr(benchmark_panoptic, 'direct', lambda *maps: maps[1])
    with pytest.raises(SystemExit, match='different maps'):
        benchmark_panoptic.main(ARGUMENTS)
