"""Pooling for maps of any size, where torch's own needs the size of the map.

Adaptive average pooling is the product of two matrices: torch's decomposition reads the entries of
each bin by an index.

Pooling with ceil_mode becomes pooling of a padded map without it. AOTInductor decides by the size
of the example whether ceil_mode matters, and its buffers may be too small for other sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional as F

from .programs import decomposed

# operators that may round sizes up
POOLS = (torch.ops.aten.max_pool2d.default, torch.ops.aten.avg_pool2d.default)
ADAPTIVE = torch.ops.aten.adaptive_avg_pool2d.default


def adaptive_average(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the averages (B, C, S, T) of the bins of a map (B, C, H, W).

    A bin is a rectangle: its average is that of its columns, averaged over its rows.

    Args:
        x: The map.
        size: Numbers S and T of bins.
    """
    if tuple(size) == (1, 1):
        return x.mean((2, 3), keepdim=True)
    rows, columns = (
        bin_averages(bins, length, x) for bins, length in zip(size, x.shape[2:], strict=True)
    )
    return rows @ (x @ columns.mT)


def bin_averages(bins: int, length: int, like: Tensor) -> Tensor:
    """Return the matrix (bins, length) that maps a line to the averages of its bins.

    As in torch, a position is in every bin that it overlaps. Bin i covers the line from
    i length / bins to (i + 1) length / bins.

    Args:
        bins: Number of bins.
        length: Length of the line, which may be symbolic.
        like: Tensor that has dtype and device of the result.
    """
    position = torch.arange(length, device=like.device)
    start = torch.arange(bins, device=like.device)[:, None] * length
    # times the number of bins, which leaves integers without a division
    overlaps = ((position + 1) * bins > start) & (position * bins < start + length)
    members = overlaps.to(like.dtype)
    return members / members.sum(1, keepdim=True)


def pools_of_any_size(program: ExportedProgram) -> ExportedProgram:
    """Return a program whose pooling does not need the size of the map, if it is for any size."""
    adaptive = [node for node in program.graph.nodes if node.target is ADAPTIVE]
    if not program.range_constraints or not (adaptive or _rounding_nodes(program)):
        return program
    table: dict[Any, Any] = {overload: partial(_pool_padded, overload) for overload in POOLS}
    return decomposed(program, table | {ADAPTIVE: adaptive_average})


def blocking_pools(program: ExportedProgram) -> int:
    """Return how many poolings :func:`pools_of_any_size` leaves as they are."""
    nodes = _rounding_nodes(program)
    return sum(not _can_be_padded(_arguments(node.target, *node.args)) for node in nodes)


def _rounding_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    if not program.range_constraints:
        # for images of one size
        return []
    # torch calls them without keywords
    nodes = [node for node in program.graph.nodes if node.target in POOLS]
    return [node for node in nodes if _arguments(node.target, *node.args)['ceil_mode']]


def _arguments(overload: Any, *args: Any) -> dict[str, Any]:
    """Return the arguments of a pooling by name, with all defaults."""
    schema = overload._schema.arguments
    arguments = {argument.name: argument.default_value for argument in schema}
    arguments |= {argument.name: value for argument, value in zip(schema, args, strict=False)}
    arguments['stride'] = arguments['stride'] or arguments['kernel_size']
    for name in ('kernel_size', 'stride', 'padding', 'dilation'):
        size = arguments.get(name, (1, 1))
        arguments[name] = tuple(size) * (2 // len(size))
    return arguments


def _can_be_padded(arguments: dict[str, Any]) -> bool:
    """Return whether padding a map rounds the number of windows up and changes no result."""
    sizes = zip(*(arguments[name] for name in ('kernel_size', 'stride', 'padding')), strict=True)
    # the last window has to lie on the map in part
    overlaps = all(padding + stride <= kernel for kernel, stride, padding in sizes)
    if 'count_include_pad' in arguments:
        return overlaps and arguments['padding'] == (0, 0) and not arguments['divisor_override']
    return overlaps and arguments['dilation'] == (1, 1)


def _pool_padded(overload: Any, x: Tensor, *args: Any) -> Any:
    """Pool a map that is padded at the end.

    A decomposition returns NotImplemented for calls that stay as they are.
    """
    arguments = _arguments(overload, x, *args)
    if not arguments['ceil_mode'] or not _can_be_padded(arguments):
        return NotImplemented
    windows = arguments['kernel_size'], arguments['stride']
    (rows, columns), (stride, column_stride) = arguments['padding'], arguments['stride']
    pads = (columns, columns + column_stride - 1, rows, rows + stride - 1)
    if overload is torch.ops.aten.max_pool2d.default:
        return F.max_pool2d(F.pad(x, pads, value=-torch.inf), *windows)
    # at the border an average covers what lies on the map
    covered = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), pads), *windows)
    return F.avg_pool2d(F.pad(x, pads), *windows) / covered
