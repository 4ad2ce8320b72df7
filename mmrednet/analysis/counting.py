"""Parameters of a network and multiply-adds of its operators, on top of mmengine's FlopAnalyzer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn

from ..flop_handles import Handle
from .all_handles import all_handles
from .categories import DEFAULT_COUNT, select
from .usage import ParameterUse, never_ran


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Args:
        all: Number of elements of all parameters.
        trainable: Number of elements of the parameters that require a gradient.
    """

    all: int = 0
    trainable: int = 0

    @property
    def frozen(self) -> int:
        """Number of elements of the parameters without a gradient."""
        return self.all - self.trainable


@dataclass(frozen=True)
class Complexity:
    """The cost of one forward pass in eval mode.

    Args:
        network: The network that was counted.
        counts: Counts of operators by the name of the module, including those of its children. The
            name of the network itself is ''.
        uncounted: Operators without a handle, and how often they ran.
        never_ran: Names of the modules and parameters that no operator took.
    """

    network: nn.Module
    counts: dict[str, Counter[str]]
    uncounted: Counter[str]
    never_ran: Sequence[str] = ()

    def parameters(self, module: str = '') -> Parameters:
        """Count the parameters of a module; shared ones count once."""
        total = trainable = 0
        for parameter in self.network.get_submodule(module).parameters():
            total += parameter.numel()
            if parameter.requires_grad:
                trainable += parameter.numel()
        return Parameters(total, trainable)

    def operators(
        self, count: Sequence[str] = DEFAULT_COUNT, *, module: str = '', flops: bool = False
    ) -> Counter[str]:
        """Return the count of each operator in a module.

        Args:
            count: Categories (keys of ``CATEGORIES``) or operators. Default: what mmengine counts.
            module: Name of the module. Default: the network.
            flops: Whether to count a multiply-add as two. What is no multiply-add is one in both
                conventions.
        """
        return select(self.counts[module], count, flops=flops)

    def total(
        self, count: Sequence[str] = DEFAULT_COUNT, *, module: str = '', flops: bool = False
    ) -> int:
        """Return the sum of :meth:`operators`."""
        return self.operators(count, module=module, flops=flops).total()

    def own(self) -> dict[str, Counter[str]]:
        """Return the counts of each module without its children."""
        result = {name: Counter(counts) for name, counts in self.counts.items()}
        for name, counts in self.counts.items():
            if name:
                parent = name.rpartition('.')[0]
                result[parent].subtract(counts)
        return result


def count_network(
    network: nn.Module, *inputs: Tensor, handles: Mapping[str, Handle | None] | None = None
) -> Complexity:
    """Run a network once in eval mode without gradients and count its operators.

    The modes of its modules and mmengine's table of handles stay as they are.

    Args:
        network: Network that returns tensors, or tuples and lists of tensors.
        inputs: Inputs of its forward.
        handles: Handles to count with, such as ``mmrednet.flop_handles.MMENGINE_HANDLES``. Default:
            :func:`mmrednet.analysis.all_handles.all_handles`.
    """
    modes = {module: module.training for module in network.modules()}
    analyzer = FlopAnalyzer(network.eval(), inputs).clear_op_handles()
    analyzer.set_op_handle(**(all_handles() if handles is None else handles))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with torch.no_grad(), whole_attention(), ParameterUse() as use:
            counts = analyzer.by_module_and_operator()
    finally:
        for module, training in modes.items():
            module.training = training
    # a module whose operators torch cannot look into, such as mmcv's, uses its parameters unseen
    used = set(use.parameter_ids)
    uncalled = analyzer.uncalled_modules()
    for name, module in network.named_modules():
        if name not in uncalled:
            used.update(id(parameter) for parameter in module.parameters(recurse=False))
    return Complexity(
        network,
        {name: _integers(counter) for name, counter in counts.items()},
        analyzer.unsupported_ops(),
        never_ran(network, used),
    )


def _integers(counts: Mapping[str, float]) -> Counter[str]:
    """Return counts as integers: some of mmengine's handles return floats."""
    return Counter({name: int(value) for name, value in counts.items()})


@contextmanager
def whole_attention() -> Iterator[None]:
    """Keep torch from running its attention layers as one operator that hides their parts."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
