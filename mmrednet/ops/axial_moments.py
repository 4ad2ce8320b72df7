"""Mean and variance of the terms of the logits of attention along lines, which their norm needs in
training. A fused kernel stores no logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _torch, axial_definition, multiply_adds
from .axial import maps, rows
from .dispatch import report_missing_kernel
from .transforms import transformable


def definition(
    lines: Tensor,
    relative: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`moments` in chunks of lines."""
    query, key, _ = rows(lines, key_channels)
    return axial_definition.moments(query, key, relative, terms, span, budget)


def gradients(
    offset: Tensor,
    slope: Tensor,
    lines: Tensor,
    relative: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of lines and table where that of an element x of a term is
    offset + slope * x, with offset and slope (T, N). They are differentiable in turn.
    """
    query, key, value = rows(lines, key_channels)
    options = (terms, span, budget)
    grads = axial_definition.moment_gradients(offset, slope, query, key, relative, *options)
    grad_lines = torch.cat([*grads[:2], torch.zeros_like(value)], 2)
    return maps(grad_lines, lines), grads[2].contiguous()


@transformable(definition)
@custom_op('mmrednet::axial_moments', mutates_args=())
def moments(
    lines: Tensor,
    relative: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (T, N) of each term and head, over all pairs within a span.

    Args:
        lines: Tensor (B, N, 2 E + D, J, L): queries, keys and values of J lines.
        relative: Tensor (2 E + D, 2 T - 1), the tables of relative positions.
        key_channels: Number E of channels of a query.
        terms: Numbers of the terms in ``TERMS``.
        span: Length of the window around a position, or 0 for whole lines.
        budget: Elements that the definition may have at once, as in ``axial_attention``.
    """
    report_missing_kernel('axial_moments', lines)
    return definition(lines, relative, key_channels, terms, span, budget)


@transformable(gradients)
@custom_op('mmrednet::axial_moments_backward', mutates_args=())
def moments_backward(
    offset: Tensor,
    slope: Tensor,
    lines: Tensor,
    relative: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`gradients`."""
    report_missing_kernel('axial_moments_backward', lines)
    options = (key_channels, terms, span, budget)
    grad_lines, grad_relative = gradients(offset, slope, lines, relative, *options)
    return _torch.in_layout_of(lines, grad_lines), grad_relative


@moments.register_fake
def _(
    lines: Tensor,
    relative: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    shape, dtype = (len(terms), lines.shape[1]), _torch.sum_dtype(lines)
    return lines.new_empty(shape, dtype=dtype), lines.new_empty(shape, dtype=dtype)


@moments_backward.register_fake
def _(
    offset: Tensor,
    slope: Tensor,
    lines: Tensor,
    relative: Tensor,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    grad_lines = _torch.empty_in_layout_of(lines, lines.shape, lines.dtype)
    return grad_lines, relative.new_empty(relative.shape)


def elements(lines: Tensor, span: int) -> int:
    """Return the number of elements that :func:`moments` sees for each term and head."""
    return lines.shape[0] * lines.shape[3] * multiply_adds.line_pairs(lines.shape[4], span)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[0])
    ctx.options = inputs[2:]


def _grad(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, ...]:
    lines, relative, mean = ctx.saved_tensors
    recorded = torch.is_grad_enabled()
    if recorded:
        # the output that was saved has no graph of higher derivatives
        mean = moments(lines, relative, *ctx.options)[0]
    # d mean / d x = 1 / n,  d variance / d x = 2 (x - mean) / n
    count = max(1, elements(lines, ctx.options[2]))
    slope = 2 * grad_variance / count
    offset = grad_mean / count - slope * mean
    backward = gradients if recorded else moments_backward
    return *backward(offset, slope, lines, relative, *ctx.options), None, None, None, None


moments.register_autograd(_grad, setup_context=_setup_context)


def _flops(lines: Sequence[int], key_channels: int, terms: Sequence[int], span: int) -> int:
    """Return the multiply-adds of the terms of the logits of lines (B, N, 2 E + D, J, L)."""
    pairs = multiply_adds.line_pairs(lines[4], span) * lines[0] * lines[1] * lines[3]
    return pairs * key_channels * len(terms)


# two per multiply-add, as torch counts
@register_flop_formula(torch.ops.mmrednet.axial_moments)
def _moments_flops(
    lines: Sequence[int],
    relative: Sequence[int],
    key_channels: int,
    terms: Sequence[int],
    span: int,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * _flops(lines, key_channels, terms, span)


# the logits again; then two gradients of each product
@register_flop_formula(torch.ops.mmrednet.axial_moments_backward)
def _backward_flops(
    offset: Sequence[int],
    slope: Sequence[int],
    lines: Sequence[int],
    relative: Sequence[int],
    key_channels: int,
    terms: Sequence[int],
    span: int,
    *_: Any,
    **__: Any,
) -> int:
    return 6 * _flops(lines, key_channels, terms, span)
