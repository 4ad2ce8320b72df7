"""Local attention by FlexAttention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrednet.ops import Window

from ..cases import Case


def flex_mask(window: Window, size: Sequence[int], device: str, dry: bool) -> object:
    """Return FlexAttention's block mask of a window on a map of this size."""
    from torch.nn.attention.flex_attention import create_block_mask

    (top, left), (height, width) = window.padding, size

    def in_window(b: Tensor, n: Tensor, i: Tensor, m: Tensor) -> Tensor:
        row_distance = (m // width - i // width).abs()
        column_distance = (m % width - i % width).abs()
        return (row_distance <= top) & (column_distance <= left)

    # uncompiled, it needs memory for every pair of positions: at stage 1 more than a GPU has
    make = create_block_mask if dry else torch.compile(create_block_mask, dynamic=False)
    # tensors of inference mode cannot be saved for a backward pass
    with torch.inference_mode(False), torch.no_grad():
        return make(in_window, None, None, height * width, height * width, device=device)


class _OfLeaves(torch.autograd.Function):
    """Call a function with leaves of its own, and pass its gradients on.

    Compiled FlexAttention loses the gradients of tensors that a score function reads if they are no
    leaves: see https://github.com/pytorch/pytorch/issues/162228.
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


def flex_attention(case: Case, dry: bool) -> Callable:
    """Return FlexAttention with the relative logits of a case.

    The logits of rows and columns are computed first, and its score function reads them.
    """
    window, value = case.window, case.inputs['value']
    (top, left), (height, width) = window.padding, value.shape[-2:]
    # the mask and the compiled function, from the first call, which is not timed
    ready: dict[str, Any] = {}

    def prepare() -> None:
        from torch.nn.attention.flex_attention import flex_attention as flex

        ready['mask'] = flex_mask(window, (height, width), str(value.device), dry)
        ready['flex'] = flex if dry else torch.compile(flex, dynamic=False)

    def attend(
        query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor
    ) -> Tensor:
        def score(logit: Tensor, b: Tensor, n: Tensor, i: Tensor, m: Tensor) -> Tensor:
            # clamped, since it is also called for pairs outside the window
            u = (m // width - i // width + top).clamp(0, 2 * top)
            v = (m % width - i % width + left).clamp(0, 2 * left)
            return logit + by_row[b, n, i, u] + by_column[b, n, i, v]

        return ready['flex'](
            query, key, value, score_mod=score, block_mask=ready['mask'], scale=1.0
        )

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if not ready:
            prepare()
        row_query, column_query = query.chunk(2, 2)
        # positions in one axis
        inputs = [tensor.flatten(3).mT.contiguous() for tensor in (query, key, value)]
        inputs.append(torch.einsum('bndhw,ndu->bnhwu', row_query, rows).flatten(2, 3))
        inputs.append(torch.einsum('bndhw,ndv->bnhwv', column_query, columns).flatten(2, 3))
        result = _OfLeaves.apply(attend, *inputs) if torch.is_grad_enabled() else attend(*inputs)
        return result.mT.unflatten(3, (height, width))

    return run
