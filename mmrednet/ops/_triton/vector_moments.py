"""Statistics of vector attention's norms: chooses between the kernels of pairs and of patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import vector_pair_moments, vector_patch_moments
from .vector_config import relation_reasons


def reasons_against_moments(
    query: Tensor,
    key: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    *options: Any,
) -> list[str]:
    """Return the reasons why the kernels cannot take these tensors."""
    tensors = dict(key=key, scale=scale, shift=shift, weight=weight)
    hidden = 0 if weight is None else weight.shape[0]
    return relation_reasons(query, hidden, options, **tensors)


def reasons_against_moments_backward(
    grad_mean: Tensor, grad_variance: Tensor, mean: Tensor, *arguments: Any
) -> list[str]:
    """Return the reasons why the backward kernels cannot take these tensors."""
    return reasons_against_moments(*arguments)


def moments(
    query: Tensor,
    key: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmrednet.ops.vector_moments.definition`."""
    layer = [tensor for tensor in (scale, shift, weight) if tensor is not None]
    relation, patchwise, position_channels, window = options
    if patchwise:
        return vector_patch_moments.forward(query, key, layer, window)
    return vector_pair_moments.forward(query, key, layer, relation, position_channels, window)


def moments_backward(
    grad_mean: Tensor,
    grad_variance: Tensor,
    mean: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    """See :func:`mmrednet.ops.vector_moments.gradients`."""
    grads = (grad_mean, grad_variance)
    layer = [tensor for tensor in (scale, shift, weight) if tensor is not None]
    relation, patchwise, position_channels, window = options
    if patchwise:
        results = vector_patch_moments.backward(grads, mean, query, key, layer, window)
    else:
        results = vector_pair_moments.backward(
            grads, mean, query, key, layer, relation, position_channels, window
        )
    absent = [query.new_empty(0) for _ in range(5 - len(results))]
    return *results, *absent
