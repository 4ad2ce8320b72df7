"""Local attention with an online softmax, without stored logits.

The forward pass keeps one number for each position, the logarithm of the softmax's sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._torch import empty_in_layout_of
from .attention_backward import attention_backward
from .attention_tiles import (
    NOT_SPECIALISED,
    TILE,
    bias_of_outputs,
    constants,
    dense,
    finite,
    head_tile,
    load_map,
    planar,
    sizes_of,
    store_map,
    tap_logits,
)
from .tiles import (
    dilation_reasons,
    float64_reasons,
    index_type,
    inside,
    is_shifted,
    launch,
    layout,
    neighbour_of_window,
    on_map,
    start,
    strides,
    tiles,
)

__all__ = ['attention', 'attention_backward', 'difference_attention']

# what registers hold: the definition computes heads with more channels
MOST_CHANNELS = 128


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def attention_kernel(
    query,
    key,
    value,
    rows,
    columns,
    bias,
    result,
    logsumexp,
    # (batch, head, channel, row, column), coded as odd numbers
    query_strides,
    key_strides,
    value_strides,
    result_strides,
    sum_strides,
    # sizes; those of channels are constants
    heads,
    channels: tl.constexpr,
    value_channels: tl.constexpr,
    height,
    width,
    out_height,
    out_width,
    # kernel, stride, dilation and padding; whether windows at the border are moved inwards
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
    # minus the absolute difference of query and key, and not their product
    DIFFERENCE: tl.constexpr,
    # layouts
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    RESULT: tl.constexpr,
    # sizes of a program's tile
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The result and the logarithm of the softmax's sum."""
    head, batch, row, column, inside_map = head_tile(
        heads, out_height, out_width, TILE_H, TILE_W, INDEX
    )
    channel, value_channel = tl.arange(0, BLOCK_D).to(INDEX), tl.arange(0, BLOCK_V).to(INDEX)
    axis = (channel, channel < channels)
    value_axis = (value_channel, value_channel < value_channels)
    key += start(key_strides, batch, head, KEY)
    value += start(value_strides, batch, head, VALUE)
    query += start(query_strides, batch, head, QUERY)
    if bias is not None:
        bias = bias_of_outputs(bias, head, row, column, inside_map, height, width, WINDOW, SHIFTED)
    q = load_map(query, query_strides, axis, row, column, inside_map, QUERY)
    # Online softmax: the largest logit so far, the sum of weights relative to it, and the sum of
    # weighted values. A larger logit rescales both sums.
    largest = tl.full((TILE_H * TILE_W,), float('-inf'), tl.float32)
    weight_sum = tl.zeros((TILE_H * TILE_W,), tl.float32)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_V), tl.float32)
    neighbour_count = tl.zeros((TILE_H * TILE_W,), tl.int32)
    for tap in range(WINDOW[0] * WINDOW[1]):
        y, x = neighbour_of_window(
            row, column, tap // WINDOW[1], tap % WINDOW[1], height, width, WINDOW, SHIFTED
        )
        valid = inside_map & on_map(y, x, height, width)
        neighbour_count += valid.to(tl.int32)
        k = load_map(key, key_strides, axis, y, x, valid, KEY)
        logits, _ = tap_logits(
            q, k, rows, columns, bias, head, tap, channel, channels, valid, WINDOW, DIFFERENCE
        )
        new_largest = tl.maximum(largest, logits)
        # weights of logits of -inf are zero
        shift = finite(new_largest)
        rescale, weight = tl.exp(largest - shift), tl.exp(logits - shift)
        v = load_map(value, value_strides, value_axis, y, x, valid, VALUE)
        weight_sum = weight_sum * rescale + weight
        total = total * rescale[:, None] + weight[:, None] * v
        largest = new_largest
    # without neighbours the result is zero; where the logits of all neighbours are -inf, it is NaN
    total = total / tl.where(neighbour_count > 0, weight_sum, 1.0)[:, None]
    result += start(result_strides, batch, head, RESULT)
    store_map(result, result_strides, value_axis, row, column, inside_map, total, RESULT)
    # sums (B, N, 1, Ho, Wo) are contiguous
    offset = start(sum_strides, batch, head, -1) + inside(sum_strides, 0, row, column, -1)
    tl.store(logsumexp + offset, finite(largest) + tl.log(weight_sum), mask=inside_map)


def reasons_against_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> list[str]:
    """Return the reasons why the kernel cannot take these tensors."""
    reasons = float64_reasons(
        query=query, key=key, value=value, rows=rows, columns=columns, bias=bias
    )
    reasons += dilation_reasons(window)
    channels = max(query.shape[2], value.shape[2])
    if channels > MOST_CHANNELS:
        reasons.append(f'more than {MOST_CHANNELS} channels of a head, {channels}')
    return reasons


def reasons_against_attention_backward(
    grad: Tensor, logsumexp: Tensor, *arguments: Any
) -> list[str]:
    """Return the reasons why the backward kernels cannot take these tensors."""
    return float64_reasons(grad=grad) or reasons_against_attention(*arguments)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Sequence[Tensor | None],
    window: Sequence[int],
    difference: bool,
) -> tuple[Tensor, Tensor]:
    """Return the result and the logarithms of the softmax's sums."""
    size = query.shape[-2:]
    result = empty_in_layout_of(value, (*value.shape[:3], *size), value.dtype)
    sums = query.new_empty((*query.shape[:2], 1, *size), dtype=torch.float32)
    tensors = (query, key, value, result)
    launch(
        attention_kernel,
        query.shape[0] * query.shape[1] * tiles(size, TILE),
        query.device,
        *(query, key, value, *(dense(table) for table in tables), result, sums),
        *(strides(tensor) for tensor in tensors),
        planar(sums),
        *sizes_of(query, key, value),
        **dict(QUERY=layout(query), KEY=layout(key), VALUE=layout(value), RESULT=layout(result)),
        DIFFERENCE=difference,
        INDEX=index_type(*tensors),
        **constants(window, query, value),
    )
    return result, sums.squeeze(2)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See :func:`mmrednet.ops.attention.definition`."""
    return _forward(query, key, value, (rows, columns, bias), window, difference=False)


def reasons_against_difference_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Sequence[int]
) -> list[str]:
    """Return the reasons why the kernel cannot take these tensors."""
    reasons = reasons_against_attention(query, key, value, None, None, bias, window)
    if is_shifted(window):
        # its bias has no places
        reasons.append("a window with border='shift'")
    return reasons


def difference_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Tensor:
    """See :func:`mmrednet.ops.difference_attention.definition`."""
    return _forward(query, key, value, (None, None, bias), window, difference=True)[0]
