"""Position-sensitive attention along a line in one function (Wang et al., ECCV 2020), so that its
logits stay local.

A line of L positions has L^2 logits for each head and each term: on a map of H x W that is H W (H +
W) of them for both axes. The composition works in chunks of lines and its backward pass makes them
again; a fused kernel stores none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton, multiply_adds
from .checks import check_dtype, check_same, check_shape, check_tensors
from .transforms import transformable

TERMS = ('query_key', 'query_position', 'key_position')
# elements that a chunk of lines may need at once for tensors of the size of its logits: 2^24 are 64
# MiB in float32, which a CPU reads faster than more; a GPU is filled by larger chunks alone
LOGITS_BUDGET = {'cpu': 1 << 24, 'cuda': 1 << 27}
# so many of them there are at most: weights, their gradients, what a product has in another order,
# and its result
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

        result[b, n, d, 0, i] = sum over m of  weight[i, m] * value[b, n, d, m] result[b, n, d, 1,
        i] = sum over m of  weight[i, m] * rv[d, i - m] weight[i, m] = softmax over m of the sum
        over terms t of  scale[t, n] * logit_t[i, m] + shift[t, n]

    with the logits  q . key[m],  q . rq[i - m]  and  key[m] . rk[m - i]  for q = query[b, n, :, i]
    (equation 4). Distances beyond the ends of the tables take the value at the end. Gradients reach
    all tensors; that of ``shift``, which moves all logits of a position alike, is zero.

    Args:
        query: (B, N, E, L), lines of N heads.
        key: (B, N, E, L).
        value: (B, N, D, L).
        relative: (2 E + D, 2 T - 1): rq, rk and rv for the distances from 1 - T to T - 1.
        scale: (terms, N), of a norm of the logits; so is ``shift``.
        shift: (terms, N).
        terms: which of 'query_key', 'query_position' and 'key_position' are in the logits, in this
            order.
        span: positions further than span / 2 apart do not attend to each other; None: all do.
        value_position: whether the second part of the result is there.
        logits_budget: Elements of all tensors of the size of the logits that the composition has at
            once. By default 2^24 on a CPU and 2^27 on a GPU.

    Returns:
        (B, N, D, 2, L), or (B, N, D, 1, L) without positions of values, in the dtype of ``value``.

    Raises:
        TypeError: an argument is not a floating-point tensor, key, value or relative has another
            dtype than query, or span is no int.
        ValueError: a shape does not match, lines are empty, span is not positive, or a term has no
            such name.
    """
    query, key, value, relative = check_tensors(
        query=(query, 4), key=(key, 4), value=(value, 4), relative=(relative, 2)
    )
    check_dtype('query', query, key=key, value=value, relative=relative)
    _check_lines(query, span)
    # not cast under autocast: they are made of the statistics of a norm
    for name, tensor in (('scale', scale), ('shift', shift)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f'{name} must be a floating-point tensor, got {got}.')
        if tensor.device != query.device:
            raise ValueError(
                f'query and {name} must be on one device, got {query.device} and {tensor.device}.'
            )
    check_same('query', query, 'key', key, dims=3)
    check_shape('key', key, 'of the shape of query', query.shape)
    check_same('key', key, 'value', value, dims=2)
    check_shape(
        'value',
        value,
        '(batch, heads, channels, length)',
        (*query.shape[:2], value.shape[2], query.shape[3]),
    )
    check_shape(
        'relative',
        relative,
        '(2 * key channels + value channels, odd)',
        (2 * key.shape[2] + value.shape[2], relative.shape[1] | 1),
    )
    numbers = [index for index, name in enumerate(TERMS) if name in terms]
    if not numbers or [TERMS[index] for index in numbers] != list(terms):
        raise ValueError(f'terms must be some of {TERMS}, in this order, got {terms=}.')
    for name, tensor in (('scale', scale), ('shift', shift)):
        check_shape(name, tensor, '(terms, heads)', (len(numbers), query.shape[1]))
    budget = default_budget(query) if logits_budget is None else logits_budget
    return attention(
        query, key, value, relative, scale, shift, numbers, span or 0, value_position, budget
    )


def _check_lines(query: Tensor, span: int | None) -> None:
    if 0 in query.shape[1:]:
        raise ValueError(
            'query must have at least one head, channel and position, got '
            f'query.shape={tuple(query.shape)}.'
        )
    if span is None:
        return
    if not isinstance(span, int) or isinstance(span, bool):
        raise TypeError(f'span must be an int or None, got {span=}.')
    if span < 1:
        raise ValueError(f'span must be at least 1, or None for whole lines, got {span=}.')


def default_budget(tensor: Tensor) -> int:
    """Return how many elements of the size of the logits a chunk may need on a tensor's device."""
    return LOGITS_BUDGET['cuda' if tensor.is_cuda else 'cpu']


def tables(relative: Tensor, channels: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rq and rk (E, L, L) and rv (D, L, L), with entry (i, m) for attending i and attended
    m.
    """
    query, key, value = relative[:, _distances(relative, length)].split(
        [channels, channels, relative.shape[0] - 2 * channels]
    )
    # keys look at the same table from their side
    return query, key.transpose(1, 2), value


def _distances(relative: Tensor, length: int) -> Tensor:
    """Return (L, L), where in a table the distance i - m is found."""
    end = relative.shape[1] // 2
    place = torch.arange(length, device=relative.device)
    return (place[:, None] - place).clamp(-end, end) + end


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
    """Return the weights (B, N, L, L) of lines (B, N, E, L), in float32 or wider; one term lives at
    a time.
    """
    total = shift.sum(0)[:, None, None]
    for index, term in enumerate(terms):
        total = total + _term(query, key, positions, term) * scale[index, :, None, None]
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    if span:
        place = torch.arange(total.shape[-1], device=total.device)
        total = total.masked_fill((place[:, None] - place).abs() > span // 2, -torch.inf)
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
    """Compute :func:`axial_attention` by way of stored weights of all lines."""
    positions = tables(relative, query.shape[2], query.shape[3])
    weight = _weights(query, key, positions, scale, shift, terms, span).to(value.dtype)
    parts = [torch.einsum('bgij,bgcj->bgci', weight, value)]
    if value_position:
        parts.append(torch.einsum('bgij,cij->bgci', weight, positions[2].to(value.dtype)))
    return torch.stack(parts, 3)


def chunk_size(lines: Tensor, budget: int, live: int = LIVE) -> int:
    """Return how many of lines (B, N, C, L) have ``live`` tensors of (N, L, L) each within a budget
    of elements.

    It is one at least.
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
    """Compute :func:`axial_attention` chunk by chunk: what every fused kernel is compared with."""
    return torch.cat(
        [
            mix(q, k, v, relative, scale, shift, terms, span, value_position)
            for q, k, v in _chunks(chunk_size(query, budget), query, key, value)
        ]
    ).contiguous()


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
    """Return the gradients of :func:`definition` for its first five tensors; differentiable in
    turn.

    Logits and weights are made again, for one chunk of lines at a time.
    """
    found = [
        _gradients(g, q, k, v, relative, scale, shift, terms, span, value_position)
        for g, q, k, v in _chunks(chunk_size(query, budget), grad, query, key, value)
    ]
    lines = [torch.cat(parts) for parts in zip(*(item[:3] for item in found), strict=True)]
    shared = [
        torch.stack(parts).sum(0) for parts in zip(*(item[3:] for item in found), strict=True)
    ]
    return tuple(
        made.to(tensor.dtype).contiguous()
        for made, tensor in zip(
            (*lines, *shared), (query, key, value, relative, scale), strict=True
        )
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
    dtype = _torch.sum_dtype(query, value)
    grad, query, key, value, relative, scale, shift = (
        tensor.to(dtype) for tensor in (grad, query, key, value, relative, scale, shift)
    )
    by_query, by_key, by_value = positions = tables(relative, query.shape[2], query.shape[3])
    weight = _weights(query, key, positions, scale, shift, terms, span)
    grad_tables = [torch.zeros_like(table) for table in positions]
    grad_weight = torch.einsum('bgci,bgcj->bgij', grad[:, :, :, 0], value)
    if value_position:
        grad_weight = grad_weight + torch.einsum('bgci,cij->bgij', grad[:, :, :, 1], by_value)
        grad_tables[2] = torch.einsum('bgij,bgci->cij', weight, grad[:, :, :, 1])
    grad_value = torch.einsum('bgij,bgci->bgcj', weight, grad[:, :, :, 0])
    grad_logits = torch._softmax_backward_data(grad_weight, weight, 3, weight.dtype)
    del weight, grad_weight
    grad_query, grad_key, grad_scale = torch.zeros_like(query), torch.zeros_like(key), []
    for index, term in enumerate(terms):
        factor = scale[index, :, None, None]
        # a term is linear in what it has a gradient for, so that their product is the sum that its
        # scale needs
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
    """Add up entries (C, L, L) for i and m by their distance i - m, as a table (C, size) knows
    it."""
    channels, length, _ = entries.shape
    # rows of 2 L, read as rows of 2 L - 1: each moves by one against the row above it
    skewed = torch.nn.functional.pad(entries.flip(2), (0, length)).flatten(1)[
        :, : length * (2 * length - 1)
    ]
    sums = skewed.view(channels, length, 2 * length - 1).sum(1)
    beyond = length - 1 - size // 2
    if beyond <= 0:
        return torch.nn.functional.pad(sums, (-beyond, -beyond))
    first, within, last = sums.split([beyond, size, beyond], 1)
    pad = torch.nn.functional.pad
    return (
        within
        + pad(first.sum(1, keepdim=True), (0, size - 1))
        + pad(last.sum(1, keepdim=True), (size - 1, 0))
    )


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
    """See :func:`axial_attention`; what it is given has been checked."""
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
    made = gradients(
        grad, query, key, value, relative, scale, shift, terms, span, value_position, budget
    )
    return made[0], made[1], made[2], made[3], made[4]


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
    # higher derivatives go through torch's own operators, which know theirs
    backward = gradients if torch.is_grad_enabled() else attention_backward
    inputs = ctx.saved_tensors
    grads = backward(grad, *inputs, *ctx.options)
    # a softmax is the same with any shift
    return *grads, torch.zeros_like(inputs[5]), None, None, None, None


attention.register_autograd(_grad, setup_context=_setup_context)


# two per multiply-add, as torch counts, of all pairs of positions
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


# the logits again; then two products for every one
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
    once = multiply_adds.axial_attention(query, value, len(terms), value_position).total()
    again = query[0] * query[1] * query[3] ** 2 * len(terms) * query[2]
    return 2 * (again + 2 * once)
