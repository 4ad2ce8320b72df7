"""The multiply-adds of operators against plain loops over numbers that count their own products."""

import math

import numpy as np
import pytest
import torch
from test_flop_handles import (
    attend,
    attention_inputs,
    axial_shapes,
    counted,
    involution_shapes,
    involve,
)
from torch.nn import functional as F

from mmrednet.ops import (
    Window,
    axial_attention,
    local_aggregate,
    local_correlate,
    local_scatter,
)
from mmrednet.ops import local_involution as fused_involution


class Products(float):
    """A number that counts the products that it is a factor of."""

    count = 0

    def __mul__(self, other):
        Products.count += 1
        return Products(float(self) * float(other))

    def __add__(self, other):
        return Products(float(self) + float(other))

    __rmul__, __radd__ = __mul__, __add__


def numbers(*tensors):
    """Return tensors as arrays of numbers that count, and start at zero."""
    Products.count = 0
    return [np.vectorize(Products, otypes=[object])(tensor.numpy()) for tensor in tensors]


def patches(value, window):
    """Return (B, G, D, K, Ho, Wo): the neighbours of each position, zero outside the map."""
    batch, groups, channels, *size = value.shape
    up, left = window.padding
    padded = np.full(
        (batch, groups, channels, size[0] + 2 * up, size[1] + 2 * left), Products(0), object
    )
    padded[..., up : up + size[0], left : left + size[1]] = value
    result = np.empty((batch, groups, channels, window.taps, *window.output_size(*size)), object)
    for index in np.ndindex(*result.shape):
        *lead, tap, y, x = index
        result[index] = padded[
            (
                *lead,
                y * window.stride[0] + tap // window.kernel[1],
                x * window.stride[1] + tap % window.kernel[1],
            )
        ]
    return result


def loop_einsum(equation, *operands):
    """Multiply and add scalars, index by index."""
    terms, result = equation.split('->')
    sizes = {
        name: length
        for term, operand in zip(terms.split(','), operands, strict=True)
        for name, length in zip(term, operand.shape, strict=True)
    }
    output = np.full([sizes[name] for name in result], Products(0), object)
    for index in np.ndindex(*sizes.values()):
        at = dict(zip(sizes, index, strict=True))
        first, second = (
            operand[tuple(at[name] for name in term)]
            for term, operand in zip(terms.split(','), operands, strict=True)
        )
        output[tuple(at[name] for name in result)] += first * second
    return output


def softmax(logits, dim=-1):
    """Return weights that count; what makes them does not."""
    return np.vectorize(Products, otypes=[object])(
        torch.tensor(logits.astype(float)).softmax(dim).numpy()
    )


def close(result, expected):
    np.testing.assert_allclose(result.astype(float), expected.numpy(), atol=1e-5)


def test_involution_by_loops():
    window = Window(3, 2)
    shapes = involution_shapes((1, 2, 2, 3, 4), 2, window, bias=True)
    inputs = [torch.randn(shape) for shape in shapes]
    value, hidden, weight, bias = numbers(*inputs)
    kernels = loop_einsum('kr,brhw->bkhw', weight, hidden) + bias[:, None, None]
    result = loop_einsum(
        'bgdkhw,bgkhw->bgdhw', patches(value, window), kernels.reshape(1, 2, 9, *hidden.shape[2:])
    )
    close(result, fused_involution(*inputs, window))
    assert (
        sum(counted(involve(fused_involution, window), *shapes).values())
        == Products.count
        == 9 * 2 * 4 * (2 + 2)
    )


def test_attention_by_loops():
    window, tables = Window((1, 3)), ('rows', 'columns')
    shapes = attention_inputs((1, 2, 2, 2, 3), 3, window, tables)
    inputs = [torch.randn(shape) for shape in shapes]
    query, key, value, rows, columns = numbers(*inputs)
    logits = loop_einsum('bndhw,bndkhw->bnkhw', query, patches(key, window))
    logits = logits + loop_einsum('bndhw,ndu->bnuhw', query[:, :, :1], rows)
    logits = logits + loop_einsum('bndhw,ndv->bnvhw', query[:, :, 1:], columns)
    logits[:, :, 0, :, 0] = logits[:, :, 2, :, -1] = Products(-np.inf)
    weight = softmax(logits, 2)
    result = loop_einsum('bndkhw,bnkhw->bndhw', patches(value, window), weight)
    close(result, attend(window, tables)(*inputs))
    assert sum(counted(attend(window, tables), *shapes).values()) == Products.count


def test_axial_attention_by_loops():
    heads, keys, values, length = 2, 2, 3, 3
    shapes = axial_shapes(1, heads, keys, values, length, 3)
    inputs = [torch.randn(shape) for shape in shapes[:4]] + [
        torch.ones(3, heads),
        torch.zeros(3, heads),
    ]
    query, key, value, relative = numbers(*inputs[:4])
    positions = np.arange(length)
    distance = positions[:, None] - positions + length - 1
    by_query, by_key, by_value = (
        table[:, index]
        for table, index in zip(
            np.split(relative, [keys, 2 * keys]), (distance, distance.T, distance), strict=True
        )
    )
    logits = loop_einsum('bnei,bnej->bnij', query, key)
    logits = logits + loop_einsum('bnei,eij->bnij', query, by_query)
    logits = logits + loop_einsum('bnej,eij->bnij', key, by_key)
    weight = softmax(logits)
    parts = [
        loop_einsum('bnij,bndj->bndi', weight, value),
        loop_einsum('bnij,dij->bndi', weight, by_value),
    ]
    close(np.stack(parts, 3), axial_attention(*inputs))
    assert sum(counted(axial_attention, *shapes).values()) == Products.count


def test_scaled_dot_product_attention_by_loops():
    shapes = (1, 2, 2, 3), (1, 2, 4, 3), (1, 2, 4, 2)
    inputs = [torch.randn(shape) for shape in shapes]
    query, key, value = numbers(*inputs)
    logits = loop_einsum('bnie,bnje->bnij', query, key)
    result = loop_einsum('bnij,bnjd->bnid', softmax(logits.astype(float) / 3**0.5), value)
    close(result, F.scaled_dot_product_attention(*inputs))
    assert counted(F.scaled_dot_product_attention, *shapes) == dict(
        scaled_dot_product_attention=Products.count
    )


@pytest.mark.parametrize(
    ('function', 'equation', 'shapes', 'name'),
    [
        (torch.matmul, 'aij,bjk->abik', ((2, 1, 2, 3), (2, 3, 4)), 'matmul'),
        (torch.matmul, 'j,bjk->bk', ((3,), (2, 3, 4)), 'matmul'),
        (
            lambda a, b: torch.baddbmm(torch.zeros(1), a, b),
            'aij,ajk->aik',
            ((2, 3, 2), (2, 2, 4)),
            'baddbmm',
        ),
    ],
)
def test_products_by_loops(function, equation, shapes, name):
    inputs = [torch.randn(shape) for shape in shapes]
    left, right = numbers(*inputs)
    close(loop_einsum(equation, left[:, 0] if left.ndim == 4 else left, right), function(*inputs))
    assert counted(function, *shapes) == {name: Products.count}


def test_primitives_by_loops():
    window = Window((3, 1))
    value, weight, grad = (
        torch.randn(shape) for shape in ((1, 2, 2, 3, 2), (1, 2, 3, 3, 2), (1, 2, 2, 3, 2))
    )
    first, second, third = numbers(value, weight, grad)
    close(
        loop_einsum('bgdkhw,bgkhw->bgdhw', patches(first, window), second),
        local_aggregate(value, weight, window),
    )
    counts = [Products.count]
    close(
        loop_einsum('bgdhw,bgdkhw->bgkhw', third, patches(first, window)),
        local_correlate(grad, value, window),
    )
    counts.append(Products.count - counts[0])
    products = loop_einsum('bgdhw,bgkhw->bgdkhw', third, second)
    counts.append(Products.count - sum(counts))
    padded = np.full((1, 2, 2, 5, 2), Products(0), object)
    for tap in range(3):
        padded[..., tap : tap + 3, :] += products[:, :, :, tap]
    close(padded[..., 1:4, :], local_scatter(grad, weight, (3, 2), window))
    for function, inputs in (
        (lambda value, weight: local_aggregate(value, weight, window), (value, weight)),
        (lambda grad, value: local_correlate(grad, value, window), (grad, value)),
        (lambda grad, weight: local_scatter(grad, weight, (3, 2), window), (grad, weight)),
    ):
        shapes = [tensor.shape for tensor in inputs]
        assert sum(counted(function, *shapes).values()) == counts.pop(0) == 2 * 2 * 3 * 6


def sample(image, y, x):
    """Interpolate one channel (H, W) between four pixels, zero outside."""
    top, left = math.floor(y), math.floor(x)
    total = Products(0)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        is_valid = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
        total += (
            (1 - abs(y - row))
            * (1 - abs(x - column))
            * (image[row, column] if is_valid else Products(0))
        )
    return total


@pytest.mark.parametrize('modulated', [False, True])
def test_deformable_convolutions_by_loops(modulated):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    shapes = [(1, 2, 3, 3), (1, 8, 2, 2), *([(1, 4, 2, 2)] * modulated), (3, 2, 2, 2)]
    x, offset, *mask, weight = (torch.rand(shape) for shape in shapes)
    image, kernel, *factors = numbers(x, weight, *mask)
    moved = np.empty((2, 4, 2, 2), object)
    for channel, tap, row, column in np.ndindex(*moved.shape):
        y, z = (float(offset[0, 2 * tap + axis, row, column]) for axis in (0, 1))
        moved[channel, tap, row, column] = sample(
            image[0, channel], row + tap // 2 + y, column + tap % 2 + z
        )
        if modulated:
            moved[channel, tap, row, column] *= factors[0][0, tap, row, column]
    result = loop_einsum('ckhw,ock->ohw', moved, kernel.reshape(3, 2, 4))

    def convolve(*inputs):
        return (
            modulated_deform_conv2d(*inputs, None, 1, 0, 1)
            if modulated
            else deform_conv2d(*inputs, 1, 0, 1)
        )

    close(result, convolve(x, offset, *mask, weight)[0])
    assert sum(counted(convolve, *shapes).values()) == Products.count


def test_roi_align_by_loops():
    from mmcv.ops import roi_align

    x, roi = torch.rand(1, 2, 4, 4), torch.tensor([[0, 0.6, 0.7, 2.6, 2.7]])
    (image,) = numbers(x)
    result = np.full((2, 2, 2), Products(0), object)
    # bins of one pixel, with two samples along each side; centres of pixels are at one half
    for channel, row, column, u, v in np.ndindex(2, 2, 2, 2, 2):
        result[channel, row, column] += sample(
            image[0, channel], 0.2 + row + 0.25 + 0.5 * u, 0.1 + column + 0.25 + 0.5 * v
        )
    count = Products.count
    close(result * 0.25, roi_align(x, roi, (2, 2), 1.0, 2)[0])
    assert counted(lambda x: roi_align(x, roi, (2, 2), 1.0, 2), x.shape) == dict(roi_align=count)
