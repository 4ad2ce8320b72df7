"""FlexAttention as a way to local attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrednet.ops import Window

from .problems import Problem


def flex_mask(window: Window, size: Sequence[int], device: str, dry: bool) -> object:
    """Return FlexAttention's block mask of a window on a map of this size.

    Compiled, it needs no memory for every pair of positions, which at stage 1 would be more than a
    GPU has.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    (high, wide), (height, width) = window.padding, size

    def near(b: Tensor, n: Tensor, i: Tensor, m: Tensor) -> Tensor:
        return ((m // width - i // width).abs() <= high) & ((m % width - i % width).abs() <= wide)

    make = create_block_mask if dry else torch.compile(create_block_mask, dynamic=False)
    # tensors made in inference mode could not be kept for a backward pass
    with torch.inference_mode(False), torch.no_grad():
        return make(near, None, None, height * width, height * width, device=device)


class _OfLeaves(torch.autograd.Function):
    """Call a function with leaves of its own, and pass its gradients on.

    Compiled FlexAttention loses the gradients of tensors that a score function reads and that are
        no leaves: see
    https://github.com/pytorch/pytorch/issues/162228.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable, *tensors: Tensor) -> Tensor:
        ctx.leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            ctx.result = function(*ctx.leaves)
        return ctx.result.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch.autograd.grad(ctx.result, ctx.leaves, grad)


def flex_attention(problem: Problem, dry: bool) -> Callable:
    """FlexAttention with the same relative logits, made before it and looked up by its score
    function.
    """
    window, value = problem.window, problem.inputs['value']
    (high, wide), (height, width) = window.padding, value.shape[-2:]
    # what the first call, which is not timed, makes
    ready: dict[str, Any] = {}

    def prepare() -> None:
        from torch.nn.attention.flex_attention import flex_attention as flex

        ready['mask'] = flex_mask(window, (height, width), str(value.device), dry)
        ready['flex'] = flex if dry else torch.compile(flex, dynamic=False)

    def attend(
        query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor
    ) -> Tensor:
        def score(logit: Tensor, b: Tensor, n: Tensor, i: Tensor, m: Tensor) -> Tensor:
            u = (m // width - i // width + high).clamp(0, 2 * high)
            v = (m % width - i % width + wide).clamp(0, 2 * wide)
            return logit + by_row[b, n, i, u] + by_column[b, n, i, v]

        return ready['flex'](
            query, key, value, score_mod=score, block_mask=ready['mask'], scale=1.0
        )

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if not ready:
            prepare()
        upper, lower = query.chunk(2, 2)
        inputs = [tensor.flatten(3).mT.contiguous() for tensor in (query, key, value)]
        inputs.append(torch.einsum('bndhw,ndu->bnhwu', upper, rows).flatten(2, 3))
        inputs.append(torch.einsum('bndhw,ndv->bnhwv', lower, columns).flatten(2, 3))
        result = _OfLeaves.apply(attend, *inputs) if torch.is_grad_enabled() else attend(*inputs)
        return result.mT.unflatten(3, (height, width))

    return run
