"""What a network takes: parameters, and multiply-adds operator by operator, on top of mmengine's
analysis.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import elementwise_flop_counter, get_shape
from torch import Tensor, nn

from ..flop_handles import HANDLES, MMENGINE, Handle, integers
from .usage import ParameterUse, never_ran

ACTIVATIONS = (
    'relu',
    'relu6',
    'leaky_relu',
    'elu',
    'gelu',
    'silu',
    'mish',
    'sigmoid',
    'tanh',
    'hardtanh',
    'hardswish',
    'hardsigmoid',
    'softplus',
    'prelu',
    'clamp',
    'clamp_min',
)
ELEMENTWISE = (
    'add',
    'sub',
    'rsub',
    'mul',
    'div',
    'neg',
    'abs',
    'square',
    'pow',
    'sqrt',
    'rsqrt',
    'exp',
    'log',
    'log2',
    'sin',
    'cos',
    'reciprocal',
    'minimum',
    'maximum',
    'lerp',
    'addcmul',
    'sum',
    'cumsum',
    'norm',
    'linalg_vector_norm',
)
# what --count takes, and the operators in it
CATEGORIES: dict[str, tuple[str, ...]] = {
    'op': (
        'conv',
        'linear',
        'addmm',
        'mm',
        'bmm',
        'baddbmm',
        'matmul',
        'einsum',
        'scaled_dot_product_attention',
        'aggregate',
        'correlate',
        'scatter',
        'deform_conv',
    ),
    'norm': ('batch_norm', 'group_norm', 'layer_norm', 'instance_norm'),
    'pool': (
        'max_pool2d',
        'avg_pool2d',
        'adaptive_avg_pool2d',
        'adaptive_max_pool2d',
        'mean',
        'amax',
    ),
    'resize': (
        'upsample_nearest2d',
        'upsample_bilinear2d',
        'upsample_bicubic2d',
        'affine_grid_generator',
        'grid_sampler',
        'sampling',
        'roi_align',
    ),
    'bias': ('bias',),
    'act': ACTIVATIONS,
    'softmax': ('softmax', 'log_softmax'),
    'elementwise': ELEMENTWISE,
}
# what mmengine.analysis.get_model_complexity_info counts
DEFAULT_COUNT = ('op', 'norm', 'resize', 'adaptive_avg_pool2d')
# of these a multiply-add is two FLOPs; the other counts are what they are
PRODUCTS = {*CATEGORIES['op'], *CATEGORIES['resize']} - {'upsample_nearest2d'}
# these move, compare or make values, and compute none of the network's
FREE = (
    'unflatten',
    'movedim',
    'mT',
    'numpy_T',
    'adjoint',
    'pad',
    'reflection_pad2d',
    'replication_pad2d',
    'repeat',
    'repeat_interleave',
    'tile',
    'im2col',
    'index_select',
    'take_along_dim',
    'pixel_shuffle',
    'pixel_unshuffle',
    'meshgrid',
    'linspace',
    '__or__',
    '__xor__',
    'scalar_tensor',
    'tensor',
    'rand',
    'randn',
    'uniform_',
    'lt',
    'le',
    'ne',
    'logical_and',
    'logical_or',
    'logical_not',
    'masked_fill_',
    'where',
    'argmax',
    'argsort',
    'sort',
    'topk',
    'clone',
    'alias',
    'empty_like',
    'ones_like',
    'new_ones',
    'fill_',
    'zero_',
    'swapaxes',
    'expand_as',
    'view_as',
    'reshape_as',
    'ceil',
    'round',
    'bitwise_and',
    'bitwise_or',
    'alpha_dropout',
    'feature_dropout',
    'lift_fresh',
    'numel',
    'all',
    'any',
    'flip',
    '_shape_as_tensor',
    '_unique2',
)
# position of the bias among the inputs
BIASES = {
    'aten::_convolution': 2,
    'aten::_convolution_mode': 2,
    'aten::linear': 2,
    'aten::addmm': 0,
    'aten::baddbmm': 0,
    'prim::PythonOp.ModulatedDeformConv2dFunction': 4,
}


@dataclass(frozen=True)
class Parameters:
    """How many numbers are learned, and how many of them this model trains."""

    all: int = 0
    trainable: int = 0

    @property
    def frozen(self) -> int:
        """Those without a gradient."""
        return self.all - self.trainable


@dataclass(frozen=True)
class Complexity:
    """What one forward of a network in eval mode takes.

    Args:
        network: what was counted.
        counts: for every module by its name, '' being the network, what its operators take, those
            of its children too.
        uncounted: operators that nobody knows how to count, and how often they ran.
        never_ran: names of modules and parameters that no operator took.
    """

    network: nn.Module
    counts: dict[str, Counter[str]]
    uncounted: Counter[str]
    never_ran: Sequence[str] = ()

    def parameters(self, module: str = '') -> Parameters:
        """Count the parameters of a module, shared ones once."""
        found = list(self.network.get_submodule(module).parameters())
        return Parameters(
            sum(parameter.numel() for parameter in found),
            sum(parameter.numel() for parameter in found if parameter.requires_grad),
        )

    def operators(
        self, count: Sequence[str] = DEFAULT_COUNT, *, module: str = '', flops: bool = False
    ) -> Counter[str]:
        """Return what each operator in a module takes.

        Args:
            count: categories (keys of ``CATEGORIES``) or operators.
            module: its name.
            flops: count a multiply-add as two; what is no product is one in both conventions.
        """
        return chosen(self.counts[module], count, flops=flops)

    def total(
        self, count: Sequence[str] = DEFAULT_COUNT, *, module: str = '', flops: bool = False
    ) -> int:
        """Return the sum of :meth:`operators`."""
        return sum(self.operators(count, module=module, flops=flops).values())

    def own(self) -> dict[str, Counter[str]]:
        """Return what each module takes without its children."""
        result = {name: Counter(counts) for name, counts in self.counts.items()}
        for name, counts in self.counts.items():
            if name:
                result[name.rpartition('.')[0]].subtract(counts)
        return result


def check_count(count: Sequence[str]) -> None:
    """Check what is to be counted.

    Raises:
        ValueError: there is nothing, or an item is neither a category nor an operator in one.
    """
    known = {*CATEGORIES, *(name for names in CATEGORIES.values() for name in names)}
    if not count or not known.issuperset(count):
        raise ValueError(
            f'count must be categories, {", ".join(CATEGORIES)}, or operators in them such as '
            "'relu', got "
            f'{list(count)}.'
        )


def chosen(counts: Counter[str], count: Sequence[str], *, flops: bool = False) -> Counter[str]:
    """Return the counts of the operators in these categories, or of these operators, see
    :class:`Complexity`.
    """
    check_count(count)
    names = {name for item in count for name in CATEGORIES.get(item, (item,))}
    return Counter(
        {
            name: value * (2 if flops and name in PRODUCTS else 1)
            for name, value in counts.items()
            if name in names and value
        }
    )


def count_network(
    network: nn.Module, *inputs: Tensor, handles: Mapping[str, Handle | None] | None = None
) -> Complexity:
    """Run a network once in eval mode without gradients and count what it computes.

    Args:
        network: takes tensors and returns tensors, or tuples and lists of them.
        inputs: of its forward.
        handles: to count with, such as ``mmrednet.flop_handles.MMENGINE``; None is
            :func:`all_handles`.
    """
    modes = {module: module.training for module in network.modules()}
    analyzer = FlopAnalyzer(network.eval(), inputs).clear_op_handles()
    analyzer.set_op_handle(**(MMENGINE | all_handles() if handles is None else handles))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with torch.no_grad(), whole_attention(), ParameterUse() as use:
            counts = analyzer.by_module_and_operator()
    finally:
        for module, training in modes.items():
            module.training = training
    called = {
        id(parameter)
        for name, module in network.named_modules()
        if name not in analyzer.uncalled_modules()
        for parameter in module.parameters(recurse=False)
    }
    return Complexity(
        network,
        {
            name: Counter({key: int(value) for key, value in counter.items()})
            for name, counter in counts.items()
        },
        analyzer.unsupported_ops(),
        never_ran(network, use.taken | called),
    )


@contextmanager
def whole_attention() -> Iterator[None]:
    """Keep torch from running attention layers of its own as one operator that hides their
    parts."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def all_handles() -> dict[str, Handle | None]:
    """Return the handles of every category; None marks what is free."""
    table: dict[str, Handle | None] = dict.fromkeys((f'aten::{name}' for name in FREE), None)
    # it compares boxes, and mmengine ignores no operator of Python
    table['prim::PythonOp.NMSop'] = lambda inputs, outputs: Counter()
    for name in (*CATEGORIES['act'], *CATEGORIES['softmax'], *CATEGORIES['elementwise']):
        table |= {f'aten::{name}{ending}': _each_value(name) for ending in ('', '_')}
    # a pool, as mmengine counts adaptive ones: one for each value that it looks at
    table |= {f'aten::{name}': elementwise_flop_counter(1, 0) for name in CATEGORIES['pool']}
    table |= HANDLES
    for kind, index in BIASES.items():
        table[kind] = _with(_bias_at(index), kind)
    table['mmrednet::involution'] = _with(_involution_bias, 'mmrednet::involution')
    table['mmrednet::attention'] = _with(_softmax_and_terms, 'mmrednet::attention')
    table['mmrednet::axial_attention'] = _with(_softmax_and_norms, 'mmrednet::axial_attention')
    return table


def _each_value(name: str) -> Handle:
    """Return a handle that counts floating-point values under one name for an operator and its
    in-place form.
    """

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        # the tracer computes with sizes too
        if not outputs[0].isCompleteTensor() or not outputs[0].type().dtype().is_floating_point:
            return Counter()
        # a reduction looks at its input, and is one of the others where both have one size
        tensors = [value for value in (*inputs, *outputs) if value.isCompleteTensor()]
        return Counter({name: max(math.prod(get_shape(value)) for value in tensors)})

    return handle


def _with(rest: Callable[[Sequence[Any], Sequence[Any]], Counter[str]], kind: str) -> Handle:
    """Return a handle that counts the products of an operator and what else it does."""
    products = HANDLES.get(kind) or MMENGINE[kind]

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        counts = products(inputs, outputs)
        return Counter(
            counts if isinstance(counts, Counter) else {kind.split('::')[1]: counts}
        ) + rest(inputs, outputs)

    return handle


def _bias_at(index: int) -> Callable[[Sequence[Any], Sequence[Any]], Counter[str]]:
    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        given = index < len(inputs) and inputs[index].isCompleteTensor()
        return Counter(bias=math.prod(get_shape(outputs[0]))) if given else Counter()

    return handle


def _involution_bias(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    hidden, _, bias = map(get_shape, inputs[1:4])
    return Counter() if bias is None else Counter(bias=bias[0] * hidden[0] * math.prod(hidden[2:]))


def _softmax_and_terms(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count the softmax, and the additions of the embeddings' products, with each other too, and of
    the bias.
    """
    query, (rows, _, bias) = get_shape(inputs[0]), map(get_shape, inputs[3:6])
    logits = math.prod([*query[:2], *query[3:], *integers(inputs[6])[:2]])
    return Counter(softmax=logits, add=logits * ((rows is not None) * 2 + (bias is not None)))


def _softmax_and_norms(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count the softmax, and the scaling, shifting and summing of the terms of the logits."""
    lines, heads, _, length = get_shape(inputs[0])
    logits = lines * heads * length**2
    terms = logits * len(integers(inputs[6]))
    return Counter(softmax=logits, mul=terms, add=terms, sum=terms)
