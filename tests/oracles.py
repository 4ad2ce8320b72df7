"""The formulas of the papers as literal loops over positions and taps: slow, and never imported by
the package.
"""

import torch


def neighbours(window, size, position):
    """Yield (tap, row, column) of the neighbours that lie on a map of this size."""
    if window.border == 'shift':
        rows, columns = (
            shifted_taps(position[axis], size[axis], window.kernel[axis], window.dilation[axis])
            for axis in (0, 1)
        )
        for u, row in enumerate(rows):
            for v, column in enumerate(columns):
                yield u * window.kernel[1] + v, row, column
        return
    kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w = window
    for u in range(kernel_h):
        for v in range(kernel_w):
            row = position[0] * stride_h + u * dilation_h - padding_h
            column = position[1] * stride_w + v * dilation_w - padding_w
            if 0 <= row < size[0] and 0 <= column < size[1]:
                yield u * kernel_w + v, row, column


def shifted_taps(position, length, kernel, dilation):
    """Return the neighbours of a position along one axis, in a window that lies on the map."""
    axis = list(range(position % dilation, length, dilation))
    index = axis.index(position)
    start = min(max(index - kernel // 2, 0), len(axis) - kernel)
    return axis[start : start + kernel]


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
    """Generate a kernel at every position from the average of its stride x stride cell, and apply
    it to its group.
    """
    stride, groups = layer.window.stride[0], layer.groups
    size = layer.window.output_size(*x.shape[-2:])
    cells = torch.stack(
        [
            torch.stack(
                [
                    x[..., y * stride : (y + 1) * stride, z * stride : (z + 1) * stride].mean(
                        (-2, -1)
                    )
                    for z in range(size[1])
                ],
                -1,
            )
            for y in range(size[0])
        ],
        -2,
    )
    weight = layer.conv2(layer.conv1(cells))
    batch, channels = x.shape[:2]
    value = x.reshape(batch, groups, channels // groups, *x.shape[-2:])
    return aggregate(value, weight.reshape(batch, groups, -1, *size), layer.window).reshape(
        batch, channels, *size
    )


def _reflect(index, length):
    """Return the index on the map of one that may lie beyond it, mirrored at its ends as often as
    it takes.
    """
    while length > 1 and not 0 <= index < length:
        index = -index if index < 0 else 2 * (length - 1) - index
    return index if length > 1 else 0


def local_attention(query, key, value, position, window):
    """y[i] = sum over j on the map of softmax_j(<q[i], k[j]> + position[i, tap]) v[j], for every
    head.
    """
    result = torch.zeros_like(query)
    for y in range(query.shape[-2]):
        for x in range(query.shape[-1]):
            found = list(neighbours(window, key.shape[-2:], (y, x)))
            logits = torch.stack(
                [
                    ((query[..., y, x] * key[..., row, column]).sum(2) if key is not None else 0)
                    + position[:, :, tap, y, x]
                    for tap, row, column in found
                ],
                -1,
            )
            weight = logits.softmax(-1)
            for index, (_, row, column) in enumerate(found):
                result[..., y, x] += weight[:, :, None, index] * value[..., row, column]
    return result


def sasa(x, layer):
    """Attend with the logits q^T k + q^T [row, column], position by position."""
    heads = (layer.num_heads, x.shape[1] // layer.num_heads)
    query, value = layer.query(x).unflatten(1, heads), layer.value(x).unflatten(1, heads)
    key = torch.zeros_like(query) if layer.key is None else layer.key(x).unflatten(1, heads)
    position = query.new_zeros(*query.shape[:2], layer.window.taps, *query.shape[-2:])
    if layer.relative is not None:
        rows, columns = layer.window.kernel
        for tap in range(layer.window.taps):
            relative = torch.cat(
                [
                    layer.relative.rows[..., tap // columns],
                    layer.relative.columns[..., tap % columns],
                ],
                1,
            )
            position[:, :, tap] = torch.einsum('bndhw,nd->bnhw', query, relative)
    return local_attention(query, key, value, position, layer.window).flatten(1, 2)


def local_relation(x, layer):
    """Relate the scalar query and key of each group, add the prior, and weigh the values of the
    group.
    """
    relate = {
        'product': lambda q, k: q * k,
        'squared_difference': lambda q, k: -((q - k) ** 2),
        'absolute_difference': lambda q, k: -(q - k).abs(),
        'key': lambda q, k: k,
    }[layer.relation]
    key = layer.key(x)
    query = key if layer.query is None else layer.query(x)
    stride, size = layer.window.stride[0], layer.window.output_size(*x.shape[-2:])
    result = x.new_zeros(*x.shape[:2], *size)
    for y in range(size[0]):
        for z in range(size[1]):
            found = list(neighbours(layer.window, x.shape[-2:], (y, z)))
            logits = torch.stack(
                [
                    relate(query[..., y * stride, z * stride], key[..., row, column])
                    + (0 if layer.prior is None else prior(layer.prior, layer.window, tap))
                    for tap, row, column in found
                ],
                -1,
            )
            weight = logits.softmax(-1).repeat_interleave(layer.group_channels, 1)[:, : x.shape[1]]
            for index, (_, row, column) in enumerate(found):
                result[..., y, z] += weight[..., index] * x[..., row, column]
    return layer.project(result)


def prior(network, window, tap):
    """What the geometry prior gives to a tap: its network at (dx, dy)."""
    rows, columns = window.kernel
    offset = torch.tensor(
        [tap % columns - (columns - 1) / 2, tap // columns - (rows - 1) / 2], dtype=torch.float64
    )
    return network.layers(offset)


def san(x, layer, relate):
    """Pairwise or patchwise attention of SAN; ``relate`` maps (query, [keys]) to the features gamma
    sees.
    """
    query, keys, values = layer.conv1(x), layer.conv2(x), layer.conv3(x)
    height, width = x.shape[-2:]
    rows, columns = layer.window.kernel
    size, dilation = layer.output_size(x), layer.window.dilation[0]
    groups, result = layer.groups, values.new_zeros(*values.shape[:2], *size)
    for y in range(size[0]):
        for z in range(size[1]):
            centre = y * layer.stride, z * layer.stride
            places = [
                (
                    _reflect(centre[0] + dilation * (u - rows // 2), height),
                    _reflect(centre[1] + dilation * (v - columns // 2), width),
                )
                for u in range(rows)
                for v in range(columns)
            ]
            weight = relate(
                layer,
                query[..., centre[0], centre[1]],
                [keys[..., r, c] for r, c in places],
                centre,
                places,
                (height, width),
            )
            for index, (row, column) in enumerate(places):
                for channel in range(values.shape[1]):
                    result[:, channel, y, z] += (
                        weight[:, channel % groups, index] * values[:, channel, row, column]
                    )
    return result


def pairwise(layer, query, keys, centre, places, size):
    """Return alpha (B, G, K): softmax of gamma of the relation and of the difference of
    positions."""

    def position(row, column):
        scaled = [
            2 * value / max(1, length - 1) - 1 if length > 1 else 0.0
            for value, length in ((column, size[1]), (row, size[0]))
        ]
        return layer.conv_p(torch.tensor(scaled, dtype=torch.float64).view(1, 2, 1, 1)).view(2)

    relate = {
        'subtraction': lambda k: query - k,
        'summation': lambda k: query + k,
        'concatenation': lambda k: torch.cat([query, k], 1),
        'hadamard': lambda k: query * k,
        'dot_product': lambda k: (query * k).sum(1, keepdim=True),
    }[layer.relation]
    logits = [
        layer.conv_w(
            torch.cat(
                [relate(key), (position(*centre) - position(*place)).expand(len(query), 2)], 1
            )[..., None, None]
        )[..., 0, 0]
        for key, place in zip(keys, places, strict=True)
    ]
    return torch.stack(logits, -1).softmax(-1)


def patchwise(layer, query, keys, *_):
    """Return alpha (B, G, K): gamma of the patch, no softmax."""
    patch = torch.stack(keys, -1)
    feature = {
        'concatenation': lambda: torch.cat([query, patch.flatten(1)], 1),
        'star_product': lambda: torch.stack([(query * key).sum(1) for key in keys], 1),
        'clique_product': lambda: torch.stack([(a * b).sum(1) for a in keys for b in keys], 1),
    }[layer.relation]
    return layer.conv_w(feature()[..., None, None]).unflatten(1, (layer.groups, len(keys)))[
        ..., 0, 0
    ]


def axial(x, layer):
    """Attend along the width of a map, row by row and head by head, in eval mode."""

    def norm(value, batch_norm, channel):
        scale = batch_norm.weight[channel] / torch.sqrt(
            batch_norm.running_var[channel] + batch_norm.eps
        )
        return (value - batch_norm.running_mean[channel]) * scale + batch_norm.bias[channel]

    batch, _, height, length = x.shape
    heads, depth, half, table = layer.num_heads, layer.depth, layer.depth // 2, layer.table_size
    result = x.new_zeros(batch, heads * depth, height, length)

    def entry(distance, part):
        return layer.relative[part, max(1 - table, min(table - 1, distance)) + table - 1]

    for b in range(batch):
        for row in range(height):
            qkv = layer.bn_qkv(layer.qkv_transform(x[b : b + 1, :, row]))[0].view(
                heads, 2 * depth, length
            )
            for head in range(heads):
                query, key, value = qkv[head].split([half, half, depth])
                for i in range(length):
                    logits, places = [], []
                    for m in range(length):
                        if layer.span is not None and abs(m - i) > layer.span // 2:
                            continue
                        terms = {
                            'query_key': query[:, i] @ key[:, m],
                            'query_position': query[:, i] @ entry(i - m, slice(0, half)),
                            'key_position': key[:, m] @ entry(m - i, slice(half, 2 * half)),
                        }
                        logits.append(
                            sum(
                                norm(terms[name], layer.bn_similarity, index * heads + head)
                                for index, name in enumerate(layer.terms)
                            )
                        )
                        places.append(m)
                    weight = torch.stack(logits).softmax(0)
                    content = sum(w * value[:, m] for w, m in zip(weight, places, strict=True))
                    where = sum(
                        w * entry(i - m, slice(2 * half, None))
                        for w, m in zip(weight, places, strict=True)
                    )
                    for channel in range(depth):
                        index = head * depth + channel
                        if layer.value_position:
                            result[b, index, row, i] = norm(
                                content[channel], layer.bn_output, 2 * index
                            ) + norm(where[channel], layer.bn_output, 2 * index + 1)
                        else:
                            result[b, index, row, i] = norm(
                                content[channel], layer.bn_output, index
                            )
    return result
