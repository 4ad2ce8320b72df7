"""Other ways to the same result, each a function of a problem's inputs; one that cannot run says
why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrednet.ops import (
    Window,
    attend,
    attention,
    axial,
    axial_attention,
    involution,
    local_attention,
    local_involution,
)
from mmrednet.ops.attention import relative_logits

from .flex import flex_attention
from .problems import Problem, Work, convolution


def _unfolded(x: Tensor, window: Window) -> Tensor:
    """Return (B, G, D, K, H, W) of (B, G, D, H, W)."""
    batch, groups, channels, height, width = x.shape
    patches = F.unfold(
        x.reshape(batch, -1, height, width), window.kernel, window.dilation, window.padding
    )
    return patches.view(batch, groups, channels, window.taps, height, width)


def _shifted(x: Tensor, window: Window) -> list[Tensor]:
    """Return one slice (B, G, D, H, W) for each tap."""
    (top, left), (height, width) = window.padding, x.shape[-2:]
    padded = F.pad(x, (left, left, top, top))
    return [
        padded[..., u : u + height, v : v + width]
        for u in range(window.kernel[0])
        for v in range(window.kernel[1])
    ]


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


def involutions(problem: Problem, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return every way to an involution; the first is ours."""
    window = problem.window
    ways = {
        'fused': lambda *inputs: local_involution(*inputs, window),
        'stored kernels, our primitives': lambda *inputs: involution.definition(
            *inputs, list(window)
        ),
        'unfold': involution_unfold(window),
    }
    if compiled:
        ways['unfold, compiled'] = _compiled(involution_unfold(window), dry)
        ways['shifts, compiled'] = _compiled(involution_shifts(window), dry)
    return ways | {CONVOLUTION: Convolution(next(iter(problem.inputs.values())))}


def attention_unfold(window: Window) -> Callable:
    """Patches of keys and of values, with stored logits."""

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        logits = (query.unsqueeze(3) * _unfolded(key, window)).sum(2) + relative_logits(
            query, rows, columns
        )
        weight = attend(logits, window, key.shape[-2:]).to(value.dtype)
        return (weight.unsqueeze(2) * _unfolded(value, window)).sum(3)

    return run


def natten(window: Window) -> Callable:
    """NATTEN, which has no relative positions: another function, for context; borders shift its
    window.
    """

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        # what is installed need not fit this torch: an error here is told in the contestant's line
        from natten.functional import na2d

        lines = (tensor.permute(0, 3, 4, 1, 2).contiguous() for tensor in (query, key, value))
        return na2d(*lines, kernel_size=window.kernel, scale=1.0).permute(0, 3, 4, 1, 2)

    return run


def attentions(problem: Problem, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return every way to local attention; the first is ours."""
    window = problem.window
    ways = {
        'fused': lambda query, key, value, rows, columns: local_attention(
            query, key, value, window, rows=rows, columns=columns
        ),
        'stored logits, our primitives': lambda *inputs: attention.definition(
            *inputs, None, list(window)
        )[0],
        'unfold': attention_unfold(window),
    }
    if compiled:
        ways['unfold, compiled'] = _compiled(attention_unfold(window), dry)
    if flex:
        ways['FlexAttention'] = flex_attention(problem, dry)
    if importlib.util.find_spec('natten'):
        ways[NATTEN] = natten(window)
    return ways | {CONVOLUTION: Convolution(next(iter(problem.inputs.values())))}


def axials(problem: Problem, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return the ways to axial attention; the first is ours. A softmax is the same with any shift:
    none is given.
    """
    return {
        'fused': lambda *inputs: axial_attention(*inputs, torch.zeros_like(inputs[-1])),
        'stored logits': lambda *inputs: axial.mix(
            *inputs, torch.zeros_like(inputs[-1]), [0, 1, 2], 0, True
        ),
    }


class Convolution:
    """A 3x3 convolution of all channels of a map (B, G, D, H, W), for context.

    Attributes:
        leaves: what it is to have a gradient for besides the inputs of the problem.
    """

    def __init__(self, value: Tensor) -> None:
        channels = value.shape[1] * value.shape[2]
        weight = (
            torch.randn(channels, channels, 3, 3, device=value.device).to(value.dtype) / channels
        )
        self.leaves = [weight.contiguous(memory_format=torch.channels_last).requires_grad_()]

    def __call__(self, value: Tensor, *_: Tensor) -> Tensor:
        """Map (B, G, D, H, W) to the same shape."""
        return F.conv2d(value.flatten(1, 2), *self.leaves, padding=1).unflatten(1, value.shape[1:3])


CONVOLUTION, NATTEN = 'convolution 3x3', 'NATTEN, no positions'
# what does not compute the same function, and the work of what it computes, where that is known
CONTEXT: dict[str, Callable[[Problem], tuple[Work, Work]] | None] = {
    CONVOLUTION: convolution,
    NATTEN: None,
}
