"""Involution with its kernel generation inside, so that generated kernels need not reach memory.

Each position has K weights for each group of D channels. With K = 49 and D = 16 these are three
times the elements of the input, written once and read once. A fused kernel generates them where
they are used. The backward pass generates them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton, local, multiply_adds
from .checks import check_dtype, check_outputs, check_same, check_shape, check_tensors
from .tracing import leaf_function
from .transforms import transformable
from .window import Window, check_zero_border


@leaf_function
def local_involution(
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Sum the neighbours of every position, weighted by a kernel generated from the position.

        result[b, g, d, i] = sum over j of  kernel[b, g, j, i] * value[b, g, d, i + j]
        kernel[b, g, j, i] = bias[g K + j] + sum over r of  weight[g K + j, r] * hidden[b, r, i]

    (Li et al., CVPR 2021, equations 4 and 6.) Gradients reach all tensors. The function also takes
    a norm in eval mode and a ReLU that follow, ``relu(scale * result + shift)``. Without gradients
    they cost no pass over memory of their own.

    Args:
        value: Tensor (B, G, D, H, W). The D channels of a group share their kernel.
        hidden: Tensor (B, R, Ho, Wo) of the features that generate the kernels, in the dtype of
            ``weight`` and ``bias``.
        weight: Tensor (G * K, R), the weight of the generator's last layer.
        bias: Tensor (G * K,), the bias of the generator's last layer, or None.
        window: Window over the map. ``window.output_size(H, W)`` must be (Ho, Wo).
        scale: Tensor (G * D,), the factor of each channel of the result, or None.
        shift: Tensor (G * D,), added to each channel after the factor. It is given if and only if
            ``scale`` is.
        relu: If True, apply a ReLU at the end. ``scale`` must be given. Default: False.

    Returns:
        (B, G, D, Ho, Wo), in the dtype and the memory layout of ``value``.

    Raises:
        TypeError: An argument is not a floating-point tensor, or ``weight`` or ``bias`` has
            another dtype than ``hidden``.
        ValueError: A shape does not match.
    """
    value, hidden, weight, bias, scale, shift = check_tensors(
        ('bias', 'scale', 'shift'),
        value=(value, 5),
        hidden=(hidden, 4),
        weight=(weight, 2),
        bias=(bias, 1),
        scale=(scale, 1),
        shift=(shift, 1),
    )
    check_same('value', value, 'hidden', hidden, dims=1)
    check_zero_border(window)
    check_outputs('hidden', hidden, 'value', value.shape[-2:], window)
    check_dtype('hidden', hidden, weight=weight, bias=bias)
    rows = value.shape[1] * window.taps
    check_shape('weight', weight, '(groups * taps, hidden channels)', (rows, hidden.shape[1]))
    check_shape('bias', bias, '(groups * taps,)', (rows,))
    _check_affine(value, scale, shift, relu)
    if scale is None or shift is None:
        return involution(value, hidden, weight, bias, list(window))
    inputs = (value, hidden, weight, bias, scale, shift)
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in inputs
    )
    # the fused op has no gradients; a trace shows the separate steps, for those who count them
    if needs_grad or torch.jit.is_tracing():
        return finish(involution(value, hidden, weight, bias, list(window)), scale, shift, relu)
    return involution_affine(*inputs, relu, list(window))


def _check_affine(value: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool) -> None:
    if (scale is None) != (shift is None) or (relu and scale is None):
        scale_shape = None if scale is None else tuple(scale.shape)
        shift_shape = None if shift is None else tuple(shift.shape)
        raise ValueError(
            'scale and shift must be given together, and with relu, got tensors of the shapes '
            f'{scale_shape} and {shift_shape}, {relu=}.'
        )
    channels = (value.shape[1] * value.shape[2],)
    check_shape('scale', scale, '(groups * channels,)', channels)
    check_shape('shift', shift, '(groups * channels,)', channels)


def generate_kernels(hidden: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Return the kernels (B, G, K, Ho, Wo) that hidden features (B, R, Ho, Wo) generate."""
    # a 1x1 convolution as a matrix product over channels-last positions
    kernels = F.linear(hidden.movedim(1, 3), weight, bias)
    return kernels.unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2)


def definition(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """Compute :func:`local_involution` from stored kernels. Every fused kernel is tested against
    it.
    """
    return local.aggregate(value, generate_kernels(hidden, weight, bias, value.shape[1]), window)


def finish(out: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """Return relu(scale * out + shift) for each channel of (B, G, D, H, W), in the dtype of
    ``out``.
    """
    scale, shift = (tensor.view(*out.shape[1:3], 1, 1) for tensor in (scale, shift))
    result = out * scale + shift
    if relu:
        result = result.relu()
    return result.to(out.dtype)


def affine_definition(
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    window: Sequence[int],
) -> Tensor:
    """Compute :func:`local_involution` with a norm and a ReLU behind it."""
    return finish(involution(value, hidden, weight, bias, window), scale, shift, relu)


def gradients(
    grad: Tensor,
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`definition` for its four tensors.

    Kernels are generated again. The gradients are differentiable in turn.
    """
    kernels = generate_kernels(hidden, weight, bias, value.shape[1])
    grad_value = local.scatter(grad, kernels, value.shape[-2:], window).to(value.dtype)
    grad_kernels = local.correlate(grad, value, window).to(hidden.dtype)
    # one row (G K) for each position: the output of the linear layer that generates kernels
    rows = grad_kernels.permute(0, 3, 4, 1, 2).flatten(3)
    grad_hidden = (rows @ weight).movedim(3, 1)
    grad_weight = rows.flatten(0, 2).mT @ hidden.movedim(1, 3).flatten(0, 2)
    if bias is None:
        return grad_value, grad_hidden, grad_weight, weight.new_empty(0)
    # in two steps: one sum over all positions has too few results to fill a GPU
    sum_dtype = torch.promote_types(rows.dtype, torch.float32)
    grad_bias = rows.sum(2, dtype=sum_dtype).sum((0, 1)).to(rows.dtype)
    return grad_value, grad_hidden, grad_weight, grad_bias


def dense_gradients(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return :func:`gradients` with the strides of the fake tensors of ``involution_backward``."""
    grad_value, grad_hidden, grad_weight, grad_bias = gradients(*inputs)
    grad_hidden = _torch.in_layout_of(inputs[2], grad_hidden)
    return grad_value, grad_hidden, grad_weight.contiguous(), grad_bias


@transformable(definition)
@custom_op('mmrednet::involution', mutates_args=())
def involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """See :func:`local_involution`. The arguments have been checked."""
    return definition(value, hidden, weight, bias, window)


@transformable(affine_definition)
@custom_op('mmrednet::involution_affine', mutates_args=())
def involution_affine(
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    window: Sequence[int],
) -> Tensor:
    """See :func:`local_involution`. It has no gradients."""
    return affine_definition(value, hidden, weight, bias, scale, shift, relu, window)


@transformable(gradients)
@custom_op('mmrednet::involution_backward', mutates_args=())
def involution_backward(
    grad: Tensor,
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`gradients`."""
    return dense_gradients(grad, value, hidden, weight, bias, window)


# no kernel for involution_backward: its definition runs on the kernels of the primitives
_triton.register('involution', involution=(involution, definition))


@involution.register_fake
def _(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    return _torch.empty_in_layout_of(value, (*value.shape[:3], *hidden.shape[-2:]), value.dtype)


@involution_affine.register_fake
def _(value: Tensor, hidden: Tensor, *_: object) -> Tensor:
    return _torch.empty_in_layout_of(value, (*value.shape[:3], *hidden.shape[-2:]), value.dtype)


@involution_backward.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_value = _torch.empty_in_layout_of(grad, value.shape, value.dtype)
    grad_hidden = _torch.empty_in_layout_of(hidden, hidden.shape, hidden.dtype)
    grad_bias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return grad_value, grad_hidden, weight.new_empty(weight.shape), grad_bias


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # a backward pass that is recorded, for higher derivatives, must be made of differentiable ops
    backward = gradients if torch.is_grad_enabled() else involution_backward
    value, hidden, weight, bias = ctx.saved_tensors
    *grads, grad_bias = backward(grad, value, hidden, weight, bias, ctx.window)
    return *grads, None if bias is None else grad_bias, None


involution.register_autograd(_grad, setup_context=_setup_context)


# two per multiply-add, as torch counts
@register_flop_formula(torch.ops.mmrednet.involution)
def _flops(
    value: Sequence[int], hidden: Sequence[int], weight: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * multiply_adds.involution(value, hidden, weight).total()


@register_flop_formula(torch.ops.mmrednet.involution_affine)
def _flops_affine(
    value: Sequence[int], hidden: Sequence[int], weight: Sequence[int], *_: Any, **__: Any
) -> int:
    return _flops(value, hidden, weight)


# convolutions: kernels again, gradients of the generator's input and of its weight; aggregations:
# gradients of value and of kernels
@register_flop_formula(torch.ops.mmrednet.involution_backward)
def _flops_backward(
    grad: Sequence[int],
    value: Sequence[int],
    hidden: Sequence[int],
    weight: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    forward = multiply_adds.involution(value, hidden, weight)
    return 2 * (3 * forward['conv'] + 2 * forward['aggregate'])
