"""Which parameters a run of a network takes, and which of its parts never ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# what asks a tensor about itself
QUESTIONS = ('size', 'dim', 'numel', 'stride', 'type', 'is_contiguous', 'data_ptr')

# names of modules whose only purpose is a loss: of mmseg's segmenters, of DDRNet's and PIDNet's
# heads, and the queries of noised boxes in DINO and its kin; AutoAssign's prior
TRAINING_ALONE = {
    'auxiliary_head',
    'aux_head',
    'aux_cls_seg',
    'p_head',
    'd_head',
    'p_cls_seg',
    'd_cls_seg',
    'dn_query_generator',
    'center_prior',
}


class ParameterUse(TorchFunctionMode):
    """A context in which every parameter that a function of torch takes is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[int] = set()

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function and note its parameters, unless it only asks for their shape or type."""
        result = func(*args, **(kwargs or {}))
        if func.__name__ not in QUESTIONS and (
            func.__name__ != '__get__' or isinstance(result, Tensor)
        ):
            self._note((*args, *(kwargs or {}).values()))
        return result

    def _note(self, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, nn.Parameter):
                self.taken.add(id(value))
            elif isinstance(value, list | tuple):
                self._note(value)


def never_ran(network: nn.Module, taken: set[int]) -> list[str]:
    """Return the largest modules none of whose parameters was taken, and single parameters of
    others, by their names.

    Args:
        network: what ran.
        taken: the ``id`` of each parameter that was.
    """

    def look(module: nn.Module, prefix: str) -> list[str]:
        parameters = list(module.parameters())
        if not parameters:
            return []
        if all(id(parameter) not in taken for parameter in parameters):
            return [prefix]
        own = [
            name
            for name, parameter in module.named_parameters(recurse=False)
            if id(parameter) not in taken
        ]
        names = [f'{prefix}.{name}' if prefix else name for name in own]
        for name, child in module.named_children():
            names += look(child, f'{prefix}.{name}' if prefix else name)
        return names

    return look(network, '')


def in_training_alone(name: str) -> bool:
    """Whether a part of this name serves training and has no place in inference."""
    return not TRAINING_ALONE.isdisjoint(name.split('.'))
