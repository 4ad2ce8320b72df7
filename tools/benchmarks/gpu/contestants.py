"""Other ways to the result of an operator, each a function of a case's inputs.

A contestant that cannot run says why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrednet.ops import (
    Window,
    attention,
    axial_definition,
    involution,
    vector_attention,
    vector_moments,
)

from ..baselines import shifts_involution, unfold_attention, unfold_involution, with_window
from ..cases import Case, Work, convolution
from .flex import flex_attention


def _compiled(function: Callable, dry: bool) -> Callable:
    return torch.compile(function, dynamic=False, backend='eager' if dry else 'inductor')


def involutions(case: Case, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return all ways to an involution. The first is ours."""
    window = case.window
    unfold = with_window(unfold_involution, window)
    contestants = {
        'fused': case.operator,
        'stored kernels, our primitives': with_window(involution.definition, list(window)),
        'unfold': unfold,
    }
    if compiled:
        shifts = with_window(shifts_involution, window)
        contestants['unfold, compiled'] = _compiled(unfold, dry)
        contestants['shifts, compiled'] = _compiled(shifts, dry)
    return contestants | {CONVOLUTION: Convolution(case.inputs['value'])}


def natten(window: Window) -> Callable:
    """NATTEN, for context: it has no relative positions, and its window shifts at borders."""

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        # an installed NATTEN may not fit this torch: the contestant's line then has the error
        from natten.functional import na2d

        lines = (tensor.permute(0, 3, 4, 1, 2).contiguous() for tensor in (query, key, value))
        return na2d(*lines, kernel_size=window.kernel, scale=1.0).permute(0, 3, 4, 1, 2)

    return run


def attentions(case: Case, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return all ways to local attention. The first is ours."""
    window = case.window
    unfold = with_window(unfold_attention, window)

    def stored_logits(*inputs: Tensor) -> Tensor:
        return attention.definition(*inputs, None, list(window))[0]

    contestants = {
        'fused': case.operator,
        'stored logits, our primitives': stored_logits,
        'unfold': unfold,
    }
    if compiled:
        contestants['unfold, compiled'] = _compiled(unfold, dry)
    if flex:
        contestants['FlexAttention'] = flex_attention(case, dry)
    if importlib.util.find_spec('natten'):
        contestants[NATTEN] = natten(window)
    return contestants | {CONVOLUTION: Convolution(case.inputs['query'])}


def axials(case: Case, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return all ways to axial attention. The first is ours."""

    def stored_logits(*inputs: Tensor) -> Tensor:
        # a softmax does not change with a shift
        shift = torch.zeros_like(inputs[-1])
        return axial_definition.mix(*inputs, shift, [0, 1, 2], 0, True)

    return {'fused': case.operator, 'stored logits': stored_logits}


def vectors(case: Case, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return all ways to vector attention. The first is ours."""
    # only pairwise features have a position
    places = case.inputs['query'].shape[1] - case.inputs['value'].shape[1] // 4
    patchwise = places == 0
    relation = 'concatenation' if patchwise else 'subtraction'

    def stored_features(*inputs: Tensor) -> Tensor:
        bias = inputs[-1].new_zeros(len(inputs[-1]))
        options = (relation, patchwise, places, list(case.window))
        return vector_attention.definition(*inputs, bias, *options)

    return {'fused': case.operator, 'stored features, in chunks': stored_features}


def statistics(case: Case, *, dry: bool, compiled: bool, flex: bool) -> dict[str, Callable]:
    """Return all ways to the statistics of vector attention. The first is ours."""
    # a patch has features of its own for each tap
    patchwise = len(case.inputs['scale1']) > case.inputs['query'].shape[1]
    relation, places = ('concatenation', 0) if patchwise else ('subtraction', 2)

    def stored_features(*inputs: Tensor) -> Tensor:
        options = (relation, patchwise, places, list(case.window))
        return torch.cat(vector_moments.definition(*inputs, *options))

    return {'fused': case.operator, 'stored features, in chunks': stored_features}


class Convolution:
    """A 3x3 convolution of all channels of a map (B, G, D, H, W), for context.

    Attributes:
        leaves: Tensors that have a gradient besides the inputs of the case.
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
# contestants that compute another function, and the work of that function where it is known
CONTEXT: dict[str, Callable[[Case], tuple[Work, Work]] | None] = {
    CONVOLUTION: convolution,
    NATTEN: None,
}
