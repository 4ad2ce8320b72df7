"""What torch's transforms differentiate and vectorise: operators of torch alone.

A custom op has a kernel and a backward pass. Forward-mode derivatives pass it by and become zero,
and ``torch.func`` cannot look into its backward pass. Under a transform an op is therefore replaced
by a definition that consists of torch's own operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from ._torch import shifted_axis, sum_dtype
from .window import Window


class TransformableOp:
    """A custom op that hands over to its definition under a transform of torch.

    Args:
        op: The custom op.
        definition: A function of the same arguments and results, made of torch's operators and of
            other ops of this kind.
    """

    def __init__(self, op: Any, definition: Callable) -> None:
        self.op, self.definition = op, definition

    def __call__(self, *arguments: Any) -> Any:
        """Call the op, or its definition under a transform."""
        function = self.definition if is_transformed(arguments) else self.op
        return function(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


def transformable(definition: Callable) -> Callable[[Any], TransformableOp]:
    """Return a decorator of a custom op: see :class:`TransformableOp`."""
    return lambda op: TransformableOp(op, definition)


def is_transformed(arguments: Sequence[Any]) -> bool:
    """Return whether ``torch.func`` is at work, or an argument may have a tangent."""
    if torch._C._are_functorch_transforms_active():
        return True
    # outside of forward-mode differentiation no tensor has a tangent
    if forward_ad._current_level < 0:
        return False
    # torch.compile cannot trace the question of what has a tangent
    if torch.compiler.is_compiling():
        return True
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


@contextmanager
def recorded() -> Iterator[None]:
    """Let torch's autograd record operators in the body of a custom op, which it passes by.

    A fallback may then differentiate a definition where a kernel has a backward pass.
    """
    keys = torch._C.DispatchKey
    exclude = torch._C._SetExcludeDispatchKeyGuard
    with exclude(keys.AutogradFunctionality, False), exclude(keys.ADInplaceOrView, False):
        yield


def _fold_options(window: Window) -> dict[str, Any]:
    # vmap has rules for these two functions, but none for adding to a part of a tensor
    return dict(
        kernel_size=window.kernel,
        dilation=window.dilation,
        padding=window.padding,
        stride=window.stride,
    )


def _shifted_positions(window: Window, size: Sequence[int], device: torch.device) -> Tensor:
    """Return the position (K * H * W,) on the flat map of every neighbour of shifted windows."""
    rows, columns = (shifted_axis(window, axis, size[axis], device)[0] for axis in (0, 1))
    return (rows[:, None, :, None] * size[1] + columns[None, :, None]).flatten()


def _neighbours(x: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return the neighbours (B, G, D, K, L) of all outputs on feature maps (B, G, D, H, W)."""
    window = Window.from_flat(numbers)
    if window.border == 'shift':
        positions = _shifted_positions(window, x.shape[-2:], x.device)
        return x.flatten(3).index_select(3, positions).unflatten(3, (window.taps, -1))
    columns = F.unfold(x.flatten(1, 2), **_fold_options(window))
    return columns.unflatten(1, (*x.shape[1:3], -1))


def _fold(products: Tensor, size: Sequence[int], numbers: Sequence[int]) -> Tensor:
    """Add products (B, G, D, K, L) to the neighbours: the adjoint of ``_neighbours``."""
    window = Window.from_flat(numbers)
    if window.border == 'shift':
        positions = _shifted_positions(window, size, products.device)
        zeros = products.new_zeros((*products.shape[:3], size[0] * size[1]))
        return zeros.index_add(3, positions, products.flatten(3)).unflatten(3, tuple(size))
    result = F.fold(products.flatten(1, 3), tuple(size), **_fold_options(window))
    return result.unflatten(1, products.shape[1:3])


def aggregate(value: Tensor, weight: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_aggregate`; memory grows by the number of taps."""
    dtype = sum_dtype(value, weight)
    neighbours = _neighbours(value.to(dtype), window)
    result = (neighbours * weight.to(dtype).flatten(3).unsqueeze(2)).sum(3)
    return result.unflatten(3, weight.shape[-2:]).to(value.dtype)


def correlate(query: Tensor, key: Tensor, window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_correlate`; memory grows by the number of channels."""
    dtype = sum_dtype(query, key)
    neighbours = _neighbours(key.to(dtype), window)
    result = (neighbours * query.to(dtype).flatten(3).unsqueeze(3)).sum(2)
    return result.unflatten(3, query.shape[-2:]).to(query.dtype)


def scatter(grad: Tensor, weight: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """See :func:`mmrednet.ops.local_scatter`; memory grows by the number of taps."""
    dtype = sum_dtype(grad, weight)
    weight = weight.to(dtype).flatten(3).unsqueeze(2)
    products = grad.to(dtype).flatten(3).unsqueeze(3) * weight
    return _fold(products, size, window).to(grad.dtype)
