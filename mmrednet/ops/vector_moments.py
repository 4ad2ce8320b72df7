"""Mean and variance of what the norms of vector attention see, for training.

The norms inside gamma look at the features of all neighbours before any of them is used. A fused
kernel computes the features tile by tile and stores none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton
from .precision import full_precision
from .tracing import leaf_function
from .transforms import is_transformed, recorded, transformable
from .vector_attention import differentiate
from .vector_mapping import (
    Options,
    by_chunks,
    check_inputs,
    chunk_features,
    has_kernel,
    norm_relu,
    pointwise,
)
from .vector_relations import find_relation
from .window import Window


@leaf_function
def vector_statistics(
    query: Tensor,
    key: Tensor,
    window: Window,
    *,
    relation: str,
    patchwise: bool = False,
    position_channels: int = 0,
    first_layer: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the features of :func:`local_vector_attention`.

    With the first layer of gamma they are those of the hidden features, before their norm.

    Args:
        query: Tensor (B, R + P, Ho, Wo).
        key: Tensor (B, R + P, H, W).
        window: Window over the map. ``window.output_size(H, W)`` must be (Ho, Wo).
        relation: Name of the relation.
        patchwise: If True, the relation is one of a whole patch. Default: False.
        position_channels: Number P of channels, the last ones, of which the difference is taken.
            Default: 0.
        first_layer: Scale (F,), shift (F,) and weight (M, F), or None. Default: None.

    Returns:
        Mean and variance, of shape (F,) or (M,), in float32 or wider. They are NaN for an empty
        batch.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match, or there is no such relation.
    """
    query, key = check_inputs(query, key, window)
    scale, shift, weight = (None, None, None) if first_layer is None else first_layer
    options = Options(relation, patchwise, position_channels, list(window))
    run = moments if has_kernel('vector_moments', query, options) else definition
    return run(query, key, scale, shift, weight, *options)


def definition(
    query: Tensor,
    key: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Compute :func:`vector_statistics` from stored features of one chunk of rows at a time."""
    dtype = _torch.sum_dtype(query, key)
    query, key = query.to(dtype), key.to(dtype)
    options = Options(relation, patchwise, position_channels, list(window))
    stored = query.shape[1] if weight is None else sum(weight.shape)

    def compute(rows: tuple[int, int]) -> tuple[Tensor, Tensor, float]:
        x = chunk_features(query, key, options, rows)
        if scale is not None and shift is not None and weight is not None:
            x = pointwise(weight.to(dtype), norm_relu(x, scale.to(dtype), shift.to(dtype)))
        # not the mean of squares minus the square of the mean, whose digits cancel
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return mean, variance, (rows[1] - rows[0]) / query.shape[2]

    with full_precision(query.device.type):
        parts = by_chunks(compute, query, stored, options)
    mean = torch.stack([share * part_mean for part_mean, _, share in parts]).sum(0)
    # Chan et al., 1979
    variances = []
    for part_mean, part_variance, share in parts:
        variances.append(share * (part_variance + (part_mean - mean).square()))
    return mean, torch.stack(variances).sum(0)


@transformable(definition)
@custom_op('mmrednet::vector_moments', mutates_args=())
def moments(
    query: Tensor,
    key: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See :func:`definition`. The arguments have been checked, and there is a kernel for them."""
    options = (relation, patchwise, position_channels, window)
    return definition(query, key, scale, shift, weight, *options)


def _of_tensors(options: Sequence[Any]) -> Callable:
    """Return :func:`definition` as a function of the tensors that are not None."""

    def function(query: Tensor, key: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
        scale, shift, weight = layer or (None, None, None)
        return definition(query, key, scale, shift, weight, *options)

    return function


def gradients(
    grad_mean: Tensor, grad_variance: Tensor, mean: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`definition` for its five tensors, by torch's autograd.

    Empty tensors stand for the gradients of tensors that are None.
    """
    tensors, options = arguments[:5], arguments[5:]
    present = [tensor for tensor in tensors if tensor is not None]
    with recorded():
        grads = differentiate(_of_tensors(options), [grad_mean, grad_variance], present)
    # with the strides that the op promises
    maps = [_torch.in_layout_of(x, grad) for x, grad in zip(present[:2], grads[:2], strict=True)]
    parameters = [grad.contiguous() for grad in grads[2:]]
    absent = [present[0].new_empty(0) for _ in tensors[len(present) :]]
    outputs = [*maps, *parameters, *absent]
    grad_query, grad_key, grad_scale, grad_shift, grad_weight = outputs
    return grad_query, grad_key, grad_scale, grad_shift, grad_weight


@custom_op('mmrednet::vector_moments_backward', mutates_args=())
def moments_backward(
    grad_mean: Tensor,
    grad_variance: Tensor,
    mean: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`gradients`."""
    layer, options = (scale, shift, weight), (relation, patchwise, position_channels, window)
    return gradients(grad_mean, grad_variance, mean, query, key, *layer, *options)


_triton.register(
    'vector_moments',
    moments=(moments, definition),
    moments_backward=(moments_backward, gradients),
)


@moments.register_fake
def _(
    query: Tensor,
    key: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    if weight is None:
        kernel_h, kernel_w, *_ = window
        delta = find_relation(relation, patchwise)
        count = delta.feature_count(query.shape[1] - position_channels, kernel_h * kernel_w)
        count += position_channels
    else:
        count = weight.shape[0]
    mean, variance = (query.new_empty(count, dtype=_torch.sum_dtype(query, key)) for _ in range(2))
    return mean, variance


@moments_backward.register_fake
def _(grad_mean: Tensor, grad_variance: Tensor, mean: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    query, key, *parameters = inputs[:5]
    grads = [_torch.empty_in_layout_of(x, x.shape, x.dtype) for x in (query, key)]
    for parameter in parameters:
        grads.append(query.new_empty(0) if parameter is None else torch.empty_like(parameter))
    return tuple(grads)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, relation, patchwise, position_channels, window = inputs
    ctx.options = (relation, patchwise, position_channels, window)
    ctx.save_for_backward(output[0], *tensors)


def _grad(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    mean, *tensors = ctx.saved_tensors
    # a backward pass that is recorded, for higher derivatives, must be made of differentiable ops
    if torch.is_grad_enabled() or is_transformed(grads):
        present = [tensor for tensor in tensors if tensor is not None]
        results = differentiate(_of_tensors(ctx.options), grads, present)
    else:
        results = moments_backward(*grads, mean, *tensors, *ctx.options)
    needed = zip(results, ctx.needs_input_grad, strict=False)
    needed_grads = [tensor if is_needed else None for tensor, is_needed in needed]
    return *needed_grads, *(None for _ in range(9 - len(needed_grads)))


moments.register_autograd(_grad, setup_context=_setup_context)


# two per multiply-add of the first layer, as torch counts
@register_flop_formula(torch.ops.mmrednet.vector_moments)
def _flops(query: Sequence[int], *arguments: Any, **_: Any) -> int:
    weight, window, patchwise = arguments[3], arguments[7], arguments[5]
    if weight is None:
        return 0
    vectors = 1 if patchwise else window[0] * window[1]
    return 2 * query[0] * math.prod(query[2:]) * vectors * math.prod(weight)


# hidden features again, and the gradients of features and weight
@register_flop_formula(torch.ops.mmrednet.vector_moments_backward)
def _flops_backward(*arguments: Any, **_: Any) -> int:
    return 3 * _flops(*arguments[3:])
