"""Position-sensitive attention along a line in one function (Wang et al., ECCV 2020).

The operators take the lines of a map as they lie in memory: queries, keys and values in one tensor
(B, N, 2 E + D, J, L) with J lines of L positions, whose strides are those of any layout. A fused
kernel stores no logits. axial_definition.py has the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton, axial_definition, multiply_adds
from .axial_definition import TERMS, default_budget
from .checks import check_dtype, check_same, check_shape, check_tensors
from .tracing import leaf_function
from .transforms import transformable


@leaf_function
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
    # each line is an image of one line
    lines = torch.cat([query, key, value], 2).unsqueeze(3)
    options = (query.shape[2], numbers, span or 0, value_position, budget)
    result = attention(lines, relative, scale, shift, None, *options)
    return result.squeeze(3).unflatten(2, (value.shape[2], -1))


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


def rows(lines: Tensor, key_channels: int) -> list[Tensor]:
    """Return queries, keys and values (B * J, N, ..., L) of lines (B, N, 2 E + D, J, L)."""
    flat = lines.movedim(3, 1).flatten(0, 1)
    value_channels = lines.shape[2] - 2 * key_channels
    return list(flat.split([key_channels, key_channels, value_channels], 2))


def maps(rows: Tensor, like: Tensor) -> Tensor:
    """Return the inverse of :func:`rows`: lines with the images of ``like``."""
    return rows.unflatten(0, (like.shape[0], like.shape[3])).movedim(1, 3)


def definition(
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    position_scale: Tensor | None,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Tensor:
    """Compute :func:`attention` in chunks of lines."""
    query, key, value = rows(lines, key_channels)
    options = (terms, span, value_position, budget)
    mixed = axial_definition.definition(query, key, value, relative, scale, shift, *options)
    if position_scale is not None:
        content, position = mixed.unbind(3)
        mixed = content + position * position_scale.to(content.dtype)[:, :, None]
    else:
        mixed = mixed.flatten(2, 3)
    return maps(mixed, lines)


def gradients(
    grad: Tensor,
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of lines, relative and scale, of :func:`attention` without a scale of
    positions. They are differentiable in turn.
    """
    query, key, value = rows(lines, key_channels)
    # (B * J, N, D, parts, L)
    grad = grad.movedim(3, 1).flatten(0, 1).unflatten(2, (value.shape[2], -1))
    options = (terms, span, value_position, budget)
    grads = axial_definition.gradients(grad, query, key, value, relative, scale, *options)
    return maps(torch.cat(grads[:3], 2), lines), grads[3], grads[4]


def dense_definition(lines: Tensor, *arguments: Any) -> Tensor:
    """Return :func:`definition` with the strides of the fake tensor of ``attention``."""
    return _torch.in_layout_of(lines, definition(lines, *arguments))


def dense_gradients(grad: Tensor, lines: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return :func:`gradients` with the strides of the fakes of ``attention_backward``."""
    grad_lines, grad_relative, grad_scale = gradients(grad, lines, *arguments)
    return _torch.in_layout_of(lines, grad_lines), grad_relative, grad_scale


@transformable(definition)
@custom_op('mmrednet::axial_attention', mutates_args=())
def attention(
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    position_scale: Tensor | None,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Tensor:
    """Compute :func:`axial_attention` of lines in any layout. The arguments have been checked.

    Args:
        lines: Tensor (B, N, 2 E + D, J, L): queries, keys and values of J lines.
        relative: Tensor (2 E + D, 2 T - 1).
        scale: Tensor (terms, N).
        shift: Tensor (terms, N). The softmax does not depend on it.
        position_scale: Tensor (N, D), or None. With it the result is the sum of the part of
            content and of the part of positions times this scale. ``value_position`` must be True.
        key_channels: Number E of channels of a query.
        terms: Numbers of the terms in ``TERMS``.
        span: Length of the window around a position, or 0 for whole lines.
        value_position: If True, the result has the part of positions.
        budget: See ``logits_budget``.

    Returns:
        (B, N, D * parts, J, L), in the memory order of ``lines``. The parts of a channel lie
        together.
    """
    return dense_definition(
        lines,
        relative,
        scale,
        shift,
        position_scale,
        key_channels,
        terms,
        span,
        value_position,
        budget,
    )


@transformable(gradients)
@custom_op('mmrednet::axial_attention_backward', mutates_args=())
def attention_backward(
    grad: Tensor,
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`gradients`."""
    return dense_gradients(
        grad, lines, relative, scale, key_channels, terms, span, value_position, budget
    )


_triton.register('axial', attention=(attention, dense_definition))
_triton.register('axial_backward', attention_backward=(attention_backward, dense_gradients))


@attention.register_fake
def _(
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    position_scale: Tensor | None,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Tensor:
    channels = lines.shape[2] - 2 * key_channels
    parts = 2 if value_position and position_scale is None else 1
    shape = (*lines.shape[:2], channels * parts, *lines.shape[3:])
    return _torch.empty_in_layout_of(lines, shape, lines.dtype)


@attention_backward.register_fake
def _(
    grad: Tensor,
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> tuple[Tensor, ...]:
    grad_lines = _torch.empty_in_layout_of(lines, lines.shape, lines.dtype)
    return grad_lines, relative.new_empty(relative.shape), scale.new_empty(scale.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    lines, relative, scale, shift, position_scale = ctx.saved_tensors
    grad_positions = None
    if position_scale is not None:
        parts = attention(lines, relative, scale, shift, None, *ctx.options)
        positions = parts.unflatten(2, (-1, 2))[:, :, :, 1]
        grad_positions = (grad * positions).sum((0, 3, 4), dtype=position_scale.dtype)
        factor = position_scale.to(grad.dtype)[:, :, None, None]
        grad = torch.stack([grad, grad * factor], 3).flatten(2, 3)
    # a backward pass that is recorded, for higher derivatives, must be made of differentiable ops
    backward = gradients if torch.is_grad_enabled() else attention_backward
    grads = backward(grad, lines, relative, scale, *ctx.options)
    # a softmax does not change with a shift: the gradient is zero
    return *grads, torch.zeros_like(shift), grad_positions, None, None, None, None, None


attention.register_autograd(_grad, setup_context=_setup_context)


def lines_count(
    lines: Sequence[int], key_channels: int, terms: int, span: int, value_position: bool
) -> int:
    """Return the multiply-adds of :func:`attention` for lines of a shape (B, N, 2 E + D, J, L)."""
    batch, heads, channels, count, length = lines
    query = (batch * count, heads, key_channels, length)
    value = (batch * count, heads, channels - 2 * key_channels, length)
    return multiply_adds.axial_attention(query, value, terms, value_position, span).total()


# two per multiply-add, as torch counts
@register_flop_formula(torch.ops.mmrednet.axial_attention)
def _flops(
    lines: Sequence[int],
    relative: Sequence[int],
    scale: Sequence[int],
    shift: Sequence[int],
    position_scale: Sequence[int] | None,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * lines_count(lines, key_channels, len(terms), span, value_position)


# the logits again; then two gradients of each product
@register_flop_formula(torch.ops.mmrednet.axial_attention_backward)
def _flops_backward(
    grad: Sequence[int],
    lines: Sequence[int],
    relative: Sequence[int],
    scale: Sequence[int],
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    *_: Any,
    **__: Any,
) -> int:
    forward = lines_count(lines, key_channels, len(terms), span, value_position)
    pairs = multiply_adds.line_pairs(lines[4], span) * lines[0] * lines[1] * lines[3]
    return 2 * (pairs * len(terms) * key_channels + 2 * forward)
