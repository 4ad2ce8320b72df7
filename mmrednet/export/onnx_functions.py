"""Operators of ours in an ONNX file: functions of standard operators, one for each configuration,
or nodes of our own.

A network calls an operator many times with the same channels and windows. Its portable form is
exported once, alone and for any size, and put in place of the calls. That takes seconds, where
torch would reason about the sizes of all tensors of the whole network for minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .native_nodes import NODES, Node
from .pooling import adaptive_average
from .programs import PORTABLE

DOMAIN = 'mmrednet'
# Operators that torch translates itself, since they are one or two of its own. A function takes
# seconds for each configuration, of which an MSCAN has more than ten.
INLINE = ('depthwise',)
# any number but 0 and 1, which torch would make part of the function
REGIONS = 5


class Example(NamedTuple):
    """A tensor of a call.

    Args:
        sizes: Its shape in the example of the network.
        axes: The axes that may have any length.
        dtype: Its dtype.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: torch.dtype


class Functions:
    """The functions of one file.

    Args:
        opset: Version of the standard operators.
        native: If True, operators that csrc/ has become single nodes. Default: False.
    """

    def __init__(self, opset: int, *, native: bool = False) -> None:
        self.opset, self.native = opset, native
        # name, portable form and arguments of each function, by what tells calls apart
        self.calls: dict[tuple, tuple[str, Callable, list[Any]]] = {}

    def with_calls(self, program: ExportedProgram) -> ExportedProgram:
        """Return the program with a call of a function in place of each operator of ours."""
        table = {
            torch.ops.aten.adaptive_avg_pool2d.default: adaptive_average,
            torch.ops.aten.remainder.Scalar: _remainder,
        }
        for name, portable in PORTABLE.items():
            overload = getattr(torch.ops.mmrednet, name).default
            table[overload] = portable if name in INLINE else self._caller(name, portable)
        return program.run_decompositions(table)

    def _caller(self, name: str, portable: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            node = NODES[name](*arguments) if self.native and name in NODES else None
            if node is None:
                node = self._function_call(name, portable, arguments)
            result = torch.onnx.ops.symbolic(
                f'{DOMAIN}::{node.type}',
                node.inputs,
                node.attributes,
                dtype=arguments[0].dtype,
                shape=_result_shape(name, arguments),
                version=1,
            )
            # networks use the first result of attention alone
            return (result, arguments[0].sum(2)) if name == 'attention' else result

        return call

    def _function_call(self, name: str, portable: Callable, arguments: tuple) -> Node:
        key = (name, *(_signature(argument) for argument in arguments))
        if key not in self.calls:
            described = [_example(argument) for argument in arguments]
            self.calls[key] = (f'{name}_{len(self.calls)}', portable, described)
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        return Node(self.calls[key][0], tensors, {})

    def protos(self) -> list[Any]:
        """Return the functions that the calls need."""
        return [self._make(*call) for call in self.calls.values()]

    def _make(self, name: str, portable: Callable, arguments: list[Any]) -> Any:
        """Export the portable form of an operator as an ONNX function."""
        import onnx
        from onnxscript import opset18

        exported: Any = torch.onnx.export(
            _capture(portable, arguments),
            dynamo=True,
            opset_version=self.opset,
            # as one node: torch would make matrices of it, with their sizes, and a batch again
            custom_translation_table={torch.ops.aten.matmul.default: opset18.MatMul},
            # the file is optimised as a whole
            optimize=False,
            verbose=False,
        )
        graph = exported.model_proto.graph
        nodes = [
            onnx.helper.make_node('Constant', [], [tensor.name], value=tensor)
            for tensor in graph.initializer
        ]
        return onnx.helper.make_function(
            DOMAIN,
            name,
            [value.name for value in graph.input],
            [value.name for value in graph.output],
            [*nodes, *graph.node],
            [onnx.helper.make_opsetid('', self.opset)],
        )


class _Call(nn.Module):
    """A portable form with everything fixed but its tensors."""

    def __init__(self, portable: Callable, arguments: list[Any]) -> None:
        super().__init__()
        self.portable, self.arguments = portable, arguments

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the first result."""
        remaining = iter(tensors)
        arguments = [next(remaining) if isinstance(x, Example) else x for x in self.arguments]
        result = self.portable(*arguments)
        return result[0] if isinstance(result, tuple) else result


def _capture(portable: Callable, arguments: list[Any]) -> ExportedProgram:
    """Export a portable form for tensors of any size, where those of the arguments have any."""
    examples = [argument for argument in arguments if isinstance(argument, Example)]
    tensors = tuple(torch.empty(example.sizes, dtype=example.dtype) for example in examples)
    shapes = tuple(dict.fromkeys(example.axes, Dim.AUTO) for example in examples)
    call = _Call(portable, arguments)
    with torch.no_grad():
        return torch.export.export(call, tensors, dynamic_shapes=(shapes,), strict=False)


def _remainder(x: Tensor, divisor: Any) -> Any:
    """Return the remainder by a number, as a tensor where it is a symbolic size, of which torch's
    translation makes an integer.
    """
    if isinstance(divisor, (int, float)):
        return NotImplemented
    return x.remainder(torch.full((), divisor, dtype=x.dtype, device=x.device))


def _example(argument: Any) -> Any:
    """Return a tensor as an :class:`Example`, anything else as it is."""
    if not isinstance(argument, Tensor):
        return argument
    axes = tuple(axis for axis, size in enumerate(argument.shape) if not isinstance(size, int))
    sizes = tuple(_example_size(size) for size in argument.shape)
    return Example(sizes, axes, argument.dtype)


def _example_size(size: Any) -> int:
    """Return a size as it is in the example of the network."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    # the number of regions of an image depends on its pixels, which an example does not have
    return REGIONS if hint is None else int(hint)


def _signature(argument: Any) -> Any:
    """Return what a function depends on: the fixed sizes of a tensor, or the value itself."""
    if isinstance(argument, Tensor):
        sizes = [length if isinstance(length, int) else None for length in argument.shape]
        return (str(argument.dtype), *sizes)
    return tuple(argument) if isinstance(argument, (list, tuple)) else argument


def _result_shape(name: str, arguments: tuple) -> list[Any]:
    """Return the shape of the first result of an operator."""
    first, second = arguments[:2]
    if name == 'correlate':
        taps = arguments[2][0] * arguments[2][1]
        return [*first.shape[:2], taps, *first.shape[3:]]
    if name in ('attention', 'difference_attention'):
        return [*arguments[2].shape[:3], *first.shape[3:]]
    if name == 'vector_attention':
        return [*arguments[2].shape[:2], *first.shape[2:]]
    if name == 'axial_attention':
        position_scale, key_channels, value_position = arguments[4], arguments[5], arguments[8]
        channels = first.shape[2] - 2 * key_channels
        parts = 2 if value_position and position_scale is None else 1
        return [*first.shape[:2], channels * parts, *first.shape[3:]]
    # sums of the neighbours, with weights or hidden features at the outputs
    return [*first.shape[:3], *second.shape[-2:]]
