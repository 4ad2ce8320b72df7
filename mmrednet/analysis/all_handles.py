"""The handles of the counting tools: products, biases, activations, softmax and all others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.analysis.jit_handles import elementwise_flop_counter, get_shape

from .. import flop_handles
from ..flop_handles import MMENGINE_HANDLES, Handle, integers
from ..ops.multiply_adds import line_pairs
from . import operator_handles
from .categories import CATEGORIES

CounterHandle = Callable[[Sequence[Any], Sequence[Any]], Counter[str]]

# These move, compare or create values and compute none of the network's.
FREE = (
    *('unflatten', 'movedim', 'mT', 'numpy_T', 'adjoint', 'swapaxes', 'meshgrid'),
    *('pad', 'reflection_pad2d', 'replication_pad2d', 'im2col', 'pixel_shuffle', 'pixel_unshuffle'),
    *('repeat', 'repeat_interleave', 'tile', 'flip', 'expand_as', 'view_as', 'reshape_as'),
    *('index_select', 'take_along_dim', 'where', 'masked_fill_', 'fill_', 'zero_'),
    *('clone', 'alias', 'lift_fresh', 'empty_like', 'ones_like', 'new_ones', 'linspace'),
    *('scalar_tensor', 'tensor', 'rand', 'randn', 'uniform_', 'alpha_dropout', 'feature_dropout'),
    *('lt', 'le', 'ne', '__or__', '__xor__', 'logical_and', 'logical_or', 'logical_not'),
    *('bitwise_and', 'bitwise_or', 'all', 'any', 'ceil', 'round'),
    *('argmax', 'argsort', 'sort', 'topk', 'numel', '_shape_as_tensor', '_unique2'),
)
# operator: position of the bias among its inputs
BIASES = {
    'aten::_convolution': 2,
    'aten::_convolution_mode': 2,
    'aten::linear': 2,
    'aten::addmm': 0,
    'aten::baddbmm': 0,
    'prim::PythonOp.ModulatedDeformConv2dFunction': 4,
}
PRODUCT_HANDLES = MMENGINE_HANDLES | flop_handles.HANDLES | operator_handles.HANDLES


def all_handles() -> dict[str, Handle | None]:
    """Return the handles of every category. None marks an operator that is free."""
    table: dict[str, Handle | None] = dict(MMENGINE_HANDLES)
    table |= dict.fromkeys((f'aten::{name}' for name in FREE), None)
    # non-maximum suppression compares boxes; FlopAnalyzer cannot ignore an operator of Python
    table['prim::PythonOp.NMSop'] = lambda inputs, outputs: Counter()
    for category in ('act', 'softmax', 'elementwise'):
        for name in CATEGORIES[category]:
            table[f'aten::{name}'] = table[f'aten::{name}_'] = _each_value(name)
    for name in CATEGORIES['pool']:
        # one for each value of the input, as mmengine counts adaptive average pools
        table[f'aten::{name}'] = elementwise_flop_counter(1, 0)
    table |= flop_handles.HANDLES | operator_handles.HANDLES
    for operator, index in BIASES.items():
        table[operator] = _with_products(operator, _bias_at(index))
    for operator, handle in _INSIDE_FUSED.items():
        table[operator] = _with_products(operator, handle)
    return table


def _each_value(name: str) -> Handle:
    """Return a handle that counts floating-point values, for an operator and its in-place form."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        result = outputs[0]
        # the tracer computes with sizes, too: those are integers or no tensors
        if not result.isCompleteTensor() or not result.type().dtype().is_floating_point:
            return Counter()
        # a sum reads more values than it returns
        tensors = [value for value in (*inputs, *outputs) if value.isCompleteTensor()]
        return Counter({name: max(math.prod(get_shape(tensor)) for tensor in tensors)})

    return handle


def _with_products(operator: str, extra: CounterHandle) -> Handle:
    """Return a handle that counts the products of an operator and what another handle counts."""
    products = PRODUCT_HANDLES[operator]

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        counts = products(inputs, outputs)
        if not isinstance(counts, Counter):
            counts = Counter({operator.split('::')[1]: counts})
        return counts + extra(inputs, outputs)

    return handle


def _bias_at(index: int) -> CounterHandle:
    """Return a handle that counts one addition for each output value, if there is a bias."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        if index >= len(inputs) or not inputs[index].isCompleteTensor():
            return Counter()
        return Counter(bias=math.prod(get_shape(outputs[0])))

    return handle


def _involution_bias(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count the bias of the convolution that generates the kernels."""
    (batch, _, *size), _, bias = map(get_shape, inputs[1:4])
    if bias is None:
        return Counter()
    return Counter(bias=batch * bias[0] * math.prod(size))


def _attention_logits(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count the softmax, and what is added to the logits: position embeddings and a bias."""
    batch, heads, _, *size = get_shape(inputs[0])
    rows, _, bias = map(get_shape, inputs[3:6])
    kernel_height, kernel_width, *_ = integers(inputs[6])
    logits = batch * heads * math.prod(size) * kernel_height * kernel_width
    # rows and columns are added to each other, and their sum to the logits
    additions = 2 * (rows is not None) + (bias is not None)
    return Counter(softmax=logits, add=logits * additions)


def _axial_logits(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count the softmax, and the scaling, shifting and summing of the terms of the logits."""
    batch, heads, _, lines, length = get_shape(inputs[0])
    logits = batch * lines * heads * line_pairs(length, inputs[7].toIValue())
    terms = logits * len(integers(inputs[6]))
    return Counter(softmax=logits, mul=terms, add=terms, sum=terms)


# what our fused operators do beside their products
_INSIDE_FUSED: dict[str, CounterHandle] = {
    'mmrednet::involution': _involution_bias,
    'mmrednet::attention': _attention_logits,
    'mmrednet::axial_attention': _axial_logits,
}
