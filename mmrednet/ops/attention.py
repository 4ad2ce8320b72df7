"""Local attention in one function, so that its logits need not reach memory.

With K = 49 taps the logits of a head of 8 channels are six times its values, kept before and after
the softmax. A fused kernel keeps one number for each position, the logarithm of the softmax's sum,
and makes the rest again.
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
from .transforms import transformable
from .window import Window


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
    r"""Average the neighbours of every position, weighed by how they relate to it and by where they
    are.

        result[b, n, d, i] = sum over j of  softmax over j of (logits[b, n, j, i]) * value[b, n, d,
        i + j] logits[b, n, j, i] = q . key[b, n, :, i + j]  +  q . [rows[n, :, u], columns[n, :,
        v]]  +  bias[n, j]

    with q = query[b, n, :, i] and tap j in row u and column v of the window (Ramachandran et al.,
    NeurIPS 2019, equations 2 and 3; without scaling). Neighbours outside the map get no weight. The
    softmax and all sums are taken in float32 or wider. Gradients reach all tensors.

    Args:
        query: (B, N, D, Ho, Wo).
        key: (B, N, D, H, W).
        value: (B, N, Dv, H, W).
        window: the neighbourhood; ``window.output_size(H, W)`` must be (Ho, Wo).
        rows: (N, D / 2, Kh), what the first half of a query's channels meets in each row, or None.
        columns: (N, D / 2, Kw), what the second half meets in each column; given if and only if
            ``rows`` is.
        bias: (N, K), what is added for each relative position, or None.

    Returns:
        (B, N, Dv, Ho, Wo), in the dtype and the memory layout of ``value``; zero where no neighbour
        lies on the map.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape does not match.
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
    check_shape(
        'rows',
        rows,
        '(heads, channels / 2, rows of the window)',
        (heads, channels // 2, window.kernel[0]),
    )
    check_shape(
        'columns',
        columns,
        '(heads, channels / 2, columns of the window)',
        (heads, channels // 2, window.kernel[1]),
    )
    check_shape('bias', bias, '(heads, taps)', (heads, window.taps))
    return attention(query, key, value, rows, columns, bias, list(window))[0]


def outside(window: Window, size: Sequence[int], device: torch.device) -> Tensor:
    """Return (K, Ho, Wo) bool: which taps of a window do not lie on a map of this size."""
    axes = []
    for axis, (length, count) in enumerate(
        zip(size, window.output_size(size[0], size[1]), strict=True)
    ):
        position = torch.arange(count, device=device) * window.stride[axis] - window.padding[axis]
        place = (
            position
            + torch.arange(window.kernel[axis], device=device)[:, None] * window.dilation[axis]
        )
        axes.append((place < 0) | (place >= length))
    return (axes[0][:, None, :, None] | axes[1][None, :, None, :]).flatten(0, 1)


def relative_logits(query: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return what queries (B, N, D, H, W) meet at each relative position, (B, N, K, H, W)."""
    upper, lower = query.chunk(2, 2)
    by_row = torch.einsum('bndhw,ndu->bnuhw', upper, rows)
    by_column = torch.einsum('bndhw,ndv->bnvhw', lower, columns)
    return (by_row[:, :, :, None] + by_column[:, :, None]).flatten(2, 3)


def attend(logits: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """Turn logits (B, N, K, Ho, Wo) into weights that sum to one over the taps on a map of this
    size.

    The softmax is taken in float32 or wider; taps outside the map get no weight, nor do any where
    all are outside.
    """
    return _softmax(logits, window, size)[0]


def _softmax(logits: Tensor, window: Window, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the weights and the logits in the dtype of the softmax, with those of taps outside the
    map masked.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    unseen = outside(window, size, logits.device)
    masked = wide.masked_fill(unseen, -torch.inf)
    # a softmax of nothing but minus infinity is NaN, and so are its gradients
    blind = unseen.all(0)
    weight = masked.masked_fill(blind, 0).softmax(2).masked_fill(blind, 0)
    return weight, masked


def _logits(
    query: Tensor,
    key: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> Tensor:
    wide = query.to(_torch.sum_dtype(query, key))
    logits = local.correlate(wide, key, window)
    if rows is not None and columns is not None:
        # autocast would round the products of these tensors to half precision
        with full_precision(wide.device.type):
            relative = relative_logits(wide, rows.to(wide.dtype), columns.to(wide.dtype))
        logits = logits + relative
    return logits if bias is None else logits + bias[:, :, None, None]


def definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Compute :func:`local_attention` by way of stored logits: what every fused kernel is compared
    with.

    Returns:
        The result and, in float32 or wider, the logarithm (B, N, Ho, Wo) of the softmax's sum:
        minus infinity where no neighbour lies on the map.
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
    """Return the weights P and the gradients P (dP - sum over j of P dP) of the logits; dP =
    correlate(grad, value).
    """
    weight = attend(
        _logits(query, key, rows, columns, bias, window), Window.from_flat(window), key.shape[-2:]
    )
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
    grad_value = local.scatter(grad.to(value.dtype), weight, value.shape[-2:], window)
    wide_query = query.to(weight.dtype)
    grad_query = local.aggregate(key.to(weight.dtype), grad_logits, window)
    grad_key = local.scatter(wide_query, grad_logits, key.shape[-2:], window).to(key.dtype)
    grad_rows, grad_columns, grad_bias = (query.new_empty(0) for _ in range(3))
    if rows is not None and columns is not None:
        by_tap = grad_logits.unflatten(2, (rows.shape[2], columns.shape[2]))
        by_row, by_column = by_tap.sum(3), by_tap.sum(2)
        upper, lower = wide_query.chunk(2, 2)
        grad_query = grad_query + torch.cat(
            [
                torch.einsum('bnuhw,ndu->bndhw', by_row, rows.to(weight.dtype)),
                torch.einsum('bnvhw,ndv->bndhw', by_column, columns.to(weight.dtype)),
            ],
            2,
        )
        grad_rows = torch.einsum('bnuhw,bndhw->ndu', by_row, upper).to(rows.dtype)
        grad_columns = torch.einsum('bnvhw,bndhw->ndv', by_column, lower).to(columns.dtype)
    if bias is not None:
        grad_bias = grad_logits.sum((0, 3, 4)).to(bias.dtype)
    return grad_query.to(query.dtype), grad_key, grad_value, grad_rows, grad_columns, grad_bias


def gradients(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`definition`'s result for its six tensors; differentiable in
    turn.
    """
    return _input_gradients(*_logit_gradients(grad, *inputs), grad, *inputs)


def in_layouts_of(
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients with the strides that the fake of ``attention_backward`` promises for query,
    key and value.
    """
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
    """See :func:`definition`; what it is given has been checked."""
    return definition(query, key, value, rows, columns, bias, window)


@custom_op('mmrednet::attention_logit_gradients', mutates_args=())
def attention_logit_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the weights and the gradients of the logits; called inside ``attention_backward``
    alone.
    """
    return _logit_gradients(grad, query, key, value, rows, columns, bias, window)


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
    """See :func:`gradients`; a kernel may use what the forward pass has found."""
    inputs = query, key, value, rows, columns, bias, window
    weight, grad_logits = attention_logit_gradients(grad, *inputs)
    return in_layouts_of((query, key, value), _input_gradients(weight, grad_logits, grad, *inputs))


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
    tables = [
        query.new_empty(0) if table is None else table.new_empty(table.shape)
        for table in (rows, columns, bias)
    ]
    return (
        *(
            _torch.empty_in_layout_of(tensor, tensor.shape, tensor.dtype)
            for tensor in (query, key, value)
        ),
        *tables,
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    # without the result: what follows may change it in place
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _grad(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    logsumexp, query, key, value, rows, columns, bias = ctx.saved_tensors
    inputs = (query, key, value, rows, columns, bias, ctx.window)
    # higher derivatives go through the primitives, which know theirs
    higher = torch.is_grad_enabled()
    grads = gradients(grad, *inputs) if higher else attention_backward(grad, logsumexp, *inputs)
    return *(
        tensor if needed else None
        for tensor, needed in zip(grads, ctx.needs_input_grad, strict=False)
    ), None


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


# logits and weights again, then the gradients of all five products
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
