"""Depth-wise convolution, with GELU behind it if asked.

Torch computes it by kernels for any groups, whose backward pass takes many times as long as the
forward pass. A fused GELU costs no pass over memory of its own, and keeps nothing for the backward
pass: the convolution is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from . import _torch, multiply_adds
from .checks import check_dtype, check_shape, check_tensors
from .space_to_batch import dilated_depth_wise
from .tracing import leaf_function
from .transforms import transformable
from .window import IntPair, to_pair


@leaf_function
def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    gelu: bool = False,
) -> Tensor:
    """Convolve every channel with a kernel of its own.

        result[b, c, i] = bias[c] + sum over j of  weight[c, 0, j] * x[b, c, i + j]

    It is ``F.conv2d(x, weight, bias, 1, padding, dilation, groups=C)``, followed by ``F.gelu`` if
    ``gelu`` is true. Sums are taken in float32 or wider.

    Args:
        x: Feature map (B, C, H, W).
        weight: Kernels (C, 1, Kh, Kw), in the dtype of ``x``.
        bias: Summand (C,) of each channel, in the dtype of ``x``, or None.
        padding: Zeros around the map, (vertical, horizontal) or one int for both. At most
            ``dilation * (kernel - 1)``. Default: 0.
        dilation: Distance of neighbouring taps. Default: 1.
        gelu: If True, apply GELU, the exact one. Default: False.

    Returns:
        (B, C, Ho, Wo), in the dtype and the memory layout of ``x``.

    Raises:
        TypeError: An argument is not a floating-point tensor, or ``weight`` or ``bias`` has
            another dtype than ``x``.
        ValueError: A shape does not match, ``padding`` is too large, or the kernel does not fit
            into the padded map.
    """
    x, weight, bias = check_tensors(('bias',), x=(x, 4), weight=(weight, 4), bias=(bias, 1))
    check_dtype('x', x, weight=weight, bias=bias)
    channels = (x.shape[1],)
    check_shape('weight', weight, '(channels, 1, Kh, Kw)', (*channels, 1, *weight.shape[2:]))
    check_shape('bias', bias, '(channels,)', channels)
    paddings, dilations = to_pair('padding', padding, 0), to_pair('dilation', dilation, 1)
    reach = (
        dilations[0] * (weight.shape[2] - 1),
        dilations[1] * (weight.shape[3] - 1),
    )
    if paddings[0] > reach[0] or paddings[1] > reach[1]:
        raise ValueError(
            f'padding must be at most dilation * (kernel - 1), {reach}, got {padding=}.'
        )
    if min(_output_size(x.shape, weight.shape, paddings, dilations)[2:]) < 1:
        raise ValueError(
            f'the kernel must fit into the padded map, got {x.shape=}, {weight.shape=}, '
            f'{padding=}, {dilation=}.'
        )
    return depthwise(x, weight, bias, paddings, dilations, gelu)


def _output_size(
    x: Sequence[int], weight: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Return the shape (B, C, Ho, Wo) of the result, from the shapes of x and weight."""
    sizes = list(x)
    for axis in range(2):
        sizes[2 + axis] += 2 * padding[axis] - dilation[axis] * (weight[2 + axis] - 1)
    return sizes


def definition(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
) -> Tensor:
    """Compute :func:`depthwise_conv2d` by torch's functions."""
    options: dict[str, Any] = dict(padding=list(padding), dilation=list(dilation))
    result = F.conv2d(x, weight, bias, groups=len(weight), **options)
    return F.gelu(result) if gelu else result


def without_dilation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
) -> Tensor:
    """Compute :func:`definition`; a dilation of both axes that keeps the size of the map is
    computed without one, since torch's CPU kernels for it are slow.
    """
    step = dilation[0]
    centre = [step * (size // 2) for size in weight.shape[2:]]
    has_centre = all(size % 2 for size in weight.shape[2:])
    if x.device.type != 'cpu' or step == 1 or dilation[1] != step or not has_centre:
        return definition(x, weight, bias, padding, dilation, gelu)
    if list(padding) != centre:
        return definition(x, weight, bias, padding, dilation, gelu)
    result = dilated_depth_wise(x, weight, bias, step)
    return F.gelu(result) if gelu else result


Gradients = tuple[Tensor, Tensor, Tensor]


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
) -> Gradients:
    """Return the gradients of :func:`definition` for its tensors; differentiable in turn."""
    if gelu:
        convolved = definition(x, weight, bias, padding, dilation, False)
        grad = torch.ops.aten.gelu_backward(grad, convolved)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [len(weight)],
        [1, 1],
        list(padding),
        list(dilation),
        False,
        [0, 0],
        len(weight),
        [True, True, True],
    )
    return grad_x, grad_weight, weight.new_empty(0) if bias is None else grad_bias


@transformable(definition)
@custom_op('mmrednet::depthwise', mutates_args=())
def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
) -> Tensor:
    """Run :func:`depthwise_conv2d` on arguments that have been checked."""
    result = without_dilation(x, weight, bias, padding, dilation, gelu)
    return _torch.in_layout_of(x, result)


@transformable(gradients)
@custom_op('mmrednet::depthwise_backward', mutates_args=())
def depthwise_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`gradients`."""
    grad_x, grad_weight, grad_bias = gradients(grad, x, weight, bias, padding, dilation, gelu)
    return _torch.in_layout_of(x, grad_x), grad_weight.contiguous(), grad_bias.contiguous()


@depthwise.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
) -> Tensor:
    size = _output_size(x.shape, weight.shape, padding, dilation)
    return _torch.empty_in_layout_of(x, size, x.dtype)


@depthwise_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> Gradients:
    grad_x = _torch.empty_in_layout_of(x, x.shape, x.dtype)
    grad_bias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return grad_x, weight.new_empty(weight.shape), grad_bias


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.padding, ctx.dilation, ctx.gelu = inputs
    ctx.save_for_backward(*tensors)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = (*ctx.saved_tensors, ctx.padding, ctx.dilation, ctx.gelu)
    # a backward pass that is recorded, for higher derivatives, must be made of differentiable ops
    backward = gradients if torch.is_grad_enabled() else depthwise_backward
    grads = backward(grad, *inputs)
    needed = zip(grads, ctx.needs_input_grad, strict=False)
    return *(tensor if is_needed else None for tensor, is_needed in needed), None, None, None


depthwise.register_autograd(_grad, setup_context=_setup_context)


# two per multiply-add, as torch counts
@register_flop_formula(torch.ops.mmrednet.depthwise)
def _flops(
    x: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    padding: Sequence[int],
    dilation: Sequence[int],
    gelu: bool,
    **_: Any,
) -> int:
    outputs = _output_size(x, weight, padding, dilation)
    return 2 * multiply_adds.depthwise(outputs, weight)


# the gradients of map and weights, and with GELU the convolution again
@register_flop_formula(torch.ops.mmrednet.depthwise_backward)
def _flops_backward(grad: Sequence[int], *arguments: Any, **_: Any) -> int:
    gelu = arguments[5]
    return (2 + gelu) * _flops(*arguments)
