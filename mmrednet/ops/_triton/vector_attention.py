"""Vector attention: chooses between the pairwise and the patchwise kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import vector_pairwise, vector_patchwise
from .vector_tiles import reasons_against

# scales, shifts and weights of the two layers, and a bias
GAMMA = 7


def reasons_against_attention(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any
) -> list[str]:
    """Return the reasons why the kernels cannot take these tensors."""
    gamma, options = arguments[:GAMMA], arguments[GAMMA:]
    names = ('scale1', 'shift1', 'weight1', 'scale2', 'shift2', 'weight2', 'bias2')
    tensors = dict(zip(names, gamma, strict=True))
    hidden, outputs = gamma[2].shape[0], gamma[6].shape[0]
    channels = value.shape[1]
    return reasons_against(query, key, hidden, outputs, channels, options, value=value, **tensors)


def reasons_against_attention_backward(grad: Tensor, *arguments: Any) -> list[str]:
    """Return the reasons why the backward kernels cannot take these tensors."""
    return reasons_against_attention(*arguments)


def attention(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> Tensor:
    """See :func:`mmrednet.ops.vector_attention.definition`."""
    gamma: Sequence[Tensor] = arguments[:GAMMA]
    relation, patchwise, position_channels, window = arguments[GAMMA:]
    if patchwise:
        return vector_patchwise.forward(query, key, value, gamma, window)
    return vector_pairwise.forward(query, key, value, gamma, relation, position_channels, window)


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    """See :func:`mmrednet.ops.vector_attention.gradients`."""
    gamma: Sequence[Tensor] = arguments[:GAMMA]
    relation, patchwise, position_channels, window = arguments[GAMMA:]
    if patchwise:
        return vector_patchwise.backward(grad, query, key, value, gamma, window)
    return vector_pairwise.backward(
        grad, query, key, value, gamma, relation, position_channels, window
    )
