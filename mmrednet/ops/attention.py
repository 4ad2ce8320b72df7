"""Local attention in one function, so that its logits need not reach memory.

With K = 49 taps the logits of a head of 8 channels have six times the elements of its values, and
they are kept before and after the softmax. A fused kernel keeps one element for each position, the
logarithm of the softmax's sum, and computes the logits again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from . import _torch, _triton, local, multiply_adds
from .checks import check_outputs, check_same, check_shape, check_tensors
from .precision import full_precision
from .residues import has_residues, over_residues
from .tracing import is_open, leaf_function
from .transforms import transformable
from .window import Window


@leaf_function
def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Window,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    r"""Average the neighbours of every position, weighted by content and relative position.

        result[b, n, d, i] = sum over j of  weight[b, n, j, i] * value[b, n, d, i + j]
        weight[b, n, j, i] = softmax over j of  logits[b, n, j, i]
        logits[b, n, j, i] = q . key[b, n, :, i + j] + q . [rows[n, :, u], columns[n, :, v]]
                             + bias[n, j]

    with q = query[b, n, :, i] and tap j in row u and column v of the window (Ramachandran et al.,
    NeurIPS 2019, equations 2 and 3, without scaling). Neighbours outside the map have no weight.
    The softmax and all sums are taken in float32 or wider. Gradients reach all tensors.

    Args:
        query: Tensor (B, N, D, Ho, Wo) of N heads.
        key: Tensor (B, N, D, H, W).
        value: Tensor (B, N, Dv, H, W).
        window: Window over the map. ``window.output_size(H, W)`` must be (Ho, Wo).
        rows: Tensor (N, D / 2, Kh), embeddings of the window's rows, or None. They are multiplied
            with the first half of a query's channels.
        columns: Tensor (N, D / 2, Kw), embeddings of the window's columns, or None. They are
            multiplied with the second half of a query's channels, and are given if and only if
            ``rows`` are.
        bias: Tensor (N, window.offsets), added to the logits of each relative position, or None.
            With the border 'zero' these are the K taps. With the border 'shift' they are the
            (2 * Kh - 1) * (2 * Kw - 1) differences of the places of neighbour and output, and
            ``rows`` and ``columns`` must be None.

    Returns:
        (B, N, Dv, Ho, Wo), in the dtype and the memory layout of ``value``. It is zero where no
        neighbour lies on the map.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match.
    """
    query, key, value, rows, columns, bias = check_tensors(
        ('rows', 'columns', 'bias'),
        query=(query, 5),
        key=(key, 5),
        value=(value, 5),
        rows=(rows, 3),
        columns=(columns, 3),
        bias=(bias, 2),
    )
    check_same('query', query, 'key', key, dims=3)
    check_same('key', key, 'value', value, dims=2)
    if key.shape[-2:] != value.shape[-2:]:
        raise ValueError(f'key and value must agree in size, got {key.shape=}, {value.shape=}.')
    check_outputs('query', query, 'key', key.shape[-2:], window)
    _check_tables(query, rows, columns, bias, window)
    if window.border == 'shift':
        return _shifted_attention(query, key, value, bias, window)
    return attention(query, key, value, rows, columns, bias, list(window))[0]


def _shifted_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Window
) -> Tensor:
    by_place = None if bias is None else bias_by_place(bias, window)

    def attend_part(
        query: Tensor, key: Tensor, value: Tensor, _: Sequence[int], window: Window
    ) -> Tensor:
        return attention(query, key, value, None, None, by_place, list(window))[0]

    # without numbers, nobody knows how many positions each residue has
    if has_residues(window) and not is_open(key.shape[-2:]):
        return over_residues(attend_part, (query, key, value), window)
    return attend_part(query, key, value, (), window)


def bias_by_place(bias: Tensor, window: Window) -> Tensor:
    """Return the bias of every tap for every place of an output in its shifted window.

    Kernels then need not know relative positions. An output at place p sees its tap t at the
    relative position t - p, which is entry t - p + K - 1 of an axis of the table.

    Args:
        bias: Tensor (N, (2 * Kh - 1) * (2 * Kw - 1)).
        window: Shifted window.

    Returns:
        (N, K * K), K taps for each of Kh * Kw places.
    """
    kernel_h, kernel_w = window.kernel
    rows = torch.arange(kernel_h, device=bias.device)
    columns = torch.arange(kernel_w, device=bias.device)
    # (places, taps) of each axis
    row = rows - rows[:, None] + kernel_h - 1
    column = columns - columns[:, None] + kernel_w - 1
    entry = row[:, None, :, None] * (2 * kernel_w - 1) + column[:, None]
    return bias.index_select(1, entry.flatten())


def bias_of_taps(bias: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """Return the bias (N, K, H, W) of every tap of shifted windows on a map of size (H, W).

    Args:
        bias: Tensor (N, (2 * Kh - 1) * (2 * Kw - 1)) of relative positions.
        window: Shifted window.
        size: Size (H, W) of the map.
    """
    return _bias_of_outputs(bias_by_place(bias, window), window, size)


def _check_tables(
    query: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Window,
) -> None:
    """Raise if embeddings or bias do not fit to the query or to each other."""
    heads, channels = query.shape[1:3]
    if (rows is None) != (columns is None):
        raise ValueError(
            'rows and columns must be given together, got only '
            f'{"columns" if rows is None else "rows"}.'
        )
    if rows is not None and channels % 2:
        raise ValueError(
            f'query must have an even number of channels for rows and columns, got {query.shape=}.'
        )
    if rows is not None and window.border == 'shift':
        raise ValueError("rows and columns need a window with the border 'zero', got 'shift'.")
    half = channels // 2
    row_shape = (heads, half, window.kernel[0])
    column_shape = (heads, half, window.kernel[1])
    check_shape('rows', rows, '(heads, channels / 2, rows of the window)', row_shape)
    check_shape('columns', columns, '(heads, channels / 2, columns of the window)', column_shape)
    axes = '(heads, relative positions)' if window.border == 'shift' else '(heads, taps)'
    check_shape('bias', bias, axes, (heads, window.offsets))


def outside(window: Window, size: Sequence[int], device: torch.device) -> Tensor:
    """Return the mask (K, Ho, Wo) of taps that do not lie on a map of this size."""
    masks = []
    for axis, count in enumerate(window.output_size(size[0], size[1])):
        output = torch.arange(count, device=device)
        tap = torch.arange(window.kernel[axis], device=device)
        start = output * window.stride[axis] - window.padding[axis]
        # (taps, outputs) of this axis
        position = start + tap[:, None] * window.dilation[axis]
        masks.append((position < 0) | (position >= size[axis]))
    rows, columns = masks
    return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(0, 1)


def relative_logits(query: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the logits (B, N, K, H, W) of queries (B, N, D, H, W) and relative positions.

    The logit of tap (u, v) is q . [rows[:, u], columns[:, v]].
    """
    row_query, column_query = query.chunk(2, 2)
    by_row = torch.einsum('bndhw,ndu->bnuhw', row_query, rows)
    by_column = torch.einsum('bndhw,ndv->bnvhw', column_query, columns)
    # Kh + Kw products are added up to K sums
    return (by_row[:, :, :, None] + by_column[:, :, None]).flatten(2, 3)


@leaf_function
def attend(logits: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """Return the softmax of logits (B, N, K, Ho, Wo) over the taps on a map of this size.

    It is taken in float32 or wider. Taps outside the map have no weight. Where all taps are outside
    the weights are zero.
    """
    return _softmax(logits, window, size)[0]


def _softmax(logits: Tensor, window: Window, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the weights, and the logits with those of taps outside the map at minus infinity."""
    logits_wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # all taps of shifted windows lie on the map
    if window.border == 'shift':
        return logits_wide.softmax(2), logits_wide
    outside_mask = outside(window, size, logits.device)
    masked = logits_wide.masked_fill(outside_mask, -torch.inf)
    # where all logits are minus infinity, the softmax is NaN, and so are its gradients
    empty = outside_mask.all(0)
    weight = masked.masked_fill(empty, 0).softmax(2).masked_fill(empty, 0)
    return weight, masked


def _logits(
    query: Tensor,
    key: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> Tensor:
    """Return the logits (B, N, K, Ho, Wo) in float32 or wider."""
    dtype = _torch.sum_dtype(query, key)
    query = query.to(dtype)
    logits = local.correlate(query, key, window)
    if rows is not None and columns is not None:
        # autocast would round the products of these tensors to half precision
        with full_precision(query.device.type):
            relative = relative_logits(query, rows.to(dtype), columns.to(dtype))
        logits = logits + relative
    if bias is not None:
        logits = logits + _bias_of_outputs(bias, Window.from_flat(window), key.shape[-2:])
    return logits


def _bias_of_outputs(bias: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """Return the bias (N, K, Ho, Wo) of every tap, or (N, K, 1, 1) if it is equal for all outputs.

    Args:
        bias: Tensor (N, K), or (N, K * K) of :func:`bias_by_place`.
        window: Window over the map.
        size: Size (H, W) of the map.
    """
    if window.border != 'shift':
        return bias[:, :, None, None]
    row, column = _places(window, size, bias.device)
    table = bias.unflatten(1, (*window.kernel, window.taps))
    return table[:, row][:, :, column].movedim(3, 1)


def _places(window: Window, size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the place of every row and of every column in its shifted window."""
    row = _torch.shifted_axis(window, 0, size[0], device)[1]
    return row, _torch.shifted_axis(window, 1, size[1], device)[1]


def _bias_gradient(grad_logits: Tensor, window: Window) -> Tensor:
    """Return the gradient of the bias from those of the logits (B, N, K, Ho, Wo)."""
    if window.border != 'shift':
        return grad_logits.sum((0, 3, 4))
    summed = grad_logits.sum(0)
    row, column = _places(window, summed.shape[-2:], summed.device)
    by_column = summed.new_zeros((*summed.shape[:3], window.kernel[1])).index_add(3, column, summed)
    by_row = summed.new_zeros((*summed.shape[:2], *window.kernel)).index_add(2, row, by_column)
    # taps last, as in the bias
    return by_row.movedim(1, 3).flatten(1)


def definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Compute :func:`local_attention` from stored logits. Every fused kernel is tested against it.

    Returns:
        The result and, in float32 or wider, the logarithm (B, N, Ho, Wo) of the softmax's sum. It
        is minus infinity where no neighbour lies on the map.
    """
    logits = _logits(query, key, rows, columns, bias, window)
    weight, masked = _softmax(logits, Window.from_flat(window), key.shape[-2:])
    return local.aggregate(value, weight, window), masked.logsumexp(2)


def _logit_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the weights P and the gradients of the logits, P (dP - sum over j of P dP).

    The gradients of the weights are dP = correlate(grad, value).
    """
    logits = _logits(query, key, rows, columns, bias, window)
    weight = attend(logits, Window.from_flat(window), key.shape[-2:])
    grad_weight = local.correlate(grad.to(weight.dtype), value, window)
    return weight, weight * (grad_weight - (weight * grad_weight).sum(2, keepdim=True))


def _input_gradients(
    weight: Tensor,
    grad_logits: Tensor,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all six tensors from those of the logits."""
    dtype = weight.dtype
    grad_value = local.scatter(grad.to(value.dtype), weight, value.shape[-2:], window)
    query_wide = query.to(dtype)
    grad_query = local.aggregate(key.to(dtype), grad_logits, window)
    grad_key = local.scatter(query_wide, grad_logits, key.shape[-2:], window).to(key.dtype)
    # an op returns no None: empty tensors stand for the gradients of tensors that are None
    grad_rows, grad_columns, grad_bias = (query.new_empty(0) for _ in range(3))
    if rows is not None and columns is not None:
        by_tap = grad_logits.unflatten(2, (rows.shape[2], columns.shape[2]))
        by_row, by_column = by_tap.sum(3), by_tap.sum(2)
        row_query, column_query = query_wide.chunk(2, 2)
        grad_row_query = torch.einsum('bnuhw,ndu->bndhw', by_row, rows.to(dtype))
        grad_column_query = torch.einsum('bnvhw,ndv->bndhw', by_column, columns.to(dtype))
        grad_query = grad_query + torch.cat([grad_row_query, grad_column_query], 2)
        grad_rows = torch.einsum('bnuhw,bndhw->ndu', by_row, row_query).to(rows.dtype)
        grad_columns = torch.einsum('bnvhw,bndhw->ndv', by_column, column_query).to(columns.dtype)
    if bias is not None:
        grad_bias = _bias_gradient(grad_logits, Window.from_flat(window)).to(bias.dtype)
    return grad_query.to(query.dtype), grad_key, grad_value, grad_rows, grad_columns, grad_bias


def gradients(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`definition`'s result for its six tensors.

    They are differentiable in turn.
    """
    weight, grad_logits = _logit_gradients(grad, *inputs)
    return _input_gradients(weight, grad_logits, grad, *inputs)


def in_layouts_of(
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients with the strides of the fake tensors of ``attention_backward``."""
    query, key, value = (
        _torch.in_layout_of(like, grad) for like, grad in zip(inputs, grads[:3], strict=True)
    )
    rows, columns, bias = (grad.contiguous() for grad in grads[3:])
    return query, key, value, rows, columns, bias


def dense_gradients(
    grad: Tensor, _: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return :func:`gradients` with the arguments and the strides of ``attention_backward``."""
    return in_layouts_of(inputs[:3], gradients(grad, *inputs))


@transformable(definition)
@custom_op('mmrednet::attention', mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See :func:`definition`. The arguments have been checked."""
    return definition(query, key, value, rows, columns, bias, window)


@transformable(lambda grad, logsumexp, *inputs: gradients(grad, *inputs))
@custom_op('mmrednet::attention_backward', mutates_args=())
def attention_backward(
    grad: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`gradients`. A kernel may use the ``logsumexp`` of the forward pass."""
    return dense_gradients(grad, logsumexp, query, key, value, rows, columns, bias, window)


_triton.register(
    'attention',
    attention=(attention, definition),
    attention_backward=(attention_backward, dense_gradients),
)


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    size = query.shape[-2:]
    result = _torch.empty_in_layout_of(value, (*value.shape[:3], *size), value.dtype)
    return result, query.new_empty((*query.shape[:2], *size), dtype=_torch.sum_dtype(query, key))


@attention_backward.register_fake
def _(
    grad: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    grads = []
    for tensor in (query, key, value):
        grads.append(_torch.empty_in_layout_of(tensor, tensor.shape, tensor.dtype))
    for table in (rows, columns, bias):
        grads.append(query.new_empty(0) if table is None else table.new_empty(table.shape))
    return tuple(grads)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    # not the result, which later layers may change in place
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _grad(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    logsumexp, query, key, value, rows, columns, bias = ctx.saved_tensors
    inputs = (query, key, value, rows, columns, bias, ctx.window)
    # a backward pass that is recorded, for higher derivatives, must be made of differentiable ops
    if torch.is_grad_enabled():
        grads = gradients(grad, *inputs)
    else:
        grads = attention_backward(grad, logsumexp, *inputs)
    needs_grad = ctx.needs_input_grad[: len(grads)]
    results = [tensor if need else None for tensor, need in zip(grads, needs_grad, strict=True)]
    # the window has no gradient
    return *results, None


attention.register_autograd(_grad, setup_context=_setup_context)


# two per multiply-add, as torch counts
@register_flop_formula(torch.ops.mmrednet.attention)
def _flops(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    rows: Sequence[int] | None,
    columns: Sequence[int] | None,
    bias: Sequence[int] | None,
    window: Sequence[int],
    **_: Any,
) -> int:
    return 2 * multiply_adds.attention(query, value, rows, columns, window[0] * window[1]).total()


# the logits again; then two gradients of each of the products
@register_flop_formula(torch.ops.mmrednet.attention_backward)
def _flops_backward(
    grad: Sequence[int],
    logsumexp: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    rows: Sequence[int] | None,
    columns: Sequence[int] | None,
    bias: Sequence[int] | None,
    window: Sequence[int],
    **_: Any,
) -> int:
    forward = multiply_adds.attention(query, value, rows, columns, window[0] * window[1])
    return 2 * (3 * forward['correlate'] + 3 * forward['einsum'] + 2 * forward['aggregate'])
