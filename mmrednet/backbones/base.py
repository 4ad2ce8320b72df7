"""What every backbone shares: chosen outputs, frozen stages, norms in eval mode, checkpoints in
published names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch.utils.checkpoint
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from ..checkpoints.formats import legacy_renames, rename
from .pretrained_init import SafelyPretrained

# what training scripts put before a backbone's own names
WRAPPER_PREFIXES = ('module.', 'backbone.')


class CheckpointedBlock(BaseModule):
    """A block that may be computed again in the backward pass, to save memory.

    Args:
        with_cp: whether it is.
        init_cfg: see mmengine's BaseModule.
    """

    def __init__(self, with_cp: bool, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """Map the input of the block to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of the block to its output, see ``compute``."""
        if self.with_cp and x.requires_grad:
            return torch.utils.checkpoint.checkpoint(self.compute, x, use_reentrant=False)
        return self.compute(x)


class PyramidBackbone(SafelyPretrained):
    """A stem followed by stages, whose outputs are the pyramid.

    A subclass calls ``add_stage`` for every stage, and defines ``stem_modules`` and
    ``forward_stem``. Where published files have other names, the ``*_formats.py`` file beside the
    model lists them.

    Args:
        out_indices: which stages to return, counted from 0.
        frozen_stages: with -1 all is trained; with 0 the stem is frozen, with n also the first n
            stages: no gradient, and norms in eval mode.
        norm_eval: whether batch norms keep their running statistics in training.
        with_cp: whether blocks are computed again in the backward pass, to save memory.
        init_cfg: see mmengine's BaseModule. A ``Pretrained`` checkpoint may be a published file as
            it is, see :func:`mmrednet.backbones.load_pretrained`, whose ``format`` it may have
            beside ``prefix``.

    Raises:
        ValueError: ``out_indices`` or ``frozen_stages`` name a stage that is not there.
    """

    def __init__(
        self,
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.stage_names: list[tuple[str, ...]] = []
        self.register_load_state_dict_pre_hook(_unwrap_keys)
        self.register_load_state_dict_pre_hook(_rename_keys)

    def check_stages(self, count: int) -> None:
        """Raise a ValueError if ``out_indices`` or ``frozen_stages`` do not fit this number of
        stages.
        """
        if not self.out_indices or not all(0 <= index < count for index in self.out_indices):
            raise ValueError(
                f'out_indices must be stages from 0 to {count - 1}, got {self.out_indices}.'
            )
        if not -1 <= self.frozen_stages <= count:
            raise ValueError(f'frozen_stages must be from -1 to {count}, got {self.frozen_stages}.')

    def add_stage(self, modules: dict[str, nn.Module]) -> None:
        """Append a stage: modules that follow each other, under their published names."""
        for name, module in modules.items():
            self.add_module(name, module)
        self.stage_names.append(tuple(modules))

    @abstractmethod
    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem, which ``frozen_stages=0`` freezes."""

    @abstractmethod
    def forward_stem(self, x: Tensor) -> Tensor:
        """Map the image (B, 3, H, W) to the input of the first stage."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map the image (B, 3, H, W) to the feature maps of the stages in ``out_indices``."""
        x = self.forward_stem(x)
        outputs = []
        for index, names in enumerate(self.stage_names):
            for name in names:
                x = getattr(self, name)(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, keep frozen stages and, with ``norm_eval``, batch norms in eval mode, and
        return self.
        """
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        frozen: list[nn.Module] = list(self.stem_modules()) if self.frozen_stages >= 0 else []
        frozen += [
            getattr(self, name)
            for names in self.stage_names[: max(0, self.frozen_stages)]
            for name in names
        ]
        for module in frozen:
            module.eval().requires_grad_(False)


def _unwrap_keys(backbone: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Strip what training scripts put before the names, when a file is loaded into the backbone
    itself.
    """
    if prefix:
        return
    own = {name.split('.')[0] for name in backbone.state_dict()}
    for wrapper in WRAPPER_PREFIXES:
        inner = {key[len(wrapper) :] for key in state_dict if key.startswith(wrapper)}
        if {key.split('.')[0] for key in state_dict}.isdisjoint(own) and inner:
            for key in [key for key in state_dict if key.startswith(wrapper)]:
                state_dict[key[len(wrapper) :]] = state_dict.pop(key)


def _rename_keys(
    backbone: PyramidBackbone, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Give the names of published files their counterparts here."""
    pairs = legacy_renames(frozenset(kind.__name__ for kind in type(backbone).__mro__))
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + rename(key[len(prefix) :], pairs)] = state_dict.pop(key)
