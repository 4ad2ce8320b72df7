"""Multiply-adds of our operators, for mmengine's FLOP counter.

A handle maps the traced inputs and outputs of an operator to its multiply-adds. Like
``mmengine.analysis``, the handles here leave out softmax and the addition of biases.

Importing this module adds the handles of the ``mmrednet::`` operators to mmengine's table. Handles
of torch's and mmcv's operators are in :mod:`mmrednet.analysis.operator_handles`.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape

from .ops import multiply_adds

Handle = Callable[[Sequence[Any], Sequence[Any]], 'int | Counter[str]']


def aggregate(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count ``mmrednet::aggregate(value, weight, window)`` and ``mmrednet::scatter(grad, weight,
    size, window)``.
    """
    return multiply_adds.aggregate(get_shape(inputs[0]), get_shape(inputs[1]))


def correlate(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count ``mmrednet::correlate(query, key, window)``."""
    taps = get_shape(outputs[0])[2]
    return multiply_adds.correlate(get_shape(inputs[0]), taps)


def involution(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::involution(value, hidden, weight, bias, window)``."""
    value, hidden, weight = map(get_shape, inputs[:3])
    return multiply_adds.involution(value, hidden, weight)


def attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::attention(query, key, value, rows, columns, bias, window)``."""
    query, _, value, rows, columns = map(get_shape, inputs[:5])
    # a window begins with its kernel size
    height, width, *_ = integers(inputs[6])
    return multiply_adds.attention(query, value, rows, columns, height * width)


def difference_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the aggregation of ``mmrednet::difference_attention(query, key, value, bias, window)``:
    differences are no multiply-adds.
    """
    query, _, value = map(get_shape, inputs[:3])
    taps = math.prod(integers(inputs[4])[:2])
    return multiply_adds.aggregate(value, (*value[:2], taps, *query[3:]))


def axial_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::axial_attention(lines, relative, scale, shift, position_scale,
    key_channels, terms, span, value_position)``.
    """
    batch, heads, channels, lines, length = get_shape(inputs[0])
    keys, terms, span = inputs[5].toIValue(), len(integers(inputs[6])), inputs[7].toIValue()
    query, value = ((batch * lines, heads, size, length) for size in (keys, channels - 2 * keys))
    return multiply_adds.axial_attention(query, value, terms, inputs[8].toIValue(), span)


def axial_moments(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::axial_moments(lines, relative, key_channels, terms, span)``."""
    batch, heads, _, lines, length = get_shape(inputs[0])
    pairs = batch * heads * lines * multiply_adds.line_pairs(length, inputs[4].toIValue())
    return Counter(einsum=pairs * inputs[2].toIValue() * len(integers(inputs[3])))


def vector_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::vector_attention(query, key, value, gamma, relation, patchwise,
    position_channels, window)``, with the seven tensors of gamma.
    """
    query, value, weight1, weight2 = (get_shape(inputs[index]) for index in (0, 2, 5, 8))
    taps = math.prod(integers(inputs[13])[:2])
    is_patchwise = inputs[11].toIValue()
    return multiply_adds.vector_attention(query, value, weight1, weight2, taps, is_patchwise)


def depthwise(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::depthwise(x, weight, bias, padding, dilation, gelu)``."""
    return Counter(conv=multiply_adds.depthwise(get_shape(outputs[0]), get_shape(inputs[1])))


def integers(value: Any) -> list[int]:
    """Return the items of a traced list of integers."""
    return [item.toIValue() for item in value.node().inputs()]


HANDLES: dict[str, Handle] = {
    'mmrednet::aggregate': aggregate,
    'mmrednet::scatter': aggregate,
    'mmrednet::correlate': correlate,
    'mmrednet::involution': involution,
    'mmrednet::attention': attention,
    'mmrednet::difference_attention': difference_attention,
    'mmrednet::axial_attention': axial_attention,
    'mmrednet::axial_moments': axial_moments,
    'mmrednet::vector_attention': vector_attention,
    'mmrednet::depthwise': depthwise,
}

# every new FlopAnalyzer copies this table; mmengine has no public way to add to it
_TABLE_NAME = '_DEFAULT_SUPPORTED_FLOP_OPS'

# mmengine's table without our handles
MMENGINE_HANDLES: dict[str, Handle] = dict(getattr(complexity_analysis, _TABLE_NAME, {}))


def add_to_mmengine(handles: Mapping[str, Handle]) -> None:
    """Add handles to the table that ``mmengine.analysis`` counts every model with."""
    table = getattr(complexity_analysis, _TABLE_NAME, None)
    if table is None:
        warnings.warn(
            'mmengine.analysis cannot count the operators of mmrednet, because this version of '
            f'mmengine has no table {_TABLE_NAME}. tools/analysis_tools/get_flops.py counts them.',
            stacklevel=2,
        )
    else:
        table.update(handles)


add_to_mmengine(HANDLES)
