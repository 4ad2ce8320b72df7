"""Train a model of a few parameters, kill it at random places, resume it, and compare.

A run is a child process that kills itself by SIGKILL at its n-th call of any Python function. Run
as a script; it prints what differs from the run that was not killed.

    python tests/interrupted_runs.py epoch 10 0
"""

import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from running import freeze, lighten

from mmrednet import safe_loading
from mmrednet.engine import apply_train_options, build_runner


@DATASETS.register_module()
class Noise(BaseDataset):
    """Samples that depend on all three generators."""

    def load_data_list(self):
        return [dict(value=float(value)) for value in range(8)]

    def prepare_data(self, index):
        value = self.get_data_info(index)['value']
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return dict(inputs=torch.full((3,), value + noise))


@MODELS.register_module()
class Tiny(BaseModel):
    """A linear layer behind dropout and a random scale."""

    def __init__(self):
        super().__init__()
        self.dropout, self.linear = torch.nn.Dropout(0.5), torch.nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        inputs = torch.stack(inputs) if isinstance(inputs, list) else inputs
        output = self.linear(self.dropout(inputs)) * np.random.rand() * random.random()
        return dict(loss=output.square().mean()) if mode == 'loss' else [torch.rand(())]


@METRICS.register_module()
class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(acc=sum(results) / len(results))


def config(work_dir, kind, workers):
    by_epoch = kind == 'epoch'
    loader = dict(
        batch_size=2,
        num_workers=workers,
        persistent_workers=bool(workers),
        dataset=dict(type='Noise'),
    )
    return Config(
        dict(
            default_scope='mmengine',
            work_dir=str(work_dir),
            model=dict(type='Tiny'),
            train_dataloader=dict(
                loader, sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler')
            ),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=dict(type='Score'),
            val_cfg=dict(),
            train_cfg=dict(by_epoch=True, max_epochs=3)
            if by_epoch
            else dict(by_epoch=False, max_iters=10, val_interval=4),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=dict(type='LinearLR', by_epoch=False, end=8),
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook',
                    by_epoch=by_epoch,
                    interval=1 if by_epoch else 3,
                    max_keep_ckpts=1,
                    save_best='acc',
                )
            ),
            log_level='ERROR',
        )
    )


@safe_loading()
def train(work_dir, kind, workers, seed=None):
    """Train, from the newest checkpoint if there is one."""
    cfg = config(work_dir, kind, workers)
    if seed is not None:
        cfg.randomness = dict(seed=seed)
    apply_train_options(cfg, resume='auto')
    build_runner(cfg).train()


def child(function, *arguments):
    """Run a function in a process of its own, and return the status of that."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            function(*arguments)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def profile_training(function):
    """Call a function with the number of calls since training began, and return these calls."""
    calls = []

    def count(frame, event, argument):
        if event == 'call' and (calls or frame.f_code.co_name == 'run_iter'):
            calls.append(None)
            function(len(calls))

    sys.setprofile(count)
    return calls


def count_calls(path, *arguments):
    """Train, and write how many functions were called."""
    calls = profile_training(lambda count: None)
    train(*arguments)
    sys.setprofile(None)
    Path(path).write_text(str(len(calls)))


def kill_at(call, *arguments):
    """Train until the n-th call of a function, and die there."""

    def kill(count):
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)

    profile_training(kill)
    train(*arguments)


def last_state(work_dir):
    name = Path((work_dir / 'last_checkpoint').read_text()).name
    content = torch.load(work_dir / name, weights_only=False)
    return content['state_dict'], content['optimizer']['state']


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, tuple):
        return all(map(same, first, second))
    return first == second


def main():
    kind, kills, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    lighten()
    freeze()
    folder = Path(tempfile.mkdtemp())
    chance = random.Random(f'{kind} {workers}')
    assert not child(count_calls, folder / 'calls', folder / 'whole', kind, workers, 5)
    calls, expected = int((folder / 'calls').read_text()), last_state(folder / 'whole')
    resumed = 0
    for number in range(kills):
        work_dir = folder / str(number)
        # runs differ by some dozens of calls, and each has to reach this one
        call = chance.randrange(1, calls - calls // 100)
        status = child(kill_at, call, work_dir, kind, workers, 5)
        assert status == signal.SIGKILL, status
        # a work directory may be moved
        moved = shutil.move(work_dir, folder / f'{number} moved')
        saved = sorted(path.name for path in moved.glob('[ei]*.pth'))
        assert not child(train, moved, kind, workers, 5), (call, saved)
        equal = same(last_state(moved), expected)
        resumed += equal
        print(f'killed at call {call} of {calls}, had {saved}: {"same" if equal else "DIFFERENT"}')
    print(f'{resumed} of {kills} resumed bit for bit')


if __name__ == '__main__':
    main()
