"""Checkpoints from which an interrupted run continues as if nothing had happened.

A checkpoint is written beside its place and then renamed, so a kill leaves the old file or the new
one. Outdated checkpoints are removed after that, and ``last_checkpoint`` is updated last.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..registry import HOOKS
from .random_states import SeededSampler, random_state, seed_samples, set_random_state

# key in a checkpoint for what is random in a run
RANDOM_KEY = 'random_states'
# name of our way to write files, among mmengine's
BACKEND = 'mmrednet.atomic'


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that after a kill or a power failure there is the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_path(path)
    with partial.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    # the new name is in the folder, which has to reach the disk as well
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _partial_path(path: Path) -> Path:
    return path.with_name(f'.{path.name}.partial')


class AtomicBackend(LocalBackend):
    """Local files, written by :func:`write_atomically`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Args:
            obj: Content of the file.
            filepath: Path of the file.
        """
        write_atomically(filepath, obj)


class _LateRemovals(AtomicBackend):
    """Keeps in mind which files are to be removed."""

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(str(filepath))


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, for runs that may be killed at any time.

    A resumed run has the weights of one that was not interrupted, bit for bit, with random
    augmentation too, if the kernels are deterministic. This holds for loops by epochs that write
    checkpoints at the end of epochs, and for loops by iterations. Checkpoints on other storage than
    local files are written as mmengine does. Other arguments: see mmengine's CheckpointHook.
    """

    # attributes of mmengine's hook
    backend_args: Any
    best_ckpt_path: Any
    file_backend: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._atomic = False
        self._sampler: SeededSampler | None = None
        self._seed: int | None = None
        # states to continue from, until training does
        self._resumed: dict[str, Any] | None = None
        # states before validation, which must not change the training after it
        self._before_val: dict[str, Any] | None = None
        self._gathered: list[dict[str, Any]] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take over the random states of a checkpoint, if the run is resumed."""
        if runner._resume and RANDOM_KEY in checkpoint:
            stored = checkpoint[RANDOM_KEY]
            self._seed = stored['seed']
            states = stored['states']
            rank = get_rank()
            self._resumed = states[rank] if rank < len(states) else None

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder of checkpoints, and the seeds of the samples."""
        super().before_train(runner)
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and not self.by_epoch:
            print_log(
                'default_hooks.checkpoint.by_epoch=False writes checkpoints within epochs. A run '
                'that continues from one repeats its epoch from the beginning.',
                'current',
                level=logging.WARNING,
            )
        self._atomic = (
            self.file_client_args is None
            and self.backend_args is None
            and isinstance(self.file_backend, LocalBackend)
        )
        if self._atomic:
            register_backend(BACKEND, AtomicBackend, force=True)
            self.backend_args = dict(backend=BACKEND)
            self._clean_up()
        self._seed_samples(runner)

    def _clean_up(self) -> None:
        """Remove what a kill left half written, and find the best checkpoints of a moved run."""
        if is_main_process():
            for path in Path(self.out_dir).glob(_partial_path(Path('*.pth')).name):
                path.unlink(missing_ok=True)
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._moved(self.best_ckpt_path)
        for name, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[name] = self._moved(path) if path else None

    def _moved(self, path: str) -> str:
        return path if Path(path).is_file() else str(Path(self.out_dir) / Path(path).name)

    def _seed_samples(self, runner: Runner) -> None:
        loop = runner.train_loop
        batches = loop.dataloader.batch_sampler or loop.dataloader
        sampler: Any = getattr(batches, 'sampler', None)
        if self._seed is None:
            self._seed = int(getattr(sampler, 'seed', None) or runner.seed)
        elif hasattr(sampler, 'seed'):
            sampler.seed = self._seed
        # samplers draw when they are first asked; one that was asked too early starts again
        if hasattr(sampler, '_indices_of_rank'):
            sampler.indices = sampler._indices_of_rank()
        self._sampler = seed_samples(loop.dataloader, self._seed)
        # mmengine 0.10.7 has started the workers already
        iterator: Any = getattr(loop, 'dataloader_iterator', None)
        if getattr(iterator, '_iterator', None) is not None:
            iterator._iterator = iter(loop.dataloader)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the samples of an epoch, and continue with the random states of a checkpoint."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            if self._sampler is not None:
                self._sampler.epoch, self._sampler.position = runner.epoch, 0
            self._continue()

    def before_train_iter(self, *_: Any, **__: Any) -> None:
        """Continue with the random states of a checkpoint.

        A loop by iterations skips what was trained before it gets here, which may draw numbers.
        """
        self._continue()

    def _continue(self) -> None:
        if self._resumed is not None:
            set_random_state(self._resumed)
            self._resumed = None

    def before_val(self, runner: Runner) -> None:
        """Keep the random states: a resumed run does not repeat the validation."""
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Set the random states back."""
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the random states of all processes."""
        if self._gathered is not None:
            checkpoint[RANDOM_KEY] = dict(seed=self._seed, states=self._gathered)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._gathered = all_gather_object(self._before_val or random_state())
        if self._atomic:
            self._save_atomically(runner, step, meta)
        else:
            super()._save_checkpoint_with_step(runner, step, meta)
        self._gathered = None

    def _save_atomically(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = self._keep(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            for old in outdated:
                Path(self.out_dir, self.filename_tmpl.format(old)).unlink(missing_ok=True)
            last = Path(runner.work_dir) / 'last_checkpoint'
            write_atomically(last, str(self.last_ckpt).encode())

    def _keep(self, runner: Runner, step: int) -> list[int]:
        """Note a step as kept, and return the steps whose checkpoints it replaces."""
        if self.max_keep_ckpts <= 0:
            return []
        # a new best score saves the same step again
        steps = [saved_step for saved_step in self.keep_ckpt_ids if saved_step != step] + [step]
        outdated = steps[: -self.max_keep_ckpts]
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(steps[-self.max_keep_ckpts :])
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return outdated

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self._atomic:
            super()._save_best_checkpoint(runner, metrics)
            return
        # mmengine removes the previous best checkpoint before it writes the new one
        backend, self.file_backend = self.file_backend, _LateRemovals()
        try:
            super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        best = {getattr(self, 'best_ckpt_path', None)}
        best.update(getattr(self, 'best_ckpt_path_dict', {}).values())
        for path in set(outdated) - best:
            Path(path).unlink(missing_ok=True)
