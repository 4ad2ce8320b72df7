"""Random numbers of a training run that can be interrupted: the same with and without a resume.

Two streams are kept apart. The model draws from the generators of Python, numpy and torch; their
states are stored in checkpoints. The augmentation of a sample depends on the seed, the process, the
epoch and the position of the sample alone, whichever worker loads it. So nothing has to be stored
of workers, which have drawn ahead when a checkpoint is written.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader


def random_state(cuda: bool = True) -> dict[str, Any]:
    """Return the states of the generators of Python, numpy and torch, in types that a checkpoint
    may hold.

    Args:
        cuda: True to include the generators of CUDA devices. Default: True.
    """
    numpy_state: Any = np.random.get_state()
    name, keys, position, has_gauss, gauss = numpy_state
    state: dict[str, Any] = dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        torch=torch.get_rng_state(),
    )
    if cuda and torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the generators to states that :func:`random_state` returned."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *gauss_state = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *gauss_state))
    # resuming moves all tensors of a checkpoint to the device
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device_state.cpu() for device_state in state['cuda']])


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the generators of this process by numbers, and set them back afterwards."""
    state = random_state(cuda=False)
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed() would change the generators of CUDA devices as well
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state)


class SeededIndex(int):
    """An index into a data set, with the numbers that seed the augmentation of its sample.

    Args:
        index: Index into the data set.
        numbers: Numbers for :func:`seeded`.
    """

    numbers: tuple[int, ...]

    def __new__(cls, index: int, numbers: tuple[int, ...]) -> SeededIndex:  # noqa: D102
        instance = super().__new__(cls, index)
        instance.numbers = numbers
        return instance

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:  # type: ignore[override]
        return int(self), self.numbers


class SeededSampler:
    """Yields the indices of a sampler as :class:`SeededIndex`. Whatever else is asked for is the
    sampler's own.

    Args:
        sampler: Sampler of a data loader for training.
        seed: Seed of the run, the same in all processes.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0
        self.position = 0
        if hasattr(sampler, 'skip'):
            # mmengine moves the sampler on when a run by iterations is resumed
            sampler.skip = self._skip

    def _skip(self, count: int) -> None:
        type(self.sampler).skip(self.sampler, count)
        self.position = count

    def __iter__(self) -> Iterator[SeededIndex]:
        rank = get_rank()
        for index in self.sampler:
            yield SeededIndex(index, (self.seed, rank, self.epoch, self.position))
            self.position += 1

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


class SeededItems:
    """Loads the samples of a batch, each with the seed of its index.

    Args:
        dataset: Data set with one sample per index.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples of some indices."""
        return [self._item(index) for index in indices]

    def _item(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self.dataset[index]
        with seeded(*index.numbers):
            return self.dataset[int(index)]


def seed_samples(loader: DataLoader, seed: int) -> SeededSampler | None:
    """Let the augmentation of each sample of a data loader depend on its position alone.

    Args:
        loader: Data loader of which no worker runs yet.
        seed: Seed of the run, the same in all processes.

    Returns:
        The sampler, None if the data set forms its batches itself.
    """
    # the seed of worker processes is drawn from here, not from the generator of the model
    loader.generator = torch.Generator().manual_seed(seed)
    if loader.batch_sampler is None:
        return None
    sampler = SeededSampler(loader.batch_sampler.sampler, seed)  # type: ignore[attr-defined]
    loader.batch_sampler.sampler = sampler  # type: ignore[attr-defined]
    # torch asks an instance for this method, and takes it for a whole batch
    loader.dataset.__getitems__ = SeededItems(loader.dataset)  # type: ignore[attr-defined]
    return sampler
