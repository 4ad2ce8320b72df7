"""Operators of ours as single nodes of an ONNX file, which the extension of OpenVINO computes.

The nodes and their attributes are those of csrc/. Flags are numbers there: the reader of ONNX files
has no bools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import Window
from ..ops.residues import has_residues
from ..ops.vector_mapping import NATIVE


class Node(NamedTuple):
    """A node of the domain mmrednet.

    Args:
        type: Type of the node.
        inputs: Its inputs.
        attributes: Its attributes.
    """

    type: str
    inputs: list[Tensor]
    attributes: dict[str, Any]


def involution(
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    *affine: Tensor,
    relu: bool = False,
) -> Node:
    """See :func:`mmrednet.ops.local_involution`."""
    # the constant costs nothing, where an optional input in the middle would need a flag
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    attributes = dict(window=list(window), relu=int(relu))
    return Node('Involution', [value, hidden, weight, bias, *affine], attributes)


def involution_affine(
    value: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    window: Sequence[int],
) -> Node:
    """See :func:`mmrednet.ops.local_involution`."""
    return involution(value, hidden, weight, bias, window, scale, shift, relu=relu)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    bias: Tensor | None,
    window: Sequence[int],
    *,
    differences: bool = False,
) -> Node | None:
    """See :func:`mmrednet.ops.local_attention`. The node has the first result alone."""
    # the kernels take the small maps of all residues, which a program for any size cannot list
    if has_residues(Window.from_flat(window)):
        return None
    tables = [table for table in (rows, columns, bias) if table is not None]
    attributes = dict(
        window=list(window),
        differences=int(differences),
        has_positions=int(rows is not None),
        has_bias=int(bias is not None),
    )
    return Node('LocalAttention', [query, key, value, *tables], attributes)


def difference_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: Sequence[int]
) -> Node | None:
    """See :func:`mmrednet.ops.local_difference_attention`."""
    return attention(query, key, value, None, None, bias, window, differences=True)


def axial_attention(
    lines: Tensor,
    relative: Tensor,
    scale: Tensor,
    shift: Tensor,
    position_scale: Tensor | None,
    key_channels: int,
    terms: Sequence[int],
    span: int,
    value_position: bool,
    budget: int,
) -> Node:
    """See :func:`mmrednet.ops.axial.attention`."""
    # the softmax does not depend on the shift, and the budget is for the definition alone
    tables = [] if position_scale is None else [position_scale]
    attributes = dict(
        key_channels=key_channels,
        terms=list(terms),
        span=span,
        value_position=int(value_position),
    )
    return Node('AxialAttention', [lines, relative, scale, *tables], attributes)


def vector_attention(*arguments: Any) -> Node | None:
    """See :func:`mmrednet.ops.local_vector_attention`."""
    tensors, (relation, patchwise, position_channels, window) = arguments[:10], arguments[10:]
    if relation not in NATIVE[patchwise]:
        return None
    attributes = dict(
        relation=relation,
        patchwise=int(patchwise),
        position_channels=position_channels,
        window=list(window),
    )
    return Node('VectorAttention', list(tensors), attributes)


# Name in torch.ops.mmrednet, and the node or None where there is no kernel. Depth-wise convolutions
# are not among them: OpenVINO's own are as fast.
NODES: dict[str, Callable[..., Node | None]] = {
    'involution': involution,
    'involution_affine': involution_affine,
    'attention': attention,
    'difference_attention': difference_attention,
    'vector_attention': vector_attention,
    'axial_attention': axial_attention,
}
