"""Attention along lines, composed of torch's operators: the definition of the fused kernels.

A line of L positions has L^2 logits for each head and each term. On a map of H x W both axes have
H W (H + W) of them. Functions here work on chunks of lines (B, N, E, L), and the backward passes
compute logits again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _torch

TERMS = ('query_key', 'query_position', 'key_position')
# Elements of all tensors of the size of the logits that a chunk of lines may have at once. 2^24 are
# 64 MiB in float32: smaller working sets are faster on a CPU, whereas a GPU needs larger chunks to
# be filled.
LOGITS_BUDGET = {'cpu': 1 << 24, 'cuda': 1 << 27}
# Tensors of the size of the logits that are alive at once, at most: weights, their gradients, the
# factors that a product reorders, and its result.
LIVE = 5


def default_budget(tensor: Tensor) -> int:
    """Return the default ``logits_budget`` of ``axial_attention`` for a tensor's device."""
    return LOGITS_BUDGET['cuda' if tensor.is_cuda else 'cpu']


def tables(relative: Tensor, channels: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rq and rk (E, L, L) and rv (D, L, L), with entry (i, m) for query i and key m."""
    value_channels = relative.shape[0] - 2 * channels
    by_pair = relative[:, _distances(relative, length)]
    by_query, by_key, by_value = by_pair.split([channels, channels, value_channels])
    # rk takes the distance m - i
    return by_query, by_key.transpose(1, 2), by_value


def _distances(relative: Tensor, length: int) -> Tensor:
    """Return the index (L, L) of the distance i - m in a table."""
    end = relative.shape[1] // 2
    position = torch.arange(length, device=relative.device)
    return (position[:, None] - position).clamp(-end, end) + end


def outside_span(length: int, span: int, device: torch.device) -> Tensor:
    """Return the mask (L, L) of pairs that are further than span // 2 apart."""
    position = torch.arange(length, device=device)
    return (position[:, None] - position).abs() > span // 2


def _term(query: Tensor, key: Tensor, positions: tuple[Tensor, ...], term: int) -> Tensor:
    """Return one term (B, N, L, L) of the logits of lines (B, N, E, L), before its norm."""
    if term == 0:
        return torch.einsum('bgci,bgcj->bgij', query, key)
    if term == 1:
        return torch.einsum('bgci,cij->bgij', query, positions[0])
    return torch.einsum('bgcj,cij->bgij', key, positions[1])


def logits(
    query: Tensor, key: Tensor, positions: tuple[Tensor, ...], terms: Sequence[int]
) -> Tensor:
    """Return the terms (B, T, N, L, L) of lines (B, N, E, L), before their norm."""
    return torch.stack([_term(query, key, positions, term) for term in terms], 1)


def _weights(
    query: Tensor,
    key: Tensor,
    positions: tuple[Tensor, ...],
    scale: Tensor,
    shift: Tensor,
    terms: Sequence[int],
    span: int,
) -> Tensor:
    """Return the weights (B, N, L, L) of lines (B, N, E, L), in float32 or wider."""
    # one term is alive at a time
    total = shift.sum(0)[:, None, None]
    for index, term in enumerate(terms):
        total = total + _term(query, key, positions, term) * scale[index, :, None, None]
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    if span:
        total = total.masked_fill(outside_span(total.shape[-1], span, total.device), -torch.inf)
    return total.softmax(3)


def mix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    terms: Sequence[int],
    span: int,
    value_position: bool,
) -> Tensor:
    """Compute attention along lines from stored weights of all lines."""
    positions = tables(relative, query.shape[2], query.shape[3])
    weight = _weights(query, key, positions, scale, shift, terms, span).to(value.dtype)
    parts = [torch.einsum('bgij,bgcj->bgci', weight, value)]
    if value_position:
        parts.append(torch.einsum('bgij,cij->bgci', weight, positions[2].to(value.dtype)))
    return torch.stack(parts, 3)


def chunk_size(lines: Tensor, budget: int, live: int = LIVE) -> int:
    """Return the number of lines (B, N, C, L) in a chunk: at least one.

    Each line has ``live`` tensors (N, L, L). Those of a chunk fit into a budget of elements.
    """
    return max(1, budget // (live * lines.shape[1] * lines.shape[3] ** 2))


def _chunks(size: int, *tensors: Tensor) -> Iterator[Any]:
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Tensor:
    """Compute attention along lines in chunks. Every fused kernel is tested against it."""
    results = []
    for q, k, v in _chunks(chunk_size(query, budget), query, key, value):
        results.append(mix(q, k, v, relative, scale, shift, terms, span, value_position))
    return torch.cat(results).contiguous()


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor,
    scale: Tensor,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of :func:`definition` for its first five tensors.

    Logits and weights are computed again, for one chunk of lines at a time. The gradients are
    differentiable in turn.
    """
    chunks = []
    for g, q, k, v in _chunks(chunk_size(query, budget), grad, query, key, value):
        chunks.append(_gradients(g, q, k, v, relative, scale, terms, span, value_position))
    grad_query, grad_key, grad_value, grad_relative, grad_scale = zip(*chunks, strict=True)
    # lines are joined; what they share has the sum of the gradients of all chunks
    grads = [torch.cat(parts) for parts in (grad_query, grad_key, grad_value)]
    grads += [torch.stack(parts).sum(0) for parts in (grad_relative, grad_scale)]
    tensors = (query, key, value, relative, scale)
    return tuple(
        total.to(tensor.dtype).contiguous() for total, tensor in zip(grads, tensors, strict=True)
    )


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor,
    scale: Tensor,
    terms: Sequence[int],
    span: int,
    value_position: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of one chunk, in float32 or wider."""
    dtype = _torch.sum_dtype(query, value)
    grad, query, key, value, relative, scale = (
        tensor.to(dtype) for tensor in (grad, query, key, value, relative, scale)
    )
    positions = tables(relative, query.shape[2], query.shape[3])
    weight = _weights(query, key, positions, scale, scale.new_zeros(1, 1), terms, span)
    grad_by_value = torch.zeros_like(positions[2])

    # the weighted sums
    grad_content = grad[:, :, :, 0]
    grad_weight = torch.einsum('bgci,bgcj->bgij', grad_content, value)
    if value_position:
        grad_position = grad[:, :, :, 1]
        grad_weight = grad_weight + torch.einsum('bgci,cij->bgij', grad_position, positions[2])
        grad_by_value = torch.einsum('bgij,bgci->cij', weight, grad_position)
    grad_value = torch.einsum('bgij,bgci->bgcj', weight, grad_content)

    # the softmax
    grad_logits = torch._softmax_backward_data(grad_weight, weight, 3, weight.dtype)
    # two of the tensors that LIVE counts
    del weight, grad_weight

    # the terms of the logits
    by_term = [grad_logits] * len(terms)
    grad_query, grad_key, grad_tables, grad_scale = _term_gradients(
        by_term, scale, query, key, positions, terms
    )
    shared = _by_distance(torch.cat([*grad_tables, grad_by_value]), relative.shape[1])
    return grad_query, grad_key, grad_value, shared, grad_scale


def _term_gradients(
    grads: Sequence[Tensor],
    scale: Tensor,
    query: Tensor,
    key: Tensor,
    positions: tuple[Tensor, ...],
    terms: Sequence[int],
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Return the gradients of lines, of the tables of pairs and of the scales.

    Args:
        grads: For each term, the gradient (B, N, L, L) of the term times its scale.
        scale: Scales (T, N) of the terms.
        query: Tensor (B, N, E, L).
        key: Tensor (B, N, E, L).
        positions: The tables of :func:`tables`.
        terms: Numbers of the terms.
    """
    grad_query, grad_key, grad_scale = torch.zeros_like(query), torch.zeros_like(key), []
    grad_tables = [torch.zeros_like(positions[0]), torch.zeros_like(positions[1])]
    for index, term in enumerate(terms):
        grad, factor = grads[index], scale[index, :, None, None]
        # A term is linear in ``source``. Its sum with the gradients of the logits, which is the
        # gradient of its scale, is therefore the product of ``source`` and its gradient ``part``.
        if term == 0:
            part, source = torch.einsum('bgij,bgcj->bgci', grad, key), query
            grad_key = grad_key + torch.einsum('bgij,bgci->bgcj', grad, query) * factor
        elif term == 1:
            part, source = torch.einsum('bgij,cij->bgci', grad, positions[0]), query
            grad_tables[0] = torch.einsum('bgij,bgci->cij', grad, query * factor)
        else:
            part, source = torch.einsum('bgij,cij->bgcj', grad, positions[1]), key
            grad_tables[1] = torch.einsum('bgij,bgcj->cij', grad, key * factor)
        grad_scale.append((part * source).sum((0, 2, 3)))
        if term == 2:
            grad_key = grad_key + part * factor
        else:
            grad_query = grad_query + part * factor
    grad_tables[1] = grad_tables[1].transpose(1, 2)
    return grad_query, grad_key, grad_tables, torch.stack(grad_scale)


def _by_distance(entries: Tensor, size: int) -> Tensor:
    """Sum entries (C, L, L) of pairs (i, m) by their distance i - m, as a table (C, size)."""
    channels, length, _ = entries.shape
    distances = 2 * length - 1
    # Skew: rows of 2 L elements, read as rows of 2 L - 1, move by one against the row above. Pairs
    # of equal distance then share a column.
    padded = pad(entries.flip(2), (0, length)).flatten(1)
    skewed = padded[:, : length * distances].view(channels, length, distances)
    sums = skewed.sum(1)
    excess = length - 1 - size // 2
    if excess <= 0:
        return pad(sums, (-excess, -excess))
    # distances beyond the ends of the table took the entry at the end
    first, middle, last = sums.split([excess, size, excess], 1)
    first_entry = pad(first.sum(1, keepdim=True), (0, size - 1))
    last_entry = pad(last.sum(1, keepdim=True), (size - 1, 0))
    return middle + first_entry + last_entry


def moments(
    query: Tensor,
    key: Tensor,
    relative: Tensor,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (T, N) of each term of the logits, over all pairs."""
    dtype = _torch.sum_dtype(query)
    positions = tables(relative.to(dtype), query.shape[2], query.shape[3])
    means, variances, sizes = [], [], []
    for q, k in _chunks(chunk_size(query, budget), query, key):
        values = logits(q.to(dtype), k.to(dtype), positions, terms)
        if span:
            values = values[..., ~outside_span(query.shape[3], span, query.device)]
        # not the mean of squares minus the square of the mean, whose digits cancel
        variance, mean = torch.var_mean(values.flatten(3), (0, 3), correction=0)
        means.append(mean)
        variances.append(variance)
        sizes.append(q.shape[0])
    # of several chunks (Chan et al., 1979)
    share = torch.tensor(sizes, dtype=dtype, device=query.device)[:, None, None]
    share = share / max(1, query.shape[0])
    mean = (share * torch.stack(means)).sum(0)
    deviation = (torch.stack(means) - mean).square()
    return mean, (share * (torch.stack(variances) + deviation)).sum(0)


def moment_gradients(
    offset: Tensor,
    slope: Tensor,
    query: Tensor,
    key: Tensor,
    relative: Tensor,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and table.

    The gradient of an element x of a term is offset + slope * x, with offset and slope (T, N). The
    gradients are differentiable in turn.
    """
    dtype = _torch.sum_dtype(query)
    wide_query, wide_key, table, offset, slope = (
        tensor.to(dtype) for tensor in (query, key, relative, offset, slope)
    )
    positions = tables(table, query.shape[2], query.shape[3])
    by_value = torch.zeros_like(positions[2])
    grad_queries, grad_keys, grad_tables = [], [], []
    for q, k in _chunks(chunk_size(query, budget), wide_query, wide_key):
        by_term = []
        for index, term in enumerate(terms):
            grad = _term(q, k, positions, term) * slope[index, :, None, None]
            grad = grad + offset[index, :, None, None]
            if span:
                grad = grad.masked_fill(outside_span(q.shape[3], span, q.device), 0)
            by_term.append(grad)
        ones = torch.ones_like(slope)
        grad_query, grad_key, by_pair, _ = _term_gradients(by_term, ones, q, k, positions, terms)
        grad_queries.append(grad_query)
        grad_keys.append(grad_key)
        grad_tables.append(torch.cat([*by_pair, by_value]))
    entries = torch.stack(grad_tables).sum(0)
    return (
        torch.cat(grad_queries).to(query.dtype),
        torch.cat(grad_keys).to(key.dtype),
        _by_distance(entries, relative.shape[1]).to(relative.dtype),
    )
