"""Handles of torch's and mmcv's operators that mmengine's FLOP counter lacks or counts otherwise.

A handle maps the traced inputs and outputs of an operator to its multiply-adds. The counting tools
use these handles while they count and leave mmengine's own table alone. To count any model by
``mmengine.analysis`` with them, call :func:`register_flop_handles` once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmengine.analysis.jit_handles import conv_flop_count, get_shape

from ..flop_handles import Handle, add_to_mmengine, integers

# Multiply-adds of an interpolated value: one for each neighbour. mmengine has the 4 as well.
BILINEAR, BICUBIC = 4, 16
# RoIAlign with sampling_ratio=0 takes more samples for larger boxes. A trace knows shapes and no
# coordinates, so we assume 2 x 2 samples for each bin.
ADAPTIVE_SAMPLES = 4


def scaled_dot_product_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the products (..., L, E) x (..., E, S) and (..., L, S) x (..., S, Ev)."""
    query, key, value = map(get_shape, inputs[:3])
    queries = math.prod(get_shape(outputs[0])[:-1])
    return queries * key[-2] * (query[-1] + value[-1])


def matmul(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count K multiply-adds for each element of the result, whichever operand is broadcast."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def baddbmm(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the products (B, M, K) x (B, K, N) of ``baddbmm(bias, first, second)``."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[1])[-1]


def affine_grid(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count d + 1 multiply-adds for each of the d coordinates of a point."""
    shape = get_shape(outputs[0])
    return math.prod(shape) * (shape[-1] + 1)


def bicubic(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the sixteen neighbours of each element of the result."""
    return BICUBIC * math.prod(get_shape(outputs[0]))


def convolution_mode(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count a convolution whose padding is a word, such as 'same'."""
    x, weight = map(get_shape, inputs[:2])
    return Counter(conv=conv_flop_count(x, weight, get_shape(outputs[0])))


def deformable(weight_index: int, sample_macs: int) -> Handle:
    """Return the handle of a deformable convolution of mmcv: its products and its samples.

    Args:
        weight_index: Position of the kernel (C_out, C_in / groups, Kh, Kw) among the inputs.
        sample_macs: Multiply-adds of one sample.
    """

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        in_channels = get_shape(inputs[0])[1]
        weight = get_shape(inputs[weight_index])
        batch, _, *size = result = get_shape(outputs[0])
        taps = math.prod(weight[2:])
        samples = batch * math.prod(size) * in_channels * taps
        return Counter(
            deform_conv=math.prod(result) * math.prod(weight[1:]),
            sampling=sample_macs * samples,
        )

    return handle


def roi_align(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count mmcv's RoIAlign: four multiply-adds for each sample of each bin."""
    _, _, sampling_ratio, *_ = outputs[0].node().scalar_args()
    samples = sampling_ratio**2 if sampling_ratio > 0 else ADAPTIVE_SAMPLES
    return Counter(roi_align=BILINEAR * samples * math.prod(get_shape(outputs[0])))


def einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count a product of any number of tensors, contracted two at a time in torch's order."""
    shapes = [get_shape(value) for value in inputs[1].node().inputs()]
    path = None
    # the third input is a list if opt_einsum chose the order, and None otherwise
    if len(inputs) > 2 and inputs[2].node().kind() == 'prim::ListConstruct':
        path = integers(inputs[2])
    return einsum_macs(inputs[0].toIValue(), shapes, path)


def einsum_macs(
    equation: str, shapes: Sequence[Sequence[int]], path: Sequence[int] | None = None
) -> int:
    """Return the multiply-adds of an einsum.

    Args:
        equation: Equation such as 'bik,bkj->bij'. An ellipsis stands for the same dimensions in
            every term.
        shapes: Shapes of the operands.
        path: Positions of the two operands to contract next, one pair after the other. Their
            product becomes the last operand. Default: from left to right.
    """
    inputs, arrow, output = equation.replace(' ', '').partition('->')
    sizes: dict[str, int] = {}
    operands: list[set[str]] = []
    for term, shape in zip(inputs.split(','), shapes, strict=True):
        indices = _indices(term, len(shape))
        operands.append(set(indices))
        for index, size in zip(indices, shape, strict=True):
            # a size of 1 is broadcast to that of another operand
            sizes[index] = max(size, sizes.get(index, 1))
    result_indices = (
        set(output) if arrow else {index for index in sizes if inputs.count(index) == 1}
    )
    if '...' in output or not arrow:
        result_indices |= {index for index in sizes if index.startswith('...')}
    return _contract(operands, sizes, result_indices, path)


def _indices(term: str, rank: int) -> list[str]:
    """Return one index for each dimension of an operand.

    The dimensions of an ellipsis are numbered from the last one, because broadcasting aligns the
    last ones.
    """
    before, ellipsis, after = term.partition('...')
    count = rank - len(before) - len(after) if ellipsis else 0
    return [*before, *(f'...{number}' for number in range(count, 0, -1)), *after]


def _contract(
    operands: Sequence[set[str]],
    sizes: dict[str, int],
    result_indices: set[str],
    path: Sequence[int] | None,
) -> int:
    """Return the multiply-adds of contracting operands, each given by its set of indices."""
    if path:
        pairs = list(zip(path[::2], path[1::2], strict=True))
    else:
        pairs = [(0, 1)] * (len(operands) - 1)
    total = 0
    remaining = list(operands)
    for pair in pairs:
        first, second = (remaining[position] for position in pair)
        for position in sorted(pair, reverse=True):
            del remaining[position]
        needed = result_indices.union(*remaining)
        # torch sums over an index that is in one operand alone before it multiplies
        product = (first & (second | needed)) | (second & (first | needed))
        total += math.prod(sizes[index] for index in product)
        remaining.insert(len(remaining) if path else 0, product & needed)
    return total


HANDLES: dict[str, Handle] = {
    'aten::scaled_dot_product_attention': scaled_dot_product_attention,
    'aten::einsum': einsum,
    'aten::matmul': matmul,
    'aten::baddbmm': baddbmm,
    'aten::affine_grid_generator': affine_grid,
    'aten::upsample_bicubic2d': bicubic,
    'aten::_convolution_mode': convolution_mode,
    'prim::PythonOp.DeformConv2dFunction': deformable(2, BILINEAR),
    # a mask multiplies each sample
    'prim::PythonOp.ModulatedDeformConv2dFunction': deformable(3, BILINEAR + 1),
    'prim::PythonOp.RoIAlignFunction': roi_align,
}


def register_flop_handles() -> None:
    """Add the handles of this module to mmengine's table, for every model of this process.

    ``mmengine.analysis.get_model_complexity_info`` then counts products that it otherwise leaves
    out or rounds: einsum, broadcast matmul, baddbmm, attention of torch, deformable convolutions
    and RoIAlign. Figures of models that have nothing to do with mmrednet change, too.
    """
    add_to_mmengine(HANDLES)
