"""Base classes of backbones: outputs, frozen stages, norms in eval mode, published checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from ..checkpoints.formats import legacy_renames, rename
from ..layers.depth_wise import in_inference_layout
from ..layers.recomputed_maps import RecomputedMaps
from ..layers.safe_module import SafeModule
from ..ops.tracing import is_captured
from .pretrained_init import SafelyPretrained
from .recomputation import recomputed

# what training scripts put before a backbone's own names
WRAPPER_PREFIXES = ('module.', 'backbone.')
# arguments of stock ResNets, and why they have no meaning for backbones that are no ResNets
RESNET_ARGUMENTS = {
    'depth': 'the size is chosen by arch',
    'stem_channels': 'the stem has the channels of the first stage',
    'base_channels': 'the widths are chosen by arch',
    'num_stages': 'the number of stages is fixed',
    'strides': 'the strides of the stages are fixed',
    'dilations': 'the stages have no dilation',
    'style': 'there are no bottlenecks whose stride could move',
    'contract_dilation': 'the stages have no dilation',
    'dcn': 'there is no 3x3 convolution that could deform; give spatial_cfg',
    'stage_with_dcn': 'there is no 3x3 convolution that could deform; give spatial_cfg',
    'plugins': 'there are no bottlenecks for plugins',
    'deep_stem': 'the stem is the published one',
    'avg_down': 'there are no bottlenecks with a shortcut of their own',
    'conv_cfg': 'the convolutions are the published ones',
    'zero_init_residual': 'there are no bottlenecks whose last norm could start at zero',
    'multi_grid': 'the stages have no dilation',
}


class CheckpointedBlock(SafeModule):
    """A block that the backward pass may compute again, to save memory.

    Args:
        with_cp: True if the backward pass computes the block again.
        init_cfg: Initialisation, see mmengine's BaseModule.
    """

    def __init__(self, with_cp: bool, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """Map the input of the block to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of the block to its output, as ``compute`` does."""
        # an input without a gradient, as behind frozen stages, has nothing to compute again
        if self.with_cp and x.requires_grad:
            return recomputed(self, self.compute, x)
        return self.compute(x)


def in_layout_of(image: Tensor, outputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return feature maps that are contiguous if the image is.

    mmcv's operators, such as RoIAlign, read every map as a contiguous one. Inside, a backbone may
    be faster in another layout.
    """
    # what torch.fx records is for any image
    if isinstance(image, fx.Proxy) or image.is_contiguous():
        outputs = (output.contiguous() for output in outputs)
    return tuple(outputs)


class PyramidBackbone(SafelyPretrained):
    """A stem followed by stages, whose outputs are a pyramid of feature maps.

    A subclass calls ``add_stage`` for every stage, and defines ``stem_modules`` and
    ``forward_stem``. Where published files have other names, the ``*_formats.py`` file beside the
    model lists them.

    Args:
        out_indices: Indices of the stages whose outputs are returned, counted from 0.
        frozen_stages: Number of stages that are frozen together with the stem: they have no
            gradient, and norms in eval mode. With -1 the stem is trained too.
        norm_eval: True if batch norms use their running statistics in training.
        with_cp: True if the backward pass computes blocks again, to save memory.
        recompute_norms: True if the backward pass computes batch norms, and the activations behind
            them, again instead of keeping the results. Gradients are the same. It takes a little
            time for less memory.
        init_cfg: Initialisation, see mmengine's BaseModule. The checkpoint of a ``Pretrained`` may
            be a published file as it is. Its arguments are those of
            :func:`mmrednet.backbones.load_pretrained`.
        pretrained: Path of a checkpoint, as mmseg's configs state it; short for an ``init_cfg``.

    Raises:
        TypeError: There is no such argument.
        ValueError: ``out_indices`` or ``frozen_stages`` name a stage that does not exist, or both
            ``init_cfg`` and ``pretrained`` are given.
    """

    foreign_arguments = RESNET_ARGUMENTS

    def __init__(
        self,
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        recompute_norms: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(pretrained_cfg(init_cfg, pretrained))
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp, self.recompute_norms = with_cp, recompute_norms
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
        """Append a stage: modules that are applied one after another, by their published names."""
        for name, module in modules.items():
            self.add_module(name, module)
        self.stage_names.append(tuple(modules))

    @abstractmethod
    def stem_modules(self) -> Iterable[nn.Module]:
        """Return the modules of the stem, which ``frozen_stages=0`` freezes."""

    def frozen_modules(self) -> list[nn.Module]:
        """Return the modules of the stem and of the stages that ``frozen_stages`` freezes."""
        modules = list(self.stem_modules())
        for names in self.stage_names[: self.frozen_stages]:
            modules += [getattr(self, name) for name in names]
        return modules

    @abstractmethod
    def forward_stem(self, x: Tensor) -> Tensor:
        """Map the image (B, 3, H, W) to the input of the first stage."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map the image (B, 3, H, W) to the feature maps of the stages in ``out_indices``."""
        features = self._applied(self.forward_stem, in_inference_layout(x))
        outputs = []
        for index, names in enumerate(self.stage_names):
            for name in names:
                features = self._applied(getattr(self, name), features)
            if index in self.out_indices:
                outputs.append(features)
        return in_layout_of(x, outputs)

    def _applied(self, module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not self.recompute_norms or is_captured(x) or not torch.is_grad_enabled():
            return module(x)
        # for each module by itself, since maps stay in memory until the context ends
        with RecomputedMaps():
            return module(x)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, keep frozen stages and, with ``norm_eval``, batch norms in eval mode, and
        return self.
        """
        super().train(mode)
        # train() has put the norms of frozen stages into training mode
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in self.frozen_modules():
            # without eval mode, norms would go on updating their statistics
            module.eval().requires_grad_(False)


def pretrained_cfg(
    init_cfg: dict | list[dict] | None, pretrained: str | None
) -> dict | list[dict] | None:
    """Return ``init_cfg``, or the one that ``pretrained`` is short for.

    Raises:
        ValueError: Both are given.
    """
    if pretrained is None:
        return init_cfg
    if init_cfg:
        raise ValueError(
            f'init_cfg and pretrained must not both be given, got {init_cfg=}, {pretrained=}. '
            "Where a segmenter's config inherits model.pretrained, set model.pretrained=None."
        )
    return dict(type='Pretrained', checkpoint=pretrained)


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
