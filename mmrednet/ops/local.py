"""Arithmetic over a sliding window: three faces of one trilinear form.

    T(q, k, w) = sum over b, g, d, i, j of  w[b, g, j, i] * q[b, g, d, i] * k[b, g, d, i + j]

``local_correlate`` is dT/dw, ``local_aggregate`` is dT/dq and ``local_scatter`` is dT/dk. The
gradient of each is made of the other two.

In the shapes B is the batch, G the groups, D the channels of a group, K the taps of the window,
(H, W) the map and (Ho, Wo) the output positions. Tensors may have any strides. Groups of contiguous
channels are the view ``x.unflatten(1, (G, D))``, groups of interleaved channels are
``x.unflatten(1, (D, G)).transpose(1, 2)``.

Sums are taken in float32 or wider. Results have the dtype and the memory layout of the first
argument. Autocast casts float32 arguments as it casts those of a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _native, _torch, _triton, multiply_adds, transforms
from .checks import check_outputs, check_same, check_taps, check_tensors
from .residues import has_residues, over_residues
from .tracing import leaf_function
from .transforms import transformable
from .window import Window

__all__ = ['active_kernels', 'local_aggregate', 'local_correlate', 'local_scatter']


@leaf_function
def local_aggregate(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Sum the neighbours of every position, each times its own weight.

        result[b, g, d, i] = sum over j of  weight[b, g, j, i] * value[b, g, d, i + j]

    Args:
        value: Tensor (B, G, D, H, W). The D channels of a group share their weights.
        weight: Tensor (B, G, K, Ho, Wo), one weight per tap of the window.
        window: Window over the map. ``window.output_size(H, W)`` must be (Ho, Wo).

    Returns:
        (B, G, D, Ho, Wo).

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match.
    """
    value, weight = check_tensors(value=(value, 5), weight=(weight, 5))
    check_taps('weight', weight, window)
    check_same('value', value, 'weight', weight, dims=2)
    check_outputs('weight', weight, 'value', value.shape[-2:], window)
    if has_residues(window):
        return over_residues(_aggregate_part, (value, weight), window)
    return aggregate(value, weight, list(window))


@leaf_function
def local_correlate(query: Tensor, key: Tensor, window: Window) -> Tensor:
    """Multiply every position with each of its neighbours, which gives the logits of attention.

        result[b, g, j, i] = sum over d of  query[b, g, d, i] * key[b, g, d, i + j]

    Args:
        query: Tensor (B, G, D, Ho, Wo).
        key: Tensor (B, G, D, H, W).
        window: Window over the map. ``window.output_size(H, W)`` must be (Ho, Wo).

    Returns:
        (B, G, K, Ho, Wo); zero where the neighbour lies outside the map, which happens with the
        border 'zero' alone.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match.
    """
    query, key = check_tensors(query=(query, 5), key=(key, 5))
    check_same('query', query, 'key', key, dims=3)
    check_outputs('query', query, 'key', key.shape[-2:], window)
    if has_residues(window):
        return over_residues(_correlate_part, (query, key), window)
    return correlate(query, key, list(window))


@leaf_function
def local_scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: Window) -> Tensor:
    """Add every position to each of its neighbours, times a weight of its own.

    It is the adjoint of ``local_aggregate``:

        result[b, g, d, i + j]  +=  weight[b, g, j, i] * grad[b, g, d, i]        for every i and j

    Args:
        grad: Tensor (B, G, D, Ho, Wo).
        weight: Tensor (B, G, K, Ho, Wo), one weight per tap of the window.
        size: Size (H, W) of the result.
        window: Window over the map. ``window.output_size(H, W)`` must be (Ho, Wo).

    Returns:
        (B, G, D, H, W).

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match.
    """
    grad, weight = check_tensors(grad=(grad, 5), weight=(weight, 5))
    if len(size) != 2:
        raise ValueError(f'size must be (H, W), got {size=}.')
    check_taps('weight', weight, window)
    check_same('grad', grad, 'weight', weight, dims=2)
    check_outputs('weight', weight, 'size', size, window)
    check_outputs('grad', grad, 'size', size, window)
    if has_residues(window):
        return over_residues(_scatter_part, (grad, weight), window)
    return scatter(grad, weight, list(size), list(window))


def _aggregate_part(value: Tensor, weight: Tensor, _: Sequence[int], window: Window) -> Tensor:
    return aggregate(value, weight, list(window))


def _correlate_part(query: Tensor, key: Tensor, _: Sequence[int], window: Window) -> Tensor:
    return correlate(query, key, list(window))


def _scatter_part(grad: Tensor, weight: Tensor, size: Sequence[int], window: Window) -> Tensor:
    return scatter(grad, weight, list(size), list(window))


@transformable(transforms.aggregate)
@custom_op('mmrednet::aggregate', mutates_args=())
def aggregate(value: Tensor, weight: Tensor, window: Sequence[int]) -> Tensor:
    _native.ensure(value)
    return _torch.aggregate(value, weight, Window.from_flat(window))


@transformable(transforms.correlate)
@custom_op('mmrednet::correlate', mutates_args=())
def correlate(query: Tensor, key: Tensor, window: Sequence[int]) -> Tensor:
    _native.ensure(query)
    return _torch.correlate(query, key, Window.from_flat(window))


@transformable(transforms.scatter)
@custom_op('mmrednet::scatter', mutates_args=())
def scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    _native.ensure(grad)
    return _torch.scatter(grad, weight, size, Window.from_flat(window))


_triton.register(
    'local',
    aggregate=(aggregate, _torch.aggregate),
    correlate=(correlate, _torch.correlate),
    scatter=(scatter, _torch.scatter),
)


def active_kernels() -> dict[str, str]:
    """Return a description of the kernels in use for each type of device.

    Where plain torch is the fallback, the description says why.
    """
    plain = 'plain torch, one tap at a time'
    if _native.MISSING is None:
        native = f'native, {_native.capability()}'
    else:
        native = f'{plain} (native: {_native.MISSING})'
    return {'cpu': native, 'cuda': _triton.state(), 'other devices': plain}


@aggregate.register_fake
def _(value: Tensor, weight: Tensor, window: Sequence[int]) -> Tensor:
    return _torch.empty_in_layout_of(value, (*value.shape[:3], *weight.shape[-2:]), value.dtype)


@correlate.register_fake
def _(query: Tensor, key: Tensor, window: Sequence[int]) -> Tensor:
    size = (*query.shape[:2], window[0] * window[1], *query.shape[-2:])
    return _torch.empty_in_layout_of(query, size, query.dtype)


@scatter.register_fake
def _(grad: Tensor, weight: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    return _torch.empty_in_layout_of(grad, (*grad.shape[:3], *size), grad.dtype)


def _widened(first: Tensor, result_like: Tensor) -> Tensor:
    """Return ``first`` in a dtype that is as wide as that of ``result_like``."""
    # an op returns the dtype of its first argument, which must not be narrower than the gradient's
    return first.to(torch.promote_types(first.dtype, result_like.dtype))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.window = inputs[-1]


def _aggregate_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, weight = ctx.saved_tensors
    grad_value = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_value = scatter(grad, weight, value.shape[-2:], ctx.window)
    if ctx.needs_input_grad[1]:
        grad_weight = correlate(_widened(grad, weight), value, ctx.window).to(weight.dtype)
    return grad_value, grad_weight, None


def _correlate_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key = ctx.saved_tensors
    grad_query = grad_key = None
    if ctx.needs_input_grad[0]:
        grad_query = aggregate(_widened(key, query), grad, ctx.window).to(query.dtype)
    if ctx.needs_input_grad[1]:
        grad_key = scatter(_widened(query, key), grad, key.shape[-2:], ctx.window).to(key.dtype)
    return grad_query, grad_key, None


def _scatter_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    source, weight = ctx.saved_tensors
    grad_source = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_source = aggregate(grad, weight, ctx.window)
    if ctx.needs_input_grad[1]:
        grad_weight = correlate(_widened(source, weight), grad, ctx.window).to(weight.dtype)
    return grad_source, grad_weight, None, None


aggregate.register_autograd(_aggregate_grad, setup_context=_setup_context)
correlate.register_autograd(_correlate_grad, setup_context=_setup_context)
scatter.register_autograd(_scatter_grad, setup_context=_setup_context)


# two per multiply-add, as torch counts; its counter would report zero for custom ops
@register_flop_formula([torch.ops.mmrednet.aggregate, torch.ops.mmrednet.scatter])
def _flops_with_weight(value: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * multiply_adds.aggregate(value, weight)


@register_flop_formula(torch.ops.mmrednet.correlate)
def _flops_of_correlate(
    query: Sequence[int], key: Sequence[int], window: Sequence[int], **_: Any
) -> int:
    return 2 * multiply_adds.correlate(query, window[0] * window[1])
