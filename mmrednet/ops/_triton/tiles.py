"""What all kernels share: tiles of positions, addresses in tensors of any strides, launches.

A program works on a tile of TILE_H x TILE_W positions, numbered row by row. Positions of a tile
beyond the map are masked. A tensor comes with a tuple of strides (batch, group, channel or tap,
row, column) and a compile-time layout:

    n > 0   A channels-last map. The stride of channels is one. The other strides are multiples of
            n and given in units of n, so that n channels are read at once.
    -1      A contiguous map. The stride of columns is one.
    0       Any strides.

The number of channels is a compile-time constant, which lets the compiler use wide accesses in
spite of masks. Sizes and strides are not specialised, so that maps of all sizes share one kernel.
Triton compiles anew for integers in a tuple that are one or multiples of sixteen. Strides therefore
come as odd numbers above one, 2 s + 3.
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
# more alignment makes no access wider, and every alignment is a kernel of its own
MOST_ALIGNED = 16


@triton.jit
def positions(tile, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr, INDEX: tl.constexpr):
    """Return the rows and columns [P] of the positions of a tile."""
    tiles_per_row = tl.cdiv(width, TILE_W)
    index = tl.arange(0, TILE_H * TILE_W)
    rows = tile // tiles_per_row * TILE_H + index // TILE_W
    columns = tile % tiles_per_row * TILE_W + index % TILE_W
    return rows.to(INDEX), columns.to(INDEX)


@triton.jit
def stride(strides, axis: tl.constexpr):
    """Return a stride from the odd number that stands for it."""
    return (strides[axis] - 3) >> 1


@triton.jit
def start(strides, batch, group, LAYOUT: tl.constexpr):
    """Return the offset of a group of an image."""
    # in 64 bits: a batch may have more than 2^31 elements, a group of an image seldom does
    offset = batch.to(tl.int64) * stride(strides, 0) + group.to(tl.int64) * stride(strides, 1)
    return offset * LAYOUT if LAYOUT > 0 else offset


@triton.jit
def inside(strides, channel, row, column, LAYOUT: tl.constexpr):
    """Return the offsets of channels of positions within their group of their image."""
    if LAYOUT > 0:
        # multiplied by a constant last: the compiler sees that addresses are aligned
        return channel + (row * stride(strides, 3) + column * stride(strides, 4)) * LAYOUT
    elif LAYOUT < 0:
        return channel * stride(strides, 2) + row * stride(strides, 3) + column
    else:
        return channel * stride(strides, 2) + row * stride(strides, 3) + column * stride(strides, 4)


@triton.jit
def on_map(row, column, height, width):
    """Return the mask of positions that lie on a map of this size."""
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def neighbour(row, column, u, v, WINDOW: tl.constexpr):
    """Return the input positions that output positions see through tap (u, v)."""
    # WINDOW is (kernel, stride, dilation, padding), each a vertical and a horizontal number
    return (
        row * WINDOW[2] + (u * WINDOW[4] - WINDOW[6]),
        column * WINDOW[3] + (v * WINDOW[5] - WINDOW[7]),
    )


@triton.jit
def viewer(row, column, u, v, out_height, out_width, WINDOW: tl.constexpr):
    """Return the output positions that see input positions through tap (u, v), and the mask of
    those that exist.

    It is the inverse of ``neighbour``.
    """
    row = row + (WINDOW[6] - u * WINDOW[4])
    column = column + (WINDOW[7] - v * WINDOW[5])
    # with a stride, only every WINDOW[2]-th row and WINDOW[3]-th column has an output that sees it
    valid = (row >= 0) & (column >= 0) & (row % WINDOW[2] == 0) & (column % WINDOW[3] == 0)
    row, column = row // WINDOW[2], column // WINDOW[3]
    return row, column, valid & (row < out_height) & (column < out_width)


@triton.jit
def window_start(position, size, KERNEL: tl.constexpr):
    """Return where the shifted windows of output positions start, along one axis."""
    return tl.minimum(tl.maximum(position - KERNEL // 2, 0), size - KERNEL)


@triton.jit
def shifted_neighbour(row, column, u, v, height, width, WINDOW: tl.constexpr):
    """Return the input positions that outputs with shifted windows see through tap (u, v)."""
    return (
        window_start(row, height, WINDOW[0]) + u,
        window_start(column, width, WINDOW[1]) + v,
    )


@triton.jit
def neighbour_of_window(
    row, column, u, v, height, width, WINDOW: tl.constexpr, SHIFTED: tl.constexpr
):
    """Return the input positions that output positions see through tap (u, v) of windows of either
    border.
    """
    if SHIFTED:
        return shifted_neighbour(row, column, u, v, height, width, WINDOW)
    else:
        return neighbour(row, column, u, v, WINDOW)


@triton.jit
def first_viewer(position, KERNEL: tl.constexpr):
    """Return the first output whose shifted window has an input position, along one axis."""
    # the windows of all outputs up to half a kernel from the border start at the border
    return tl.where(position < KERNEL, 0, position - KERNEL // 2)


@triton.jit
def last_viewer(position, size, KERNEL: tl.constexpr):
    """Return the last output whose shifted window has an input position, along one axis."""
    return tl.where(position >= size - KERNEL, size - 1, position + KERNEL // 2)


@triton.jit
def viewer_count(position, size, KERNEL: tl.constexpr):
    """Return how many outputs, along one axis, see one of these input positions at most."""
    return tl.max(last_viewer(position, size, KERNEL) - first_viewer(position, KERNEL)) + 1


@triton.jit
def shifted_viewer(row, column, a, b, height, width, WINDOW: tl.constexpr):
    """Return the a-th row and the b-th column of outputs whose shifted windows have input
    positions, the taps that they see them by, and the mask of those that exist.
    """
    y = first_viewer(row, WINDOW[0]) + a
    x = first_viewer(column, WINDOW[1]) + b
    last_row = last_viewer(row, height, WINDOW[0])
    last_column = last_viewer(column, width, WINDOW[1])
    valid = (y <= last_row) & (x <= last_column)
    u = row - window_start(y, height, WINDOW[0])
    v = column - window_start(x, width, WINDOW[1])
    return y, x, tl.where(valid, u * WINDOW[1] + v, 0), valid


@triton.jit
def viewers_of_window(row, column, height, width, WINDOW: tl.constexpr, SHIFTED: tl.constexpr):
    """Return how many rows and columns of outputs see one of these input positions at most."""
    if SHIFTED:
        rows = viewer_count(row, height, WINDOW[0])
        return rows, viewer_count(column, width, WINDOW[1])
    else:
        return WINDOW[0], WINDOW[1]


@triton.jit
def viewer_of_window(
    row,
    column,
    a,
    b,
    height,
    width,
    out_height,
    out_width,
    WINDOW: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """Return the outputs, number (a, b), that see input positions, the taps that they see them by,
    and the mask of those that exist.
    """
    if SHIFTED:
        return shifted_viewer(row, column, a, b, height, width, WINDOW)
    else:
        y, x, valid = viewer(row, column, a, b, out_height, out_width, WINDOW)
        return y, x, a * WINDOW[1] + b, valid


def cdiv(number: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    # not triton.cdiv, which takes ten times as long outside of kernels
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not less than a positive number."""
    return 1 << (number - 1).bit_length()


def float64_reasons(**tensors: Tensor | None) -> list[str]:
    """Return the reasons against a kernel without float64, given the arguments by name."""
    names = []
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype == torch.float64:
            names.append(name)
    return [f'float64 ({", ".join(names)})'] if names else []


def is_shifted(window: Sequence[int]) -> bool:
    """Return whether a window has the border 'shift'."""
    # shifted windows have a number more
    return len(window) > 8


def dilation_reasons(window: Sequence[int]) -> list[str]:
    """Return the reasons against a kernel whose shifted windows have no dilation."""
    dilated = is_shifted(window) and tuple(window[4:6]) != (1, 1)
    return ["a dilated window with border='shift'"] if dilated else []


def layout(tensor: Tensor) -> int:
    """Return the compile-time layout of a tensor (B, G, D, H, W)."""
    batch, group, channel, row, column = tensor.stride()
    # where both strides are one there is one channel or one column: read it as contiguous
    if channel == 1 and column != 1:
        return math.gcd(MOST_ALIGNED, batch, group, row, column)
    return -1 if column == 1 else 0


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of (B, G, D, H, W) in the units of its layout, coded as odd numbers."""
    unit = max(1, layout(tensor))
    return tuple(2 * (step // unit) + 3 for step in tensor.stride())


def index_type(*tensors: Tensor) -> tl.dtype:
    """Return the type that holds every offset within a group of an image of these tensors."""
    largest_offset = max(_largest_offset(tensor) for tensor in tensors)
    # half of what int32 holds: offsets of positions beyond the map are computed before masking
    return tl.int32 if largest_offset < 2**30 else tl.int64


def _largest_offset(tensor: Tensor) -> int:
    """Return the offset of the last element of a group of an image of (B, G, D, H, W)."""
    steps = zip(tensor.shape[2:], tensor.stride()[2:], strict=True)
    return sum((size - 1) * stride for size, stride in steps)


def sum_type(*tensors: Tensor) -> tl.dtype:
    """Return the type in which sums over these tensors are taken: float32 or wider."""
    has_float64 = any(tensor.dtype == torch.float64 for tensor in tensors)
    return tl.float64 if has_float64 else tl.float32


def tiles(size: Sequence[int], tile: tuple[int, int]) -> int:
    """Return the number of tiles of a map."""
    return cdiv(size[0], tile[0]) * cdiv(size[1], tile[1])


def warps(elements: int, per_thread: int) -> int:
    """Return the number of warps for a tile of ``elements``, each thread holding ``per_thread``.

    It is a power of two, as Triton asks, where both numbers are.
    """
    return min(8, max(1, elements // (32 * per_thread)))


def launch(
    kernel: Callable, programs: int, device: torch.device, *arguments: Any, **constants: Any
) -> None:
    """Start programs of a kernel on a device, on its current stream."""
    # CUDA refuses an empty grid: an empty batch has nothing to compute
    if programs:
        # Triton launches on the current device, which need not be that of the tensors
        with torch.cuda.device(device) if device.type == 'cuda' else nullcontext():
            kernel[(programs,)](*arguments, **constants)  # type: ignore[index]


def dot_type(*tensors: Tensor) -> tl.dtype:
    """Return the type of the factors of matrix products: the common dtype of the tensors, or
    float32 where they differ.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        return tl.float32
    (dtype,) = dtypes
    # Triton's interpreter would multiply the bits of bfloat16 as integers
    if triton.knobs.runtime.interpret and dtype == torch.bfloat16:
        return tl.float32
    return TYPES[dtype]


def dot_precision() -> str:
    """Return the input precision of products of float32 matrices.

    Where the user lets convolutions use TF32 these products use it too, as three products
    whose sum has nearly the precision of float32.
    """
    convolution = getattr(torch.backends.cudnn, 'conv', None)
    # reading the older switch raises an error where the newer one was set
    if convolution is not None and hasattr(convolution, 'fp32_precision'):
        allowed = convolution.fp32_precision == 'tf32'
    else:
        allowed = torch.backends.cudnn.allow_tf32
    return 'tf32x3' if allowed else 'ieee'
