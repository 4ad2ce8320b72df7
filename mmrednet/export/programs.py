"""Networks as exported programs, with operators of ours or with standard ones alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from ..ops import (  # noqa: F401
    Window,
    attention,
    axial,
    depthwise,
    difference_attention,
    involution,
    local,
)
from ..ops.residues import has_residues
from . import (  # noqa: F401
    attention_sums,
    detection_ops,
    local_sums,
    vector_sums,
)

# name in torch.ops.mmrednet of every operator of inference, and its portable form
PORTABLE: dict[str, Callable] = {
    'aggregate': local_sums.aggregate,
    'correlate': local_sums.correlate,
    'involution': local_sums.involution,
    'involution_affine': local_sums.involution_affine,
    'depthwise': local_sums.depthwise,
    'attention': attention_sums.attention,
    'difference_attention': attention_sums.difference_attention,
    'vector_attention': vector_sums.vector_attention,
    'axial_attention': vector_sums.axial_attention,
}
# (H, W) of the example of a program for any size. Where an axis of some tensor has a single entry,
# torch makes that part of the program: in a large example none has. Nothing is computed for it.
EXAMPLE = (1123, 1187)
# operators of detectors that are no part of torch, which the ONNX writer knows
DETECTION = ('mmrednet.nms', 'mmrednet.roi_align')


def capture(network: nn.Module, image: Tensor, *, dynamic: bool = True) -> ExportedProgram:
    """Export a network in eval mode, with one node for each operator of ours.

    Args:
        network: Network of one tensor.
        image: Example (B, C, H, W).
        dynamic: If True, the program takes images of any size, and any batch if the example has
            more than one image. Default: True.

    Raises:
        ValueError: The network is in training mode.
    """
    if network.training:
        raise ValueError(
            'network must be in eval mode: call network.eval() first, got '
            f'{type(network).__name__} with training=True.'
        )
    shapes = None
    if dynamic:
        axes = [0, 2, 3] if len(image) > 1 else [2, 3]
        shapes = (dict.fromkeys(axes, Dim.DYNAMIC),)
        image = image.new_empty(*image.shape[:2], *EXAMPLE)
    with torch.no_grad():
        return torch.export.export(network, (image,), dynamic_shapes=shapes, strict=False)


def portable(program: ExportedProgram) -> ExportedProgram:
    """Replace the operators of ours in a program by standard ones.

    Nothing is unfolded: see tiles.py. A program without our operators stays as it is.
    """
    if not any(name.startswith('mmrednet.') for name in operators(program)):
        return program
    table = {}
    for name, function in PORTABLE.items():
        table[getattr(torch.ops.mmrednet, name).default] = function
    return decomposed(program, table)


def decomposed(program: ExportedProgram, table: dict[Any, Callable]) -> ExportedProgram:
    """Return a program with other functions in place of some operators, and with the same guards.

    Args:
        program: The program.
        table: Functions by operator.
    """
    result = program.run_decompositions(table)
    # What torch asks of strides while it decomposes becomes guards, such as several tiles in a row.
    # The operators are the same for one: the guards of the original program are all that must hold.
    result._guards_code = program._guards_code
    return result


def operators(program: ExportedProgram) -> Counter[str]:
    """Return how often a program calls each operator, as in 'aten.conv2d' or 'mmrednet.nms'."""
    names: Counter[str] = Counter()
    # a part with its own autocast is a graph inside the graph
    graphs = [
        part.graph for part in program.graph_module.modules() if isinstance(part, GraphModule)
    ]
    for node in chain.from_iterable(graph.nodes for graph in graphs):
        if node.op == 'call_function' and isinstance(node.target, torch._ops.OpOverload):
            names[f'{node.target.namespace}.{node.target._schema.name.split("::")[1]}'] += 1
    return names


def blocking(program: ExportedProgram, allowed: tuple[str, ...] = ()) -> Counter[str]:
    """Return the operators of a program that only Python and our libraries know.

    Args:
        program: The program.
        allowed: Names of operators that do not count.
    """
    names = operators(program)
    return Counter(
        {
            name: count
            for name, count in names.items()
            if not name.startswith(('aten.', 'prim.')) and name not in allowed
        }
    )


def without_kernels(program: ExportedProgram) -> dict[str, int]:
    """Return how often a program calls an operator in a way that no kernel computes.

    It is attention over shifted windows with a dilation, in a program for any size. Elsewhere it
    is split into windows without one.
    """
    overload = torch.ops.mmrednet.attention.default
    calls = [node for node in program.graph.nodes if node.target is overload]
    windows = [Window.from_flat(node.args[-1]) for node in calls]
    count = sum(has_residues(window) for window in windows)
    return {'mmrednet.attention over dilated shifted windows': count} if count else {}


def largest_error(outputs: Any, expected: Any) -> float:
    """Return the largest difference of two lists of tensors, as a share of the largest value."""
    worst = 0.0
    for output, reference in zip(outputs, expected, strict=True):
        output, reference = torch.as_tensor(output), torch.as_tensor(reference)
        if output.shape != reference.shape:
            return float('inf')
        if reference.numel() == 0:
            continue
        difference = (output.double() - reference.double()).abs().max()
        scale = reference.double().abs().max().clamp_min(1e-12)
        worst = max(worst, float(difference / scale))
    return worst
