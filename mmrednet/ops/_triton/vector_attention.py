"""Vector attention: chooses between the pairwise and the patchwise kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import (
    vector_pairwise,
    vector_pairwise_backward,
    vector_patchwise,
    vector_patchwise_backward,
)
from .tiles import next_power_of_2
from .vector_config import (
    MOST_CHANNELS,
    MOST_HIDDEN_OF_PATCHES,
    MOST_VALUES,
    limit_reasons,
    relation_reasons,
)

# scales, shifts and weights of the two layers, and a bias
GAMMA = 7


def reasons_against_attention(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any
) -> list[str]:
    """Return the reasons why the kernels cannot take these tensors."""
    gamma, options = arguments[:GAMMA], arguments[GAMMA:]
    names = ('scale1', 'shift1', 'weight1', 'scale2', 'shift2', 'weight2', 'bias2')
    tensors = dict(zip(names, gamma, strict=True))
    _, patchwise, _, window = options
    hidden, outputs = gamma[2].shape[0], gamma[6].shape[0]
    groups = outputs // (window[0] * window[1]) if patchwise else outputs
    # as in a tile
    values = next_power_of_2(value.shape[1] // groups) * max(16, next_power_of_2(groups))
    reasons = relation_reasons(query, hidden, options, key=key, value=value, **tensors)
    most_groups = MOST_HIDDEN_OF_PATCHES if patchwise else MOST_CHANNELS
    return reasons + limit_reasons(
        ('groups', groups, most_groups), ('channels of values', values, MOST_VALUES)
    )


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
        return vector_patchwise_backward.backward(grad, query, key, value, gamma, window)
    return vector_pairwise_backward.backward(
        grad, query, key, value, gamma, relation, position_channels, window
    )
