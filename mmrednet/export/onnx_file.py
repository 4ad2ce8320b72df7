"""ONNX files of exported programs, by torch's exporter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from .onnx_functions import DOMAIN, Functions
from .programs import DETECTION, PORTABLE, blocking

# the lowest that has every operator that is used here
OPSET = 18
# operators that become standard ones here
KNOWN = (*DETECTION, *(f'mmrednet.{name}' for name in PORTABLE))


def write_onnx(
    program: ExportedProgram, path: Path, output_names: Sequence[str], *, native: bool = False
) -> None:
    """Write a program as an ONNX file with one input, 'image'.

    Args:
        program: The program, see :func:`mmrednet.export.capture`.
        path: Path of the file.
        output_names: Names of the outputs.
        native: If True, operators of ours are single nodes, for the extension of OpenVINO.
            Default: False, standard operators alone.

    Raises:
        ValueError: Operators have no form in ONNX.
    """
    names = blocking(program, KNOWN)
    if names:
        raise ValueError(
            f'program must consist of operators that ONNX has, got {", ".join(sorted(names))}.'
        )
    functions = Functions(OPSET, native=native)
    with warnings.catch_warnings():
        # torch's own, about its exporter
        warnings.simplefilter('ignore')
        result: Any = torch.onnx.export(
            functions.with_calls(program),
            dynamo=True,
            opset_version=OPSET,
            input_names=['image'],
            output_names=list(output_names),
            custom_translation_table=_translations(program),
            verbose=False,
        )
    _inline(result.model, functions)
    result.save(path)


def _inline(model: Any, functions: Functions) -> None:
    """Put the nodes of functions in place of their calls, which few runtimes but ORT can read."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    if not functions.calls:
        return
    model.opset_imports[DOMAIN] = 1
    for proto in functions.protos():
        function = onnx_ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
    common.InlinePass()(model)
    if not functions.native:
        model.opset_imports.pop(DOMAIN, None)
    optimizer.optimize(model)
    # shapes and constants that several calls share
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _translations(program: ExportedProgram) -> dict[Callable, Callable]:
    """Return the ONNX form of the operators of detectors, if a program has them."""
    if not blocking(program):
        return {}
    from onnxscript import opset18 as op

    # registers both operators
    from . import detection_ops  # noqa: F401

    def nms(boxes: Any, scores: Any, threshold: float, limit: int) -> Any:
        first = op.Constant(value_ints=[0])
        groups = op.Constant(value_ints=[0, 1])
        indices = op.NonMaxSuppression(
            op.Unsqueeze(boxes, first),
            op.Unsqueeze(scores, groups),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[threshold]),
        )
        # rows of (image, class, box)
        column = op.Gather(indices, op.Constant(value_ints=[2]), axis=1)
        return op.Squeeze(column, op.Constant(value_ints=[1]))

    def roi_align(
        features: Any, boxes: Any, size: int, scale: float, samples: int, aligned: bool
    ) -> Any:
        count = op.Shape(boxes, start=0, end=1)
        images = op.Expand(op.Constant(value_ints=[0]), count)
        return op.RoiAlign(
            features,
            boxes,
            images,
            mode='avg',
            output_height=size,
            output_width=size,
            sampling_ratio=samples,
            spatial_scale=scale,
            coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
        )

    ops = torch.ops.mmrednet
    return {ops.nms.default: nms, ops.roi_align.default: roi_align}


def count_nodes(path: Path) -> int:
    """Return the number of nodes of an ONNX file, with those of functions where it calls them."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    sizes = {(function.domain, function.name): function for function in model.functions}

    def size(nodes: Any) -> int:
        total = 0
        for node in nodes:
            function = sizes.get((node.domain, node.op_type))
            total += 1 if function is None else size(function.node)
        return total

    return size(model.graph.node)
