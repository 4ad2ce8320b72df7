"""Vector attention in one function, so that features of neighbours need not reach memory.

The networks of Zhao et al. (CVPR 2020) map the relation of a position and each of its K = 49
neighbours to weights. Stored, the features of all neighbours have K times the elements of a feature
map, several times over. A fused kernel computes them tile by tile, and again in the backward pass.
The definition takes a chunk of rows at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton, local, multiply_adds
from .precision import full_precision
from .tracing import leaf_function
from .transforms import is_transformed, recorded, transformable
from .vector_mapping import (
    Gamma,
    Options,
    by_chunks,
    check_gamma,
    check_inputs,
    chunk_features,
    has_kernel,
    norm_relu,
    pointwise,
)
from .vector_relations import reflected_rows
from .window import Window


@leaf_function
def local_vector_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gamma: Gamma,
    window: Window,
    *,
    relation: str,
    patchwise: bool = False,
    position_channels: int = 0,
) -> Tensor:
    r"""Sum the neighbours of every position, weighted by a mapping of relations.

    .. math:: y_{ci} = \sum_j \alpha_{c \bmod G, j, i} \, v_{c, i+j}

    Pairwise, the weights are :math:`\alpha = \mathrm{softmax}_j \, \gamma(\delta(q_i, k_{i+j}))`.
    Patchwise, one vector :math:`\gamma(\delta(q_i, k_{R(i)}))` has the weights of all neighbours
    (Zhao et al., CVPR 2020, equations 2 to 4). The map is continued by reflection. Softmax and sums
    are taken in float32 or wider. Gradients reach all tensors.

    Args:
        query: Tensor (B, R + P, Ho, Wo).
        key: Tensor (B, R + P, H, W).
        value: Tensor (B, C, H, W). Channel c belongs to group c % G.
        gamma: The mapping of F features to weights. It has G outputs, or G * K if patchwise.
        window: Window over the map. ``window.output_size(H, W)`` must be (Ho, Wo).
        relation: Name of the relation: 'subtraction', 'summation', 'concatenation', 'hadamard' or
            'dot_product'; if patchwise 'concatenation', 'star_product' or 'clique_product'.
        patchwise: If True, one vector has the weights of all neighbours. Default: False.
        position_channels: Number P of channels, the last ones, of which the difference is taken
            whatever the relation is. Default: 0.

    Returns:
        (B, C, Ho, Wo), in the dtype and the memory layout of ``value``.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match, or there is no such relation.
    """
    query, key, value = check_inputs(query, key, window, value)
    check_gamma(query, gamma, window, relation, patchwise, position_channels)
    taps = window.taps if patchwise else 1
    outputs = gamma.bias2.shape[0]
    if outputs < 1 or outputs % taps or value.shape[1] % (outputs // taps):
        raise ValueError(
            'gamma must have one output for each group of value, and each tap if patchwise, got '
            f'{outputs} outputs, {value.shape=}, {window.taps} taps, {patchwise=}.'
        )
    options = Options(relation, patchwise, position_channels, list(window))
    run = attention if has_kernel('vector_attention', query, options) else definition
    return run(query, key, value, *gamma, *options)


def _weights(x: Tensor, gamma: Gamma, window: Window, patchwise: bool, width: int) -> Tensor:
    """Return the weights (B, G, K, rows, Wo) of features (B, F, K or 1, L)."""
    hidden = pointwise(gamma.weight1, norm_relu(x, gamma.scale1, gamma.shift1))
    hidden = norm_relu(hidden, gamma.scale2, gamma.shift2)
    logits = pointwise(gamma.weight2, hidden) + gamma.bias2[:, None, None]
    if patchwise:
        return logits.unflatten(1, (-1, window.taps)).squeeze(3).unflatten(3, (-1, width))
    return logits.softmax(2).unflatten(3, (-1, width))


def _rows_of_result(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gamma: Gamma,
    options: Options,
    rows: tuple[int, int],
) -> Tensor:
    """Return some rows (B, C, rows, Wo) of the result."""
    window = Window.from_flat(options.window)
    x = chunk_features(query, key, options, rows)
    alpha = _weights(x, gamma, window, options.patchwise, query.shape[3])
    return aggregate_rows(value, alpha, window, rows)


def aggregate_rows(value: Tensor, alpha: Tensor, window: Window, rows: tuple[int, int]) -> Tensor:
    """Sum the neighbours of some rows of outputs by weights of interleaved groups.

    Args:
        value: Tensor (B, C, H, W), continued by reflection. Channel c belongs to group c % G.
        alpha: Weights (B, G, K, rows, Wo).
        window: Window over the map.
        rows: First row of the outputs, and the end of their rows.

    Returns:
        (B, C, rows, Wo), in the dtype of ``value``.
    """
    needed = reflected_rows(value, window, rows)
    # a view, not a permutation
    interleaved = needed.unflatten(1, (-1, alpha.shape[1])).transpose(1, 2)
    inner = Window(window.kernel, window.stride, window.dilation, padding=0)
    return local.local_aggregate(interleaved, alpha, inner).transpose(1, 2).flatten(1, 2)


def definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight1: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> Tensor:
    """Compute :func:`local_vector_attention` from stored weights of one chunk of rows at a time.

    The backward pass computes them again. Every fused kernel is tested against this function.
    """
    tensors = (query, key, value, scale1, shift1, weight1, scale2, shift2, weight2, bias2)
    dtype = _torch.sum_dtype(query, key, value)
    wide_query, wide_key, wide_value, *parameters = (tensor.to(dtype) for tensor in tensors)
    gamma = Gamma(*parameters)
    options = Options(relation, patchwise, position_channels, list(window))
    stored = weight1.shape[1] + weight1.shape[0] + weight2.shape[0]

    def compute(rows: tuple[int, int]) -> Tensor:
        return _rows_of_result(wide_query, wide_key, wide_value, gamma, options, rows)

    # autocast would round the products to half precision
    with full_precision(query.device.type):
        return torch.cat(by_chunks(compute, query, stored, options), 2).to(value.dtype)


@transformable(definition)
@custom_op('mmrednet::vector_attention', mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight1: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> Tensor:
    """See :func:`definition`. The arguments have been checked."""
    gamma = (scale1, shift1, weight1, scale2, shift2, weight2, bias2)
    options = (relation, patchwise, position_channels, window)
    return dense_definition(query, key, value, *gamma, *options)


def dense_definition(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> Tensor:
    """Return the result of :func:`definition` with the strides that the op promises."""
    return _torch.in_layout_of(value, definition(query, key, value, *arguments))


def gradients(grad: Tensor, *arguments: Any) -> Any:
    """Return the ten gradients of :func:`definition`, by torch's autograd."""
    tensors, options = arguments[:10], arguments[10:]
    with recorded():
        grads = differentiate(lambda *leaves: definition(*leaves, *options), [grad], tensors)
    # with the strides that the op promises
    results = []
    for tensor, result in zip(tensors, grads, strict=True):
        is_map = tensor.dim() == 4
        results.append(_torch.in_layout_of(tensor, result) if is_map else result.contiguous())
    return tuple(results)


@custom_op('mmrednet::vector_attention_backward', mutates_args=())
def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight1: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    relation: str,
    patchwise: bool,
    position_channels: int,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`gradients`."""
    gamma = (scale1, shift1, weight1, scale2, shift2, weight2, bias2)
    options = (relation, patchwise, position_channels, window)
    return gradients(grad, query, key, value, *gamma, *options)


_triton.register(
    'vector_attention',
    attention=(attention, dense_definition),
    attention_backward=(attention_backward, gradients),
)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    size = (*value.shape[:2], *query.shape[-2:])
    return _torch.empty_in_layout_of(value, size, value.dtype)


@attention_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    maps = [_torch.empty_in_layout_of(x, x.shape, x.dtype) for x in inputs[:3]]
    return *maps, *(parameter.new_empty(parameter.shape) for parameter in inputs[3:10])


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, relation, patchwise, position_channels, window = inputs
    ctx.options = (relation, patchwise, position_channels, window)
    # not the result, which later layers may change in place
    ctx.save_for_backward(*tensors)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    # a backward pass that is recorded, for higher derivatives, must be made of differentiable ops,
    # and so must one whose gradient has a tangent
    if torch.is_grad_enabled() or is_transformed([grad]):
        grads = differentiate(lambda *leaves: definition(*leaves, *ctx.options), [grad], tensors)
    else:
        grads = attention_backward(grad, *tensors, *ctx.options)
    needed = zip(grads, ctx.needs_input_grad, strict=False)
    results = [tensor if is_needed else None for tensor, is_needed in needed]
    return *results, None, None, None, None


attention.register_autograd(_grad, setup_context=_setup_context)


def differentiate(
    function: Callable, grads: Sequence[Tensor], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of a function of tensors by torch's autograd.

    They are differentiable in turn where gradients are recorded.
    """
    is_recorded = torch.is_grad_enabled()
    # an op has a fixed number of results: tensors that need no gradient get one all the same
    leaves = [
        tensor if is_recorded and tensor.requires_grad else tensor.detach().requires_grad_()
        for tensor in tensors
    ]
    with torch.enable_grad():
        results = function(*leaves)
        return torch.autograd.grad(results, leaves, grads, create_graph=is_recorded)


# two per multiply-add, as torch counts
@register_flop_formula(torch.ops.mmrednet.vector_attention)
def _flops(*arguments: Any, **_: Any) -> int:
    return 2 * _multiply_adds(*arguments).total()


# convolutions: hidden features and weights again, then two gradients of each; two gradients of the
# aggregation
@register_flop_formula(torch.ops.mmrednet.vector_attention_backward)
def _flops_backward(grad: Sequence[int], *arguments: Any, **_: Any) -> int:
    forward = _multiply_adds(*arguments)
    return 2 * (3 * forward['conv'] + 2 * forward['aggregate'])


def _multiply_adds(*arguments: Any) -> Counter[str]:
    query, _, value, *_, patchwise, _, window = arguments
    weight1, weight2 = arguments[5], arguments[8]
    taps = window[0] * window[1]
    return multiply_adds.vector_attention(query, value, weight1, weight2, taps, patchwise)
