"""Local attention by absolute difference: the closer a key is to the query, the more its weight.

It is one of the relations of local relation networks (Hu et al., ICCV 2019). A fused kernel keeps
its logits in cache, and computes them again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton, local
from .attention import attend
from .checks import check_outputs, check_same, check_shape, check_tensors
from .tracing import leaf_function
from .transforms import transformable
from .window import Window, check_zero_border


@leaf_function
def local_difference_attention(
    query: Tensor, key: Tensor, value: Tensor, window: Window, *, bias: Tensor | None = None
) -> Tensor:
    r"""Average the neighbours of every position, weighted by how close their keys are to its query.

    .. math::
        l_{ji} &= -\sum_d |q_{di} - k_{d,i+j}| + b_j \\
        y_{di} &= \sum_j \mathrm{softmax}_j(l_{ji}) \, v_{d,i+j}

    Neighbours outside the feature map get no weight. The softmax and all sums are taken in float32
    or wider. Gradients reach all tensors; the gradient of an absolute value at zero is zero.

    Args:
        query: Queries, of shape (B, N, D, Ho, Wo).
        key: Keys, of shape (B, N, D, H, W).
        value: Values, of shape (B, N, Dv, H, W).
        window: Window of neighbours; ``window.output_size(H, W)`` must be (Ho, Wo).
        bias: Term for each relative position, of shape (N, K), or None.

    Returns:
        Tensor of shape (B, N, Dv, Ho, Wo), in the dtype and the memory layout of ``value``. It is
        zero where all neighbours are outside the feature map.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes do not match.
    """
    query, key, value, bias = check_tensors(
        ('bias',), query=(query, 5), key=(key, 5), value=(value, 5), bias=(bias, 2)
    )
    check_same('query', query, 'key', key, dims=3)
    check_same('key', key, 'value', value, dims=2)
    if key.shape[-2:] != value.shape[-2:]:
        raise ValueError(f'key and value must agree in size, got {key.shape=}, {value.shape=}.')
    check_zero_border(window)
    check_outputs('query', query, 'key', key.shape[-2:], window)
    check_shape('bias', bias, '(heads, taps)', (query.shape[1], window.taps))
    return difference_attention(query, key, value, bias, list(window))


def _differences(query: Tensor, key: Tensor, window: Sequence[int]) -> list[Tensor]:
    """Return query minus key of each neighbour, (B, N, K, Ho, Wo) for each channel.

    The neighbours of one channel are its correlation with ones.
    """
    wide = query.to(_torch.sum_dtype(query, key))
    differences = []
    for query_channel, key_channel in zip(wide.split(1, 2), key.split(1, 2), strict=True):
        neighbours = local.correlate(torch.ones_like(query_channel), key_channel, window)
        differences.append(query_channel - neighbours)
    return differences


def difference_logits(
    query: Tensor, key: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """Return the logits (B, N, K, Ho, Wo) of :func:`local_difference_attention`."""
    differences = _differences(query, key, window)
    logits = -differences[0].abs()
    for difference in differences[1:]:
        logits = logits - difference.abs()
    return logits if bias is None else logits + bias[:, :, None, None]


def definition(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """Compute :func:`local_difference_attention` with stored logits.

    It is the reference of every fused kernel.
    """
    logits = difference_logits(query, key, bias, window)
    weight = attend(logits, Window.from_flat(window), key.shape[-2:])
    return local.aggregate(value, weight, window)


def _logit_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the weights P and the gradients P (dP - sum over j of P dP) of the logits, with dP =
    correlate(grad, value).
    """
    logits = difference_logits(query, key, bias, window)
    weight = attend(logits, Window.from_flat(window), key.shape[-2:])
    grad_weight = local.correlate(grad.to(weight.dtype), value, window)
    return weight, weight * (grad_weight - (weight * grad_weight).sum(2, keepdim=True))


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _input_gradients(
    weight: Tensor,
    grad_logits: Tensor,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> Gradients:
    size = key.shape[-2:]
    grad_value = local.scatter(grad.to(value.dtype), weight, size, window)
    grad_query, grad_key = [], []
    for difference in _differences(query, key, window):
        # the gradient of -|q - k| is -sign(q - k) for q, and sign(q - k) for k
        signed = grad_logits * difference.sign()
        grad_query.append(-signed.sum(2, keepdim=True))
        grad_key.append(local.scatter(torch.ones_like(grad_query[-1]), signed, size, window))
    grad_bias = query.new_empty(0)
    if bias is not None:
        grad_bias = grad_logits.sum((0, 3, 4)).to(bias.dtype)
    return (
        torch.cat(grad_query, 2).to(query.dtype),
        torch.cat(grad_key, 2).to(key.dtype),
        grad_value,
        grad_bias,
    )


def gradients(grad: Tensor, *inputs: Any) -> Gradients:
    """Return the gradients of :func:`definition` for its four tensors; differentiable in turn."""
    return _input_gradients(*_logit_gradients(grad, *inputs), grad, *inputs)


@transformable(definition)
@custom_op('mmrednet::difference_attention', mutates_args=())
def difference_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """Run :func:`local_difference_attention` on arguments that have been checked."""
    return definition(query, key, value, bias, window)


@transformable(gradients)
@custom_op('mmrednet::difference_attention_backward', mutates_args=())
def difference_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`gradients`."""
    inputs = query, key, value, bias, window
    *grads, grad_bias = gradients(grad, *inputs)
    grad_query, grad_key, grad_value = (
        _torch.in_layout_of(like, tensor)
        for like, tensor in zip((query, key, value), grads, strict=True)
    )
    return grad_query, grad_key, grad_value, grad_bias.contiguous()


# no kernel for the gradients: their definition runs on the kernels of the primitives
_triton.register('attention', difference_attention=(difference_attention, definition))


@difference_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    size = (*value.shape[:3], *query.shape[-2:])
    return _torch.empty_in_layout_of(value, size, value.dtype)


@difference_attention_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> Gradients:
    grad_query, grad_key, grad_value = (
        _torch.empty_in_layout_of(tensor, tensor.shape, tensor.dtype)
        for tensor in (query, key, value)
    )
    grad_bias = query.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return grad_query, grad_key, grad_value, grad_bias


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.window = inputs
    # not the result: what follows may change it in place
    ctx.save_for_backward(*tensors)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = (*ctx.saved_tensors, ctx.window)
    # higher derivatives go through the primitives, which have theirs
    backward = gradients if torch.is_grad_enabled() else difference_attention_backward
    grads = backward(grad, *inputs)
    needed = zip(grads, ctx.needs_input_grad, strict=False)
    return *(tensor if is_needed else None for tensor, is_needed in needed), None


difference_attention.register_autograd(_grad, setup_context=_setup_context)


# two per multiply-add of the aggregation, as torch counts; a difference has none
@register_flop_formula(torch.ops.mmrednet.difference_attention)
def _flops(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    bias: Sequence[int] | None,
    window: Sequence[int],
    **_: Any,
) -> int:
    taps = window[0] * window[1]
    return 2 * math.prod(value[:3]) * taps * math.prod(query[3:])


# the gradients of weights and values
@register_flop_formula(torch.ops.mmrednet.difference_attention_backward)
def _flops_backward(
    grad: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    bias: Sequence[int] | None,
    window: Sequence[int],
    **_: Any,
) -> int:
    return 2 * _flops(query, key, value, bias, window)
