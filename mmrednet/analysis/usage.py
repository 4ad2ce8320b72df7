"""Which parameters a network uses when it runs, and which of its parts never run."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# functions that ask a tensor about itself and do not use its values
QUERIES = ('size', 'dim', 'numel', 'stride', 'type', 'is_contiguous', 'data_ptr')

# Names of modules that compute a loss and have no part in inference: the auxiliary heads of mmseg's
# segmenters, of DDRNet and of PIDNet, the queries of noisy boxes of DINO, AutoAssign's prior.
TRAINING_MODULES = {
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
    """A context that records the parameters that torch's functions take.

    Attributes:
        parameter_ids: The ``id`` of each parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameter_ids: set[int] = set()

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function and record its parameters, unless it only asks for a property."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # an attribute such as shape is no use of a parameter, one that is a tensor (T, data) is
        is_property = func.__name__ == '__get__' and not isinstance(result, Tensor)
        if func.__name__ not in QUERIES and not is_property:
            self._record((*args, *kwargs.values()))
        return result

    def _record(self, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, nn.Parameter):
                self.parameter_ids.add(id(value))
            elif isinstance(value, list | tuple):
                self._record(value)


def never_ran(module: nn.Module, used: Set[int], name: str = '') -> list[str]:
    """Return the names of what never ran: modules that used none of their parameters, and single
    unused parameters of the other modules.

    A module that never ran stands for all its children.

    Args:
        module: Module that ran.
        used: The ``id`` of each parameter that was used.
        name: Name of the module. Default: '', the whole network.
    """
    parameters = [id(parameter) for parameter in module.parameters()]
    if not parameters:
        return []
    if used.isdisjoint(parameters):
        return [name]
    prefix = f'{name}.' if name else ''
    names = []
    for key, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in used:
            names.append(f'{prefix}{key}')
    for key, child in module.named_children():
        names += never_ran(child, used, f'{prefix}{key}')
    return names


def is_for_training(name: str) -> bool:
    """Return whether a part of this name is for training only."""
    return not TRAINING_MODULES.isdisjoint(name.split('.'))
