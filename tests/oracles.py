"""The formulas of the papers as literal loops over positions and taps: slow, and never imported by the package."""

import torch


def neighbours(window, size, position):
    """Yield (tap, row, column) of the neighbours that lie on a map of this size."""
    kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w = window
    for u in range(kernel_h):
        for v in range(kernel_w):
            row = position[0] * stride_h + u * dilation_h - padding_h
            column = position[1] * stride_w + v * dilation_w - padding_w
            if 0 <= row < size[0] and 0 <= column < size[1]:
                yield u * kernel_w + v, row, column


def aggregate(value, weight, window):
    """y[i] = sum over j of w[j, i] v[i + j]"""
    result = value.new_zeros((*value.shape[:3], *weight.shape[-2:]))
    for y in range(weight.shape[-2]):
        for x in range(weight.shape[-1]):
            for tap, row, column in neighbours(window, value.shape[-2:], (y, x)):
                result[..., y, x] += weight[:, :, tap, None, y, x] * value[..., row, column]
    return result


def correlate(query, key, window):
    """l[j, i] = <q[i], k[i + j]>"""
    result = query.new_zeros((*query.shape[:2], window.taps, *query.shape[-2:]))
    for y in range(query.shape[-2]):
        for x in range(query.shape[-1]):
            for tap, row, column in neighbours(window, key.shape[-2:], (y, x)):
                result[:, :, tap, y, x] = (query[..., y, x] * key[..., row, column]).sum(2)
    return result


def scatter(grad, weight, size, window):
    """y[i + j] += w[j, i] g[i]"""
    result = grad.new_zeros((*grad.shape[:3], *size))
    for y in range(grad.shape[-2]):
        for x in range(grad.shape[-1]):
            for tap, row, column in neighbours(window, size, (y, x)):
                result[..., row, column] += weight[:, :, tap, None, y, x] * grad[..., y, x]
    return result


def involution(x, layer):
    """Generate a kernel at every position from the average of its stride x stride cell, and apply it to its group."""
    stride, groups = layer.window.stride[0], layer.groups
    size = layer.window.output_size(*x.shape[-2:])
    cells = torch.stack([torch.stack([
        x[..., y * stride:(y + 1) * stride, z * stride:(z + 1) * stride].mean((-2, -1))
        for z in range(size[1])], -1) for y in range(size[0])], -2)
    weight = layer.conv2(layer.conv1(cells))
    batch, channels = x.shape[:2]
    value = x.reshape(batch, groups, channels // groups, *x.shape[-2:])
    return aggregate(value, weight.reshape(batch, groups, -1, *size), layer.window).reshape(batch, channels, *size)
