"""What mmengine's FLOP counter is told of our operators, and of those of torch and mmcv that it
misses or rounds.

A handle maps the inputs and outputs of a traced operator to its multiply-adds. Like
``mmengine.analysis`` it leaves out
additions of biases, activations and softmax: :mod:`mmrednet.analysis.counting` knows those.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import conv_flop_count, get_shape

from .ops import multiply_adds

# multiply-adds of an interpolated value; the first as mmengine counts for its upsampling
BILINEAR, BICUBIC = 4, 16
# of RoIAlign with sampling_ratio=0, which samples by the size of the boxes: the trace knows shapes
# alone
ADAPTIVE_SAMPLES = 4

Handle = Callable[[Sequence[Any], Sequence[Any]], 'int | Counter[str]']


def aggregate(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count ``mmrednet::aggregate(value, weight, window)`` and ``mmrednet::scatter(grad, weight,
    size, window)``.
    """
    return multiply_adds.aggregate(get_shape(inputs[0]), get_shape(inputs[1]))


def correlate(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count ``mmrednet::correlate(query, key, window)``."""
    return multiply_adds.correlate(get_shape(inputs[0]), get_shape(outputs[0])[2])


def involution(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::involution(value, hidden, weight, bias, window)``."""
    return multiply_adds.involution(*map(get_shape, inputs[:3]))


def attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::attention(query, key, value, rows, columns, bias, window)``."""
    query, _, value, rows, columns = map(get_shape, inputs[:5])
    return multiply_adds.attention(query, value, rows, columns, math.prod(integers(inputs[6])[:2]))


def difference_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the aggregation of ``mmrednet::difference_attention(query, key, value, bias, window)``:
    differences are no multiply-adds.
    """
    query, _, value = map(get_shape, inputs[:3])
    taps = math.prod(integers(inputs[4])[:2])
    return multiply_adds.aggregate(value, (*value[:2], taps, *query[3:]))


def axial_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count ``mmrednet::axial_attention(query, key, value, relative, scale, shift, terms, span,
    value_position)``.
    """
    return multiply_adds.axial_attention(
        get_shape(inputs[0]), get_shape(inputs[2]), len(integers(inputs[6])), inputs[8].toIValue()
    )


def scaled_dot_product_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the products (..., L, E) x (..., S, E) and (..., L, S) x (..., S, Ev): both, with or
    without a mask.
    """
    query, key, value = map(get_shape, inputs[:3])
    return math.prod(get_shape(outputs[0])[:-1]) * key[-2] * (query[-1] + value[-1])


def matmul(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count K for each value of the result, whichever operand is broadcast."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def baddbmm(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the products (B, M, K) x (B, K, N) of ``baddbmm(added, first, second)``."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[1])[-1]


def affine_grid(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count d + 1 for each of the d coordinates of a point (..., d)."""
    shape = get_shape(outputs[0])
    return math.prod(shape) * (shape[-1] + 1)


def bicubic(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the sixteen neighbours of each value."""
    return BICUBIC * math.prod(get_shape(outputs[0]))


def einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count a product of several tensors, two at a time in torch's order, exactly."""
    shapes = [get_shape(value) for value in inputs[1].node().inputs()]
    # a list when torch asked opt_einsum for the order
    path = inputs[2].node() if len(inputs) > 2 else None
    planned = path is not None and path.kind() == 'prim::ListConstruct'
    return einsum_count(inputs[0].toIValue(), shapes, integers(inputs[2]) if planned else None)


def einsum_count(
    equation: str, shapes: Sequence[Sequence[int]], path: Sequence[int] | None = None
) -> int:
    """Return the multiply-adds of an einsum.

    Args:
        equation: such as 'bik,bkj->bij'; an ellipsis stands for the same dimensions everywhere.
        shapes: of the operands.
        path: which two operands are contracted next, one pair behind the other, with the product as
            the new last operand; by default from left to right.
    """
    terms, arrow, result = equation.replace(' ', '').partition('->')
    operands: list[set[str]] = []
    sizes: dict[str, int] = {}
    for term, shape in zip(terms.split(','), shapes, strict=True):
        before, dots, after = term.partition('...')
        hidden = range(len(shape) - len(before) - len(after), 0, -1) if dots else ()
        names = [*before, *(f'...{index}' for index in hidden), *after]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
        operands.append(set(names))
    # without an arrow the result has what occurs once
    kept = {name for name in sizes if (name in result if arrow else terms.count(name) == 1)}
    if '...' in result or not arrow:
        kept |= {name for name in sizes if name.startswith('...')}
    return _contract(operands, sizes, kept, path)


def _contract(
    operands: list[set[str]], sizes: dict[str, int], kept: set[str], path: Sequence[int] | None
) -> int:
    total, steps = 0, iter(path or ())
    while len(operands) > 1:
        pair = (0, 1) if path is None else (next(steps), next(steps))
        first, second = (operands[index] for index in pair)
        others = [names for index, names in enumerate(operands) if index not in pair]
        needed = kept.union(*others)
        # torch sums over what one operand alone has before it multiplies
        product = (first & (second | needed)) | (second & (first | needed))
        total += math.prod(sizes[name] for name in product)
        operands = [product & needed, *others] if path is None else [*others, product & needed]
    return total


def integers(value: Any) -> list[int]:
    """Return what a traced list of integers holds."""
    return [item.toIValue() for item in value.node().inputs()]


def convolution_mode(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count a convolution whose padding is a word, such as 'same'."""
    return Counter(
        conv=conv_flop_count(get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0]))
    )


def deformable(weight_index: int, per_sample: int) -> Handle:
    """Return the handle of mmcv's deformable convolutions: their products, and the samples that
    they interpolate.

    Args:
        weight_index: of the kernel (C_out, C_in / groups, Kh, Kw) among the inputs.
        per_sample: multiply-adds of a sample.
    """

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        x, weight, result = (
            get_shape(inputs[0]),
            get_shape(inputs[weight_index]),
            get_shape(outputs[0]),
        )
        samples = result[0] * math.prod(result[2:]) * x[1] * math.prod(weight[2:])
        return Counter(
            deform_conv=math.prod(result) * math.prod(weight[1:]), sampling=per_sample * samples
        )

    return handle


def roi_align(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count mmcv's RoIAlign: four multiply-adds for each sample of each bin."""
    _, _, sampling_ratio, *_ = outputs[0].node().scalar_args()
    samples = sampling_ratio**2 if sampling_ratio > 0 else ADAPTIVE_SAMPLES
    return Counter(roi_align=BILINEAR * samples * math.prod(get_shape(outputs[0])))


# what mmengine's own table lacks or counts otherwise
HANDLES: dict[str, Handle] = {
    'mmrednet::aggregate': aggregate,
    'mmrednet::scatter': aggregate,
    'mmrednet::correlate': correlate,
    'mmrednet::involution': involution,
    'mmrednet::attention': attention,
    'mmrednet::difference_attention': difference_attention,
    'mmrednet::axial_attention': axial_attention,
    'aten::scaled_dot_product_attention': scaled_dot_product_attention,
    'aten::einsum': einsum,
    'aten::matmul': matmul,
    'aten::baddbmm': baddbmm,
    'aten::affine_grid_generator': affine_grid,
    'aten::upsample_bicubic2d': bicubic,
    'aten::_convolution_mode': convolution_mode,
    'prim::PythonOp.DeformConv2dFunction': deformable(2, BILINEAR),
    'prim::PythonOp.ModulatedDeformConv2dFunction': deformable(3, BILINEAR + 1),
    'prim::PythonOp.RoIAlignFunction': roi_align,
}


# the table that every new FlopAnalyzer copies, as it is without us
MMENGINE: dict[str, Handle] = dict(getattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', {}))


def register_handles() -> None:
    """Tell mmengine, so that ``mmengine.analysis.get_model_complexity_info`` counts our networks
    wholly.
    """
    table = getattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', None)
    if table is None:
        warnings.warn(
            'This mmengine keeps its FLOP counters elsewhere: mmengine.analysis does not count the '
            'operators '
            'of mmrednet; tools/analysis_tools/get_flops.py does.',
            stacklevel=2,
        )
    else:
        table.update(HANDLES)


register_handles()
