"""Other ways to the same result, each a function of a problem's inputs; one that cannot run says why."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrednet.ops import Window, attend, attention, involution, local_attention, local_involution
from mmrednet.ops.attention import relative_logits


def _unfolded(x: Tensor, window: Window) -> Tensor:
    """Return (B, G, D, K, H, W) of (B, G, D, H, W)."""
    batch, groups, channels, height, width = x.shape
    patches = F.unfold(x.reshape(batch, -1, height, width), window.kernel, window.dilation, window.padding)
    return patches.view(batch, groups, channels, window.taps, height, width)


def _shifted(x: Tensor, window: Window) -> list[Tensor]:
    """Return one slice (B, G, D, H, W) for each tap."""
    (top, left), (height, width) = window.padding, x.shape[-2:]
    padded = F.pad(x, (left, left, top, top))
    return [padded[..., u:u + height, v:v + width] for u in range(window.kernel[0]) for v in range(window.kernel[1])]


def _compiled(function: Callable, dry: bool) -> Callable:
    return torch.compile(function, dynamic=False, backend='eager' if dry else 'inductor')


def involution_unfold(window: Window) -> Callable:
    """The published formulation: patches times stored kernels."""
    def run(value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernels = involution.generate_kernels(hidden, weight, bias, value.shape[1])
        return (kernels.unsqueeze(2) * _unfolded(value, window)).sum(3)
    return run


def involution_shifts(window: Window) -> Callable:
    """One shifted map for each tap, added up."""
    def run(value: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernels = involution.generate_kernels(hidden, weight, bias, value.shape[1])
        total = torch.zeros_like(value, dtype=torch.float32)
        for tap, near in enumerate(_shifted(value, window)):
            total = total + kernels[:, :, tap, None].float() * near.float()
        return total.to(value.dtype)
    return run


def involutions(window: Window, *, dry: bool, compiled: bool) -> dict[str, Callable]:
    """Return every way to an involution; the first is ours."""
    ways = {'fused': lambda *inputs: local_involution(*inputs, window),
            'stored kernels, our primitives': lambda *inputs: involution.definition(*inputs, list(window)),
            'unfold': involution_unfold(window)}
    if compiled:
        ways['unfold, compiled'] = _compiled(involution_unfold(window), dry)
        ways['shifts, compiled'] = _compiled(involution_shifts(window), dry)
    return ways


def attention_unfold(window: Window) -> Callable:
    """Patches of keys and of values, with stored logits."""
    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        logits = (query.unsqueeze(3) * _unfolded(key, window)).sum(2) + relative_logits(query, rows, columns)
        weight = attend(logits, window, key.shape[-2:]).to(value.dtype)
        return (weight.unsqueeze(2) * _unfolded(value, window)).sum(3)
    return run


def flex_attention(window: Window, dry: bool) -> Callable:
    """FlexAttention with the same relative logits, made before it and looked up by its score function."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex
    compiled, masks = flex if dry else torch.compile(flex, dynamic=False), {}

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        (height, width), (high, wide) = query.shape[-2:], window.padding
        upper, lower = query.chunk(2, 2)
        by_row = torch.einsum('bndhw,ndu->bnhwu', upper, rows).flatten(2, 3)
        by_column = torch.einsum('bndhw,ndv->bnhwv', lower, columns).flatten(2, 3)

        def score(logit: Tensor, b: Tensor, n: Tensor, i: Tensor, m: Tensor) -> Tensor:
            u = (m // width - i // width + high).clamp(0, 2 * high)
            v = (m % width - i % width + wide).clamp(0, 2 * wide)
            return logit + by_row[b, n, i, u] + by_column[b, n, i, v]

        def near(b: Tensor, n: Tensor, i: Tensor, m: Tensor) -> Tensor:
            return ((m // width - i // width).abs() <= high) & ((m % width - i % width).abs() <= wide)

        if (height, width) not in masks:
            masks[height, width] = create_block_mask(near, None, None, height * width, height * width,
                                                     device=str(query.device))
        lines = (tensor.flatten(3).mT.contiguous() for tensor in (query, key, value))
        result = compiled(*lines, score_mod=score, block_mask=masks[height, width], scale=1.0)
        return result.mT.unflatten(3, (height, width))
    return run


def natten(window: Window) -> Callable:
    """NATTEN, which has no relative positions: another function, for context; borders shift its window."""
    from natten.functional import na2d

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        lines = (tensor.permute(0, 3, 4, 1, 2).contiguous() for tensor in (query, key, value))
        return na2d(*lines, kernel_size=window.kernel, scale=1.0).permute(0, 3, 4, 1, 2)
    return run


def attentions(window: Window, *, dry: bool, compiled: bool) -> dict[str, Callable]:
    """Return every way to local attention; the first is ours."""
    ways = {'fused': lambda query, key, value, rows, columns: local_attention(query, key, value, window, rows=rows,
                                                                              columns=columns),
            'stored logits, our primitives': lambda *inputs: attention.definition(*inputs, None, list(window))[0],
            'unfold': attention_unfold(window)}
    if compiled:
        ways['unfold, compiled'] = _compiled(attention_unfold(window), dry)
        ways['FlexAttention'] = flex_attention(window, dry)
    if importlib.util.find_spec('natten'):
        ways['NATTEN, no positions'] = natten(window)
    return ways


def convolution(channels: int, dtype: torch.dtype, device: str) -> Callable:
    """A 3x3 convolution of all channels, for context."""
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype) / channels
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    return lambda value, *_: F.conv2d(value.flatten(1, 2), weight, padding=1).unflatten(1, value.shape[1:3])


# what does not compute the same function
CONTEXT = ('NATTEN, no positions', 'convolution 3x3')
