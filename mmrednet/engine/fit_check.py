"""Whether a checkpoint belongs to the network that it is loaded into."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..checkpoints import CheckpointError, read_checkpoint
from ..checkpoints.matching import OPTIONAL_KEYS

# below this share of matched tensors, the file is another network's
MIN_SHARE = 0.5


def load_matching(
    network: nn.Module, state: Mapping[str, Tensor], path: str, min_share: float = MIN_SHARE
) -> None:
    """Load the tensors that fit a network, and log how many do.

    Args:
        network: Whole network.
        state: Tensors of a checkpoint by key.
        path: Path of the checkpoint, for messages.
        min_share: Share of the network's tensors that must be in the file. Default: half of them.

    Raises:
        CheckpointError: Less than this share of the network's tensors is in the file, or none.
    """
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    # what training on several processes puts before keys
    tensors = {key.removeprefix('module.'): value for key, value in state.items()}
    mismatched = {
        key: (tuple(value.shape), tuple(shapes[key]))
        for key, value in tensors.items()
        if key in shapes and value.shape != shapes[key]
    }
    fitting = {key: value for key, value in tensors.items() if key not in mismatched}
    # networks rename keys of older files when they load
    keys = network.load_state_dict(fitting, strict=False)
    needed = [key for key in shapes if not key.endswith(OPTIONAL_KEYS)]
    missing = [key for key in keys.missing_keys if not key.endswith(OPTIONAL_KEYS)]
    matched = len(needed) - len(missing)
    counts = (
        f'{matched} of {len(needed)} tensors matched; {len(missing)} not filled, of them '
        f'{len(mismatched)} by shape mismatches; {len(keys.unexpected_keys)} unexpected'
    )
    if matched < min_share * len(needed) or not matched:
        raise CheckpointError(
            f'{path} is of another network than this {type(network).__name__}: {counts}.\n'
            f'missing: {missing[:5]}\nunexpected: {keys.unexpected_keys[:5]}\n'
            'shape mismatches, in the file and in the network: '
            f'{dict(list(mismatched.items())[:5])}'
        )
    doubtful = missing or keys.unexpected_keys
    level = logging.WARNING if doubtful else logging.INFO
    print_log(f'{path}: {counts}.', logger='current', level=level)


def check_fit(network: nn.Module, path: str) -> None:
    """Check that a network was given a checkpoint of its own.

    Args:
        network: Network that has loaded the checkpoint.
        path: Path of the checkpoint.

    Raises:
        CheckpointError: Less than half of the network's tensors are in the file.
    """
    load_matching(network, read_checkpoint(path, check=False).state, path)


class FitHook(Hook):
    """Checks that the checkpoint of a test or of a resumed run is one of its network.

    Args:
        training: True if a checkpoint that is not resumed starts a training. It may then be of a
            part of the network. Default: False.
    """

    def __init__(self, *, training: bool = False) -> None:
        self.training = training

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Count the tensors that match.

        Raises:
            CheckpointError: Less than half of the network's tensors are in the file.
        """
        network = runner.model
        while is_model_wrapper(network) or isinstance(network, BaseTTAModel):
            network = network.module
        min_share = 0 if self.training and not runner._resume else MIN_SHARE
        state = checkpoint.get('state_dict', checkpoint)
        load_matching(network, state, runner._load_from, min_share)
