"""Involution with its kernel generation inside, so that the generated kernels need not reach
memory.

A kernel has K weights for each group of D channels: with K = 49 and D = 16 all of them are three
    times the size of the input, written once and read once. Here they are made where they are used,
    and made again in the backward pass.
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
from .transforms import transformable
from .window import Window


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
    """Sum the neighbours of every position with the kernel that the position's hidden features
    generate.

        result[b, g, d, i] = sum over j of  kernel[b, g, j, i] * value[b, g, d, i + j]
        kernel[b, g, j, i] = bias[g K + j] + sum over r of  weight[g K + j, r] * hidden[b, r, i]

    (Li et al., CVPR 2021, equations 4 and 6.) Gradients reach all tensors. A norm in eval mode and
    a ReLU behind it may be part of it, ``relu(scale * result + shift)``: without gradients they
    then cost no pass of their own.

    Args:
        value: (B, G, D, H, W); the D channels of a group share their kernel.
        hidden: (B, R, Ho, Wo), what the kernels are generated from, in the dtype of ``weight`` and
            ``bias``.
        weight: (G * K, R), of the generator's last layer.
        bias: (G * K,), or None.
        window: the neighbourhood; ``window.output_size(H, W)`` must be (Ho, Wo).
        scale: (G * D,), what every channel of the result is multiplied with, or None.
        shift: (G * D,), what is added to it then; given if ``scale`` is.
        relu: whether what is less than zero becomes zero; ``scale`` must be given.

    Returns:
        (B, G, D, Ho, Wo), in the dtype and the memory layout of ``value``.

    Raises:
        TypeError: an argument is not a floating-point tensor, or has another dtype than ``hidden``
            where it may not.
        ValueError: a shape does not match.
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
    # a trace shows what is computed, for those who count it
    if needs_grad or torch.jit.is_tracing():
        return finish(involution(value, hidden, weight, bias, list(window)), scale, shift, relu)
    return involution_affine(*inputs, relu, list(window))


def _check_affine(value: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool) -> None:
    if (scale is None) != (shift is None) or (relu and scale is None):
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (scale, shift)]
        raise ValueError(
            'scale and shift must be given together, and with relu, got tensors of the shapes '
            f'{shapes[0]} and {shapes[1]}, {relu=}.'
        )
    channels = (value.shape[1] * value.shape[2],)
    check_shape('scale', scale, '(groups * channels,)', channels)
    check_shape('shift', shift, '(groups * channels,)', channels)


def generate_kernels(hidden: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Return the kernels (B, G, K, Ho, Wo) that hidden features (B, R, Ho, Wo) generate."""
    kernels = F.linear(hidden.movedim(1, 3), weight, bias)
    return kernels.unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2)


def definition(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """Compute :func:`local_involution` by way of stored kernels: what every fused kernel is
    compared with.
    """
    return local.aggregate(value, generate_kernels(hidden, weight, bias, value.shape[1]), window)


def finish(out: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """Return relu(scale * out + shift), channel by channel of (B, G, D, H, W), in the dtype of
    ``out``.
    """
    scale, shift = (tensor.view(*out.shape[1:3], 1, 1) for tensor in (scale, shift))
    finished = out * scale + shift
    return (finished.relu() if relu else finished).to(out.dtype)


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
    """Return the gradients of :func:`definition`, from kernels that are generated again;
    differentiable in turn.
    """
    kernels = generate_kernels(hidden, weight, bias, value.shape[1])
    grad_value = local.scatter(grad, kernels, value.shape[-2:], window).to(value.dtype)
    grad_kernels = local.correlate(grad, value, window).to(hidden.dtype)
    # one row (G K) for each position, as the linear layer that generates kernels has them
    rows = grad_kernels.permute(0, 3, 4, 1, 2).flatten(3)
    grad_hidden = (rows @ weight).movedim(3, 1)
    grad_weight = rows.flatten(0, 2).mT @ hidden.movedim(1, 3).flatten(0, 2)
    if bias is None:
        return grad_value, grad_hidden, grad_weight, weight.new_empty(0)
    # a sum over all positions at once has too few results to fill a GPU
    wide = torch.promote_types(rows.dtype, torch.float32)
    grad_bias = rows.sum(2, dtype=wide).sum((0, 1)).to(rows.dtype)
    return grad_value, grad_hidden, grad_weight, grad_bias


def dense_gradients(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return :func:`gradients` with the strides that the fake of ``involution_backward``
    promises."""
    grad_value, grad_hidden, grad_weight, grad_bias = gradients(*inputs)
    return (
        grad_value,
        _torch.in_layout_of(inputs[2], grad_hidden),
        grad_weight.contiguous(),
        grad_bias,
    )


@transformable(definition)
@custom_op('mmrednet::involution', mutates_args=())
def involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """See :func:`local_involution`; what it is given has been checked."""
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
    """See :func:`local_involution`; without gradients."""
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


# the gradients are those of the definition, whose primitives have kernels
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
    # higher derivatives go through the primitives, which know theirs
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


# kernels again, then the gradients of value and of kernels, then those of the generator's input and
# of its weight
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
