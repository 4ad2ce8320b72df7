"""``init_cfg=dict(type='Pretrained', checkpoint=...)``, read by this package instead of mmengine.

From ``init_cfg`` to loaded weights: ``SafelyPretrained.init_weights`` calls ``load_pretrained``,
which reads the file (``read_checkpoint``), finds its format (``choose_format``), renames and
arranges its tensors (``to_mmrednet``), compares them with the network (``match``), and loads what
fits.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn

from ..checkpoints import CheckpointError, Match, match_state, read_checkpoint, shapes_of
from ..checkpoints.formats import BACKBONE, CLASSIFIER, Converted
from ..checkpoints.matching import left_out
from ..checkpoints.reading import check_weights, describe_non_weights
from ..layers.safe_module import SafeModule
from .downloads import local_path

# below this share of matched tensors, the file is probably another network's
DOUBTFUL_SHARE = 0.5


def is_pretrained(cfg: dict) -> bool:
    """Return whether an ``init_cfg`` loads a checkpoint, in whichever scope or module its type is
    named.
    """
    type_name = cfg.get('type')
    if isinstance(type_name, type):
        return issubclass(type_name, PretrainedInit)
    return str(type_name).rpartition('.')[2] in ('Pretrained', 'PretrainedInit')


class SafelyPretrained(SafeModule):
    """A module whose ``Pretrained`` checkpoints may be published files, and are read as tensors
    alone.
    """

    init_cfg: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pretrained: list[dict] = []

    def init_weights(self) -> None:
        """Draw the weights as ``init_cfg`` says, then load what is pretrained."""
        configured = self.init_cfg
        cfgs = configured if isinstance(configured, list) else [configured] if configured else []
        pretrained = [cfg for cfg in cfgs if is_pretrained(cfg)]
        if self.is_init or not pretrained:
            super().init_weights()
            return
        self.init_cfg, self._pretrained = [cfg for cfg in cfgs if cfg not in pretrained], pretrained
        try:
            super().init_weights()
        finally:
            self.init_cfg = configured
        self._load_pretrained()

    def _load_pretrained(self) -> None:
        while self._pretrained:
            cfg = self._pretrained.pop(0)
            load_pretrained(self, **{name: value for name, value in cfg.items() if name != 'type'})
            if hasattr(self, '_params_init_info'):
                update_init_info(self, f'Pretrained: load from {cfg["checkpoint"]}')

    def _dump_init_info(self) -> None:
        # mmengine lists here where every parameter comes from, when a module stands alone
        self._load_pretrained()
        super()._dump_init_info()


def load_pretrained(
    network: nn.Module,
    checkpoint: str,
    *,
    prefix: str | None = None,
    map_location: Any = 'cpu',
    format: str | None = None,
    logger: Any = 'current',
) -> Match:
    """Fill a backbone, or a classifier, with a published file, and log one line of counts.

    Tensors that the file does not have keep their values. So a ResNet's file starts the
    convolutional stages of a network whose other stages have another operator. Whatever else is
    missing or of no use is a warning with its keys.

    Args:
        network: Backbone of ours, or an ``ImageClassifier``.
        checkpoint: Path, URL, or a name such as 'torchvision://resnet50' or 'open-mmlab://...', as
            mmengine takes them.
        prefix: Prefix of the part of the file to load, such as 'backbone.'. Default: detected.
        map_location: Unused. It is here since mmengine's configs have it; values are copied to
            where the network is.
        format: Name of the file's format, one of :data:`mmrednet.checkpoints.FORMATS`. Default:
            detected from the keys.
        logger: Logger of mmengine for the line of counts.

    Returns:
        The counts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A name is unknown, or the path of a URL does not end in one.
        CheckpointError: It cannot be read safely, nothing in it fits the network, or what fits is
            not finite or not floating point.
    """
    del map_location
    with ExitStack() as stack:
        state = read_checkpoint(local_path(checkpoint, stack), check=False).state
    if prefix:
        state = _part_of(state, prefix, checkpoint)
    shapes, name = shapes_of(network), type(network).__name__
    is_classifier = any(key.startswith(CLASSIFIER) for key in shapes)
    target = 'classifier' if is_classifier else 'backbone'
    converted, result = match_state(state, shapes, target=target, format=format)
    if not result.share:
        raise CheckpointError(
            f'{checkpoint} fits nothing of this {name}: {result.counts}.\nThe file has '
            f'{list(state)[:5]}, the network {list(shapes)[:5]}.'
        )
    check_weights(checkpoint, result.state)
    network.load_state_dict(result.state, strict=False)
    backbone = network.get_submodule(BACKBONE[:-1]) if is_classifier else network
    warnings = _warnings(backbone, converted, result)
    level = logging.WARNING if warnings else logging.INFO
    print_log(f'{name} from {checkpoint}: {result.counts}.', logger=logger, level=level)
    if warnings:
        print_log('\n'.join(warnings), logger=logger, level=level)
    return result


def _part_of(state: dict[str, Tensor], prefix: str, checkpoint: str) -> dict[str, Tensor]:
    """Return the tensors behind a prefix, without it in their keys."""
    prefix = prefix if prefix.endswith('.') else f'{prefix}.'
    part = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    if not part:
        raise CheckpointError(
            f'prefix must be that of some names in {checkpoint}, got {prefix!r}; it has '
            f'{list(state)[:5]}.'
        )
    return part


def _warnings(backbone: nn.Module, converted: Converted, result: Match) -> list[str]:
    """Return lines on what is doubtful about a file for a backbone."""
    warnings = []
    classes = [base.__name__ for base in type(backbone).__mro__]
    entry = converted.format
    if entry.family is not None and entry.family not in classes:
        warnings.append(
            f'files of format {entry.name!r} are those of {entry.family}, the network is '
            f'{classes[0]}'
        )
    if result.mismatched or result.doubtful or result.share < DOUBTFUL_SHARE:
        warnings += result.details()
    if result.absent_parts:
        parts = ', '.join(result.absent_parts)
        warnings.append(f'parts of the network that are not in the file: {parts}')
    return warnings + describe_non_weights(left_out(result, converted))
