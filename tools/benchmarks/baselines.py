"""Other formulations of the operators, which benchmarks compare with: unfold, shifts, single taps.

Each takes the inputs of its operator and the window. Tests have oracles of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrednet.ops import Window, _torch
from mmrednet.ops import attention as attention_ops


def unfolded(x: Tensor, window: Window) -> Tensor:
    """Return the neighbours (B, G, D, K, Ho, Wo) of every position of (B, G, D, H, W)."""
    size = window.output_size(*x.shape[-2:])
    patches = F.unfold(
        x.flatten(1, 2), window.kernel, window.dilation, window.padding, window.stride
    )
    return patches.view(*x.shape[:3], window.taps, *size)


def shifted(x: Tensor, window: Window) -> Iterator[Tensor]:
    """Yield the map (B, G, D, H, W) shifted by each tap. The window has no stride or dilation."""
    (top, left), (height, width) = window.padding, x.shape[-2:]
    padded = F.pad(x, (left, left, top, top))
    for u in range(window.kernel[0]):
        for v in range(window.kernel[1]):
            yield padded[..., u : u + height, v : v + width]


def generated_kernels(hidden: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Return involution's kernels (B, G, K, Ho, Wo), by the published 1x1 convolution."""
    # unlike a linear layer, a convolution keeps the layout of its input
    return F.conv2d(hidden, weight[:, :, None, None], bias).unflatten(1, (groups, -1))


def unfold_aggregate(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Patches times weights, summed over taps."""
    return (weight.unsqueeze(2) * unfolded(value, window)).sum(3)


def unfold_correlate(query: Tensor, key: Tensor, window: Window) -> Tensor:
    """Queries times patches, summed over channels."""
    return (query.unsqueeze(3) * unfolded(key, window)).sum(2)


def unfold_involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, window: Window
) -> Tensor:
    """The published formulation: patches times stored kernels."""
    kernels = generated_kernels(hidden, weight, bias, value.shape[1])
    return unfold_aggregate(value, kernels, window)


def unfold_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, window: Window
) -> Tensor:
    """Patches of keys and of values, with stored logits."""
    logits = unfold_correlate(query, key, window)
    logits = logits + attention_ops.relative_logits(query, rows, columns)
    outside_mask = attention_ops.outside(window, key.shape[-2:], key.device)
    # in float32 or wider, as the operator takes it
    softmax_dtype = torch.promote_types(value.dtype, torch.float32)
    weight = logits.masked_fill(outside_mask, -torch.inf).softmax(2, dtype=softmax_dtype)
    return unfold_aggregate(value, weight.to(value.dtype), window)


def shifts_involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, window: Window
) -> Tensor:
    """One shifted map for each tap, added up: a form that a compiler can fuse."""
    kernels = generated_kernels(hidden, weight, bias, value.shape[1])
    total = torch.zeros_like(value, dtype=torch.float32)
    for tap, neighbour in enumerate(shifted(value, window)):
        total = total + kernels[:, :, tap, None].float() * neighbour.float()
    return total.to(value.dtype)


def taps_involution(
    value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, window: Window
) -> Tensor:
    """Stored kernels, aggregated by plain torch one tap at a time."""
    kernels = generated_kernels(hidden, weight, bias, value.shape[1])
    return _torch.aggregate(value, kernels, window)


def taps_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, window: Window
) -> Tensor:
    """Stored logits, correlated and aggregated by plain torch one tap at a time."""
    logits = _torch.correlate(query, key, window)
    logits = logits + attention_ops.relative_logits(query, rows, columns)
    weight = attention_ops.attend(logits, window, key.shape[-2:])
    return _torch.aggregate(value, weight, window)


UNFOLD: dict[str, Callable[..., Tensor]] = {
    'aggregate': unfold_aggregate,
    'correlate': unfold_correlate,
    'involution': unfold_involution,
    'attention': unfold_attention,
}
TAPS: dict[str, Callable[..., Tensor]] = {
    'aggregate': _torch.aggregate,
    'correlate': _torch.correlate,
    'involution': taps_involution,
    'attention': taps_attention,
}


def with_window(function: Callable[..., Tensor], window: Window) -> Callable[..., Tensor]:
    """Return a formulation as a function of the inputs alone."""

    # a closure, which torch.compile traces where it may not trace a functools.partial
    def run(*inputs: Tensor) -> Tensor:
        return function(*inputs, window)

    return run
