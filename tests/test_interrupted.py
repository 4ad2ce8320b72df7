"""Interrupted runs: what a kill leaves, which checkpoint is continued from, and that the result is
that of a run without interruption, bit for bit.
"""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from running import run_warm

from mmrednet.checkpoints import CheckpointError
from mmrednet.engine import apply_train_options
from mmrednet.engine.checkpoint_hook import write_atomically
from mmrednet.engine.resuming import drop_pretrained, find_checkpoint

SCRIPT = Path(__file__).with_name('interrupted_runs.py')


@pytest.mark.parametrize(
    ('kind', 'kills', 'workers'), [('epoch', 5, 0), ('iter', 5, 0), ('epoch', 2, 2), ('iter', 2, 2)]
)
def test_kills_at_random_places(kind, kills, workers):
    result = run_warm(SCRIPT, kind, kills, workers)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f'{kills} of {kills} resumed bit for bit' in result.stdout, result.stdout


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_kill_while_writing_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    write_atomically(path, b'old')

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((os, 'fsync') if step == 'fsync' else (Path, 'replace')), kill)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old'


def checkpoint(path, **content):
    torch.save(dict(meta={}, message_hub={}, optimizer={}, **content), path)
    return path


class TestFindCheckpoint:
    def test_the_newest_that_loads(self, tmp_path, monkeypatch):
        lines = []
        monkeypatch.setattr(
            'mmrednet.engine.resuming.print_log', lambda text, **_: lines.append(text)
        )
        for number in (2, 9, 10, 11):
            checkpoint(tmp_path / f'epoch_{number}.pth')
        cut = tmp_path / 'epoch_11.pth'
        cut.write_bytes(cut.read_bytes()[:-200])
        torch.save({}, tmp_path / 'epoch_10.pth')
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_10.pth'))
        assert find_checkpoint(tmp_path) == str(tmp_path / 'epoch_9.pth')
        assert [line.split(':')[0] for line in lines] == [
            f'Skip {tmp_path}/epoch_11.pth',
            f'Skip {tmp_path}/epoch_10.pth',
        ]

    def test_a_moved_work_directory(self, tmp_path):
        path = checkpoint(tmp_path / 'model_3.pth')
        (tmp_path / 'last_checkpoint').write_text('/gone/model_3.pth')
        assert find_checkpoint(tmp_path) == str(path)

    def test_a_folder_of_its_own(self, tmp_path):
        (tmp_path / 'out').mkdir()
        path = checkpoint(tmp_path / 'out/epoch_3.pth')
        (tmp_path / 'last_checkpoint').write_text(str(path))
        assert find_checkpoint(tmp_path) == str(path)
        # an older one is there as well
        older = checkpoint(tmp_path / 'out/epoch_2.pth')
        path.write_bytes(b'cut')
        assert find_checkpoint(tmp_path) == str(older)

    def test_nothing_to_continue_from(self, tmp_path):
        assert find_checkpoint(tmp_path) is None
        (tmp_path / 'last_checkpoint').write_text('')
        assert find_checkpoint(tmp_path) is None

    def test_none_that_loads_is_an_error(self, tmp_path):
        (tmp_path / 'epoch_1.pth').write_bytes(b'cut')
        with pytest.raises(CheckpointError, match=r'must have a checkpoint .* got 1 that do not'):
            find_checkpoint(tmp_path)


def test_resuming_needs_no_pretrained_file():
    pretrained = dict(type='Pretrained', checkpoint='gone.pth')
    normal = dict(type='Normal', layer='Conv2d')
    model = Config(
        dict(
            pretrained='gone.pth',
            backbone=dict(init_cfg=pretrained),
            neck=[dict(init_cfg=[normal, dict(pretrained, type='mmengine.Pretrained')])],
        )
    )
    drop_pretrained(model._cfg_dict)
    assert model.to_dict() == dict(
        pretrained=None, backbone=dict(init_cfg=None), neck=[dict(init_cfg=[normal])]
    )


def test_train_options_make_runs_resumable():
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=5))))
    apply_train_options(cfg)
    assert cfg.default_hooks.checkpoint == dict(type='mmrednet.ResumableCheckpointHook', interval=5)
