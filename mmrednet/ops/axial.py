"""Position-sensitive attention along a line in one function (Wang et al., ECCV 2020).

A line of L positions has L^2 logits for each head and each term. On a map of H x W both axes have
H W (H + W) of them. The definition works on chunks of lines, and its backward pass computes the
logits again. A fused kernel stores none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton, multiply_adds
from .checks import check_dtype, check_same, check_shape, check_tensors
from .dispatch import report_missing_kernel
from .transforms import transformable

TERMS = ('query_key', 'query_position', 'key_position')
# Elements of all tensors of the size of the logits that a chunk of lines may have at once. 2^24 are
# 64 MiB in float32: smaller working sets are faster on a CPU, whereas a GPU needs larger chunks to
# be filled.
LOGITS_BUDGET = {'cpu': 1 << 24, 'cuda': 1 << 27}
# Tensors of the size of the logits that are alive at once, at most: weights, their gradients, the
# factors that a product reorders, and its result.
LIVE = 5


def axial_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    terms: Sequence[str] = TERMS,
    span: int | None = None,
    value_position: bool = True,
    logits_budget: int | None = None,
) -> Tensor:
    r"""Attend along lines, with positions among the logits and among the values.

        result[b, n, d, 0, i] = sum over m of  weight[i, m] * value[b, n, d, m]
        result[b, n, d, 1, i] = sum over m of  weight[i, m] * rv[d, i - m]
        weight[i, m] = softmax over m of  logits[i, m]
        logits[i, m] = sum over terms t of  scale[t, n] * term_t[i, m] + shift[t, n]

    with the terms  q . key[m],  q . rq[i - m]  and  key[m] . rk[m - i]  for q = query[b, n, :, i]
    (equation 4). Distances beyond the ends of the tables take the entry at the end. Gradients reach
    all tensors. That of ``shift`` is zero, since it moves all logits of a position alike.

    Args:
        query: Tensor (B, N, E, L), lines of N heads.
        key: Tensor (B, N, E, L).
        value: Tensor (B, N, D, L).
        relative: Tensor (2 E + D, 2 T - 1): the tables rq, rk and rv for the distances from 1 - T
            to T - 1.
        scale: Tensor (terms, N), the scale of a norm of each term.
        shift: Tensor (terms, N), the shift of a norm of each term.
        terms: Terms of the logits: some of 'query_key', 'query_position' and 'key_position', in
            this order. Default: all of them.
        span: Length of the window around a position. Positions that are further than span // 2
            apart have no weight. Default: None, which is the whole line.
        value_position: If True, the second part of the result is computed. Default: True.
        logits_budget: Elements of all tensors of the size of the logits that the definition may
            have at once. Default: 2^24 on a CPU and 2^27 on a GPU.

    Returns:
        (B, N, D, 2, L), or (B, N, D, 1, L) without positions of values, in the dtype of ``value``.

    Raises:
        TypeError: An argument is not a floating-point tensor, key, value or relative has another
            dtype than query, or span is no int.
        ValueError: A shape does not match, lines are empty, span is not positive, or there is no
            term of a name.
    """
    query, key, value, relative = check_tensors(
        query=(query, 4), key=(key, 4), value=(value, 4), relative=(relative, 2)
    )
    check_dtype('query', query, key=key, value=value, relative=relative)
    _check_lines(query, key, value, relative)
    _check_span(span)
    _check_norm(query, scale=scale, shift=shift)
    numbers = [index for index, name in enumerate(TERMS) if name in terms]
    if not numbers or [TERMS[index] for index in numbers] != list(terms):
        raise ValueError(f'terms must be some of {TERMS}, in this order, got {terms=}.')
    for name, tensor in (('scale', scale), ('shift', shift)):
        check_shape(name, tensor, '(terms, heads)', (len(numbers), query.shape[1]))
    budget = default_budget(query) if logits_budget is None else logits_budget
    return attention(
        query, key, value, relative, scale, shift, numbers, span or 0, value_position, budget
    )


def _check_lines(query: Tensor, key: Tensor, value: Tensor, relative: Tensor) -> None:
    if 0 in query.shape[1:]:
        raise ValueError(
            'query must have at least one head, channel and position, got '
            f'query.shape={tuple(query.shape)}.'
        )
    check_same('query', query, 'key', key, dims=3)
    check_shape('key', key, 'of the shape of query', query.shape)
    check_same('key', key, 'value', value, dims=2)
    batch, heads, key_channels, length = query.shape
    value_channels = value.shape[2]
    value_shape = (batch, heads, value_channels, length)
    check_shape('value', value, '(batch, heads, channels, length)', value_shape)
    # an odd number of distances: as many on each side of zero
    table_shape = (2 * key_channels + value_channels, relative.shape[1] | 1)
    check_shape('relative', relative, '(2 * key channels + value channels, odd)', table_shape)


def _check_span(span: int | None) -> None:
    if span is None:
        return
    if not isinstance(span, int) or isinstance(span, bool):
        raise TypeError(f'span must be an int or None, got {span=}.')
    if span < 1:
        raise ValueError(f'span must be at least 1, or None for whole lines, got {span=}.')


def _check_norm(query: Tensor, **tensors: Tensor) -> None:
    # not cast under autocast: they are made of the statistics of a norm
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            dtype = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f'{name} must be a floating-point tensor, got {dtype}.')
        if tensor.device != query.device:
            raise ValueError(
                f'query and {name} must be on one device, got {query.device} and {tensor.device}.'
            )


def default_budget(tensor: Tensor) -> int:
    """Return the default ``logits_budget`` of :func:`axial_attention` for a tensor's device."""
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
        position = torch.arange(total.shape[-1], device=total.device)
        distance = (position[:, None] - position).abs()
        total = total.masked_fill(distance > span // 2, -torch.inf)
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
    """Compute :func:`axial_attention` from stored weights of all lines."""
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
    """Compute :func:`axial_attention` in chunks. Every fused kernel is tested against it."""
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
    shift: Tensor,
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
        chunks.append(_gradients(g, q, k, v, relative, scale, shift, terms, span, value_position))
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
    shift: Tensor,
    terms: Sequence[int],
    span: int,
    value_position: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of one chunk, in float32 or wider."""
    dtype = _torch.sum_dtype(query, value)
    grad, query, key, value, relative, scale, shift = (
        tensor.to(dtype) for tensor in (grad, query, key, value, relative, scale, shift)
    )
    by_query, by_key, by_value = positions = tables(relative, query.shape[2], query.shape[3])
    weight = _weights(query, key, positions, scale, shift, terms, span)
    grad_tables = [torch.zeros_like(table) for table in positions]

    # the weighted sums
    grad_content = grad[:, :, :, 0]
    grad_weight = torch.einsum('bgci,bgcj->bgij', grad_content, value)
    if value_position:
        grad_position = grad[:, :, :, 1]
        grad_weight = grad_weight + torch.einsum('bgci,cij->bgij', grad_position, by_value)
        grad_tables[2] = torch.einsum('bgij,bgci->cij', weight, grad_position)
    grad_value = torch.einsum('bgij,bgci->bgcj', weight, grad_content)

    # the softmax
    grad_logits = torch._softmax_backward_data(grad_weight, weight, 3, weight.dtype)
    # two of the tensors that LIVE counts
    del weight, grad_weight

    # the terms of the logits
    grad_query, grad_key, grad_scale = torch.zeros_like(query), torch.zeros_like(key), []
    for index, term in enumerate(terms):
        factor = scale[index, :, None, None]
        # A term is linear in ``source``. Its sum with the gradients of the logits, which is the
        # gradient of its scale, is therefore the product of ``source`` and its gradient ``part``.
        if term == 0:
            part, source = torch.einsum('bgij,bgcj->bgci', grad_logits, key), query
            grad_key = grad_key + torch.einsum('bgij,bgci->bgcj', grad_logits, query) * factor
        elif term == 1:
            part, source = torch.einsum('bgij,cij->bgci', grad_logits, by_query), query
            grad_tables[0] = torch.einsum('bgij,bgci->cij', grad_logits, query * factor)
        else:
            part, source = torch.einsum('bgij,cij->bgcj', grad_logits, by_key), key
            grad_tables[1] = torch.einsum('bgij,bgcj->cij', grad_logits, key * factor)
        grad_scale.append((part * source).sum((0, 2, 3)))
        if term == 2:
            grad_key = grad_key + part * factor
        else:
            grad_query = grad_query + part * factor
    grad_tables[1] = grad_tables[1].transpose(1, 2)
    shared = _by_distance(torch.cat(grad_tables), relative.shape[1])
    return grad_query, grad_key, grad_value, shared, torch.stack(grad_scale)


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


@transformable(definition)
@custom_op('mmrednet::axial_attention', mutates_args=())
def attention(
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
    """See :func:`axial_attention`. The arguments have been checked."""
    return definition(
        query, key, value, relative, scale, shift, terms, span, value_position, budget
    )


@transformable(gradients)
@custom_op('mmrednet::axial_attention_backward', mutates_args=())
def attention_backward(
    grad: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`gradients`."""
    report_missing_kernel('axial_attention_backward', grad)
    grads = gradients(
        grad, query, key, value, relative, scale, shift, terms, span, value_position, budget
    )
    # the schema of the op is read from a tuple of five tensors
    return grads[0], grads[1], grads[2], grads[3], grads[4]


_triton.register('axial', attention=(attention, definition))


@attention.register_fake
def _(
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
    return value.new_empty((*value.shape[:3], 2 if value_position else 1, value.shape[3]))


@attention_backward.register_fake
def _(
    grad: Tensor,
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
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value, relative, scale))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # a backward pass that is recorded, for higher derivatives, must be made of differentiable ops
    backward = gradients if torch.is_grad_enabled() else attention_backward
    inputs = ctx.saved_tensors
    grads = backward(grad, *inputs, *ctx.options)
    # a softmax does not change with a shift: the gradient is zero
    return *grads, torch.zeros_like(inputs[5]), None, None, None, None


attention.register_autograd(_grad, setup_context=_setup_context)


# two per multiply-add, as torch counts; a span does not reduce the count
@register_flop_formula(torch.ops.mmrednet.axial_attention)
def _flops(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    relative: Sequence[int],
    scale: Sequence[int],
    shift: Sequence[int],
    terms: Sequence[int],
    span: int,
    value_position: bool,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * multiply_adds.axial_attention(query, value, len(terms), value_position).total()


# the logits again; then two gradients of each product
@register_flop_formula(torch.ops.mmrednet.axial_attention_backward)
def _flops_backward(
    grad: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    relative: Sequence[int],
    scale: Sequence[int],
    shift: Sequence[int],
    terms: Sequence[int],
    span: int,
    value_position: bool,
    *_: Any,
    **__: Any,
) -> int:
    forward = multiply_adds.axial_attention(query, value, len(terms), value_position).total()
    logits_count = query[0] * query[1] * query[3] ** 2 * len(terms) * query[2]
    return 2 * (logits_count + 2 * forward)
