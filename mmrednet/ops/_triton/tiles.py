"""What all kernels share: tiles of positions, addresses in tensors of any strides, launches.

A program works on a tile of TILE_H x TILE_W positions, numbered row by row; what a tile holds
beyond the map is masked. A tensor comes with a tuple of strides (batch, group, channel or tap, row,
column) and a compile-time layout:

    n > 0   the stride of channels is one and the others, given in units of n, are multiples of n: a
    channels-last map,
            from which n channels are read at once
    -1      the stride of columns is one: a contiguous map
    0       any strides

Channels are compile-time numbers, so that masks leave room for wide accesses. Sizes and strides are
not specialised: another map needs no other kernel. Triton compiles anew for numbers of a tuple that
are one or multiples of sixteen, hence strides come as odd numbers above one, 2 s + 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
# as many channels as fit into the widest access
MOST_ALIGNED = 16


@triton.jit
def positions(tile, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr, INDEX: tl.constexpr):
    """Return the rows and columns [P] of the positions of a tile."""
    across = tl.cdiv(width, TILE_W)
    place = tl.arange(0, TILE_H * TILE_W)
    rows = tile // across * TILE_H + place // TILE_W
    columns = tile % across * TILE_W + place % TILE_W
    return rows.to(INDEX), columns.to(INDEX)


@triton.jit
def stride(strides, axis: tl.constexpr):
    """Return a stride from the odd number that stands for it."""
    return (strides[axis] - 3) >> 1


@triton.jit
def start(strides, batch, group, LAYOUT: tl.constexpr):
    """Return where a group of an image begins, in 64 bits."""
    offset = batch.to(tl.int64) * stride(strides, 0) + group.to(tl.int64) * stride(strides, 1)
    return offset * LAYOUT if LAYOUT > 0 else offset


@triton.jit
def inside(strides, channel, row, column, LAYOUT: tl.constexpr):
    """Return where channels of positions lie in their group of their image."""
    if LAYOUT > 0:
        return channel + (row * stride(strides, 3) + column * stride(strides, 4)) * LAYOUT
    elif LAYOUT < 0:
        return channel * stride(strides, 2) + row * stride(strides, 3) + column
    else:
        return channel * stride(strides, 2) + row * stride(strides, 3) + column * stride(strides, 4)


@triton.jit
def on_map(row, column, height, width):
    """Return which positions lie on a map of this size."""
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def neighbour(row, column, u, v, WINDOW: tl.constexpr):
    """Return the place on the map that output positions see through a tap."""
    return (
        row * WINDOW[2] + (u * WINDOW[4] - WINDOW[6]),
        column * WINDOW[3] + (v * WINDOW[5] - WINDOW[7]),
    )


@triton.jit
def viewer(row, column, u, v, out_height, out_width, WINDOW: tl.constexpr):
    """Return the output positions that see places on the map through a tap, and which of them
    exist.
    """
    row = row + (WINDOW[6] - u * WINDOW[4])
    column = column + (WINDOW[7] - v * WINDOW[5])
    found = (row >= 0) & (column >= 0) & (row % WINDOW[2] == 0) & (column % WINDOW[3] == 0)
    row, column = row // WINDOW[2], column // WINDOW[3]
    return row, column, found & (row < out_height) & (column < out_width)


def cdiv(number: int, divisor: int) -> int:
    """Return the quotient, rounded up; triton.cdiv takes ten times as long outside of kernels."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """Return the least power of two that is not less than a positive number."""
    return 1 << (number - 1).bit_length()


def float64_reasons(**tensors: Tensor | None) -> list[str]:
    """Return the reasons against a kernel without float64, for arguments by name."""
    names = [
        name
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype == torch.float64
    ]
    return [f'float64 ({", ".join(names)})'] if names else []


def layout(tensor: Tensor) -> int:
    """Return the compile-time layout of (B, G, D, H, W)."""
    batch, group, channel, row, column = tensor.stride()
    if channel == 1 and column != 1:
        return math.gcd(MOST_ALIGNED, batch, group, row, column)
    return -1 if column == 1 else 0


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Return odd numbers for the strides of (B, G, D, H, W) in the units of its layout."""
    unit = max(1, layout(tensor))
    return tuple(2 * (step // unit) + 3 for step in tensor.stride())


def index_type(*tensors: Tensor) -> tl.dtype:
    """Return the type that holds every offset in a group of an image of these tensors."""
    reach = max(
        sum(
            (size - 1) * stride
            for size, stride in zip(tensor.shape[2:], tensor.stride()[2:], strict=True)
        )
        for tensor in tensors
    )
    # a tile may reach beyond a map before it is masked
    return tl.int32 if reach < 2**30 else tl.int64


def sum_type(*tensors: Tensor) -> tl.dtype:
    """Return the type in which sums are taken."""
    return tl.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else tl.float32


def tiles(size: Sequence[int], tile: tuple[int, int]) -> int:
    """Return the number of tiles of a map."""
    return cdiv(size[0], tile[0]) * cdiv(size[1], tile[1])


def warps(elements: int, per_thread: int) -> int:
    """Return how many warps share a tile of this many elements; a power of two if they are."""
    return min(8, max(1, elements // (32 * per_thread)))


def launch(
    kernel: Callable, programs: int, device: torch.device, *arguments: Any, **constants: Any
) -> None:
    """Start programs of a kernel on a device, on its current stream."""
    if programs:
        with torch.cuda.device(device) if device.type == 'cuda' else nullcontext():
            kernel[(programs,)](*arguments, **constants)  # type: ignore[index]


def dot_type(*tensors: Tensor) -> tl.dtype:
    """Return the type of the factors of matrix products: that of the tensors where they agree on
    one of 16 bits.
    """
    (dtype, *others) = {tensor.dtype for tensor in tensors}
    # Triton's interpreter would multiply the bits of bfloat16 as integers
    interpreted = triton.knobs.runtime.interpret and dtype == torch.bfloat16
    return tl.float32 if others or interpreted else TYPES[dtype]


def dot_precision() -> str:
    """Return how products of float32 matrices are made: of three TF32 products, where convolutions
    may use TF32.
    """
    convolution = getattr(torch.backends.cudnn, 'conv', None)
    # the older switch raises where the newer one was set
    if convolution is not None and hasattr(convolution, 'fp32_precision'):
        allowed = convolution.fp32_precision == 'tf32'
    else:
        allowed = torch.backends.cudnn.allow_tf32
    return 'tf32x3' if allowed else 'ieee'
