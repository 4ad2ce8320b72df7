"""What vector attention and the statistics of its norms share: gamma, checks, chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor

from . import _native
from .checks import check_outputs, check_same, check_shape, check_tensors
from .dispatch import DEVICES, fall_back, unavailable
from .vector_relations import features, find_relation
from .window import Window, check_zero_border

# Elements that the features of one chunk of rows have, at most: 128 MiB in float32.
CHUNK_BUDGET = 1 << 25
# relations that kernels have, pairwise and patchwise
NATIVE = {False: ('subtraction', 'summation', 'hadamard'), True: ('concatenation',)}

Result = TypeVar('Result')


class Gamma(NamedTuple):
    """The mapping gamma: two 1x1 convolutions, with a norm and a ReLU before each.

    Args:
        scale1: Scale (F,) of the norm of the features.
        shift1: Shift (F,) of the norm of the features.
        weight1: Weight (M, F) of the first convolution, which has no bias.
        scale2: Scale (M,) of the norm of the hidden features.
        shift2: Shift (M,) of the norm of the hidden features.
        weight2: Weight (O, M) of the last convolution.
        bias2: Bias (O,) of the last convolution.
    """

    scale1: Tensor
    shift1: Tensor
    weight1: Tensor
    scale2: Tensor
    shift2: Tensor
    weight2: Tensor
    bias2: Tensor


class Options(NamedTuple):
    """What decides how features are made of queries and keys.

    Args:
        relation: Name of the relation.
        patchwise: Whether one vector has the weights of all neighbours.
        position_channels: Number of channels, the last ones, of which the difference is taken.
        window: The eight numbers of the window.
    """

    relation: str
    patchwise: bool
    position_channels: int
    window: list[int]


def check_inputs(
    query: Tensor, key: Tensor, window: Window, value: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Check query, key and value, and cast them as autocast does.

    Raises:
        TypeError: One is not a floating-point tensor.
        ValueError: The shapes do not match.
    """
    tensors: dict[str, Any] = dict(query=(query, 4), key=(key, 4))
    if value is not None:
        tensors['value'] = (value, 4)
    checked = check_tensors(**tensors)
    query, key = checked[:2]
    check_same('query', query, 'key', key, dims=2)
    if value is not None:
        check_same('key', key, 'value', value, dims=1)
        check_shape('value', value, '(..., H, W) of key', (*value.shape[:2], *key.shape[2:]))
    check_zero_border(window)
    check_outputs('query', query, 'key', key.shape[-2:], window)
    return checked


def check_gamma(
    query: Tensor,
    gamma: Gamma,
    window: Window,
    relation: str,
    patchwise: bool,
    position_channels: int,
) -> None:
    """Check the mapping of a query's features.

    Raises:
        ValueError: A shape does not match, or there is no such relation.
    """
    channels = query.shape[1] - position_channels
    count = find_relation(relation, patchwise).feature_count(channels, window.taps)
    inputs, hidden = count + position_channels, gamma.weight1.shape[0]
    outputs = gamma.weight2.shape[0]
    shapes = dict(
        scale1=(inputs,),
        shift1=(inputs,),
        weight1=(hidden, inputs),
        scale2=(hidden,),
        shift2=(hidden,),
        weight2=(outputs, hidden),
        bias2=(outputs,),
    )
    for name, shape in shapes.items():
        check_shape(f'gamma.{name}', getattr(gamma, name), 'of the shape', shape)


def has_kernel(operator: str, query: Tensor, options: Options) -> bool:
    """Return whether a kernel takes these arguments. If not, report why.

    Raises:
        RuntimeError: The kernels of this device were required.
    """
    _native.ensure(query)
    kernels = {device: name for name, device in DEVICES.items()}.get(query.device.type)
    if kernels is None or unavailable[kernels]:
        return False
    if options.relation not in NATIVE[options.patchwise]:
        name = ('patchwise ' if options.patchwise else 'pairwise ') + options.relation
        fall_back(kernels, operator, [f'it has no kernel for the {name} relation'])
        return False
    return True


def by_chunks(
    compute: Callable[[tuple[int, int]], Result], query: Tensor, stored: int, options: Options
) -> list[Result]:
    """Return the results of a function of each chunk of rows of outputs.

    If there are several chunks, the backward pass computes each of them again.

    Args:
        compute: Function of the first row and the end of a chunk.
        query: Tensor (B, R, Ho, Wo).
        stored: Number of elements that the function stores for each vector of features.
        options: The options. They tell how many vectors of features an output has.
    """
    batch, _, height, width = query.shape
    vectors = 1 if options.patchwise else options.window[0] * options.window[1]
    size = max(1, CHUNK_BUDGET // max(1, batch * width * stored * vectors))
    # a compiled graph has no loop whose length depends on the input
    if torch.compiler.is_compiling() or size >= height:
        return [compute((0, height))]
    chunks = [(start, min(start + size, height)) for start in range(0, height, size)]
    if not torch.is_grad_enabled():
        return [compute(rows) for rows in chunks]
    run: Any = torch.utils.checkpoint.checkpoint
    return [run(compute, rows, use_reentrant=False) for rows in chunks]


def chunk_features(query: Tensor, key: Tensor, options: Options, rows: tuple[int, int]) -> Tensor:
    """Return the features (B, F, K or 1, L) of a chunk of rows of outputs."""
    relation = find_relation(options.relation, options.patchwise)
    window = Window.from_flat(options.window)
    row_index = torch.arange(*rows, device=query.device)
    columns = torch.arange(query.shape[3], device=query.device)
    return features(query, key, relation, options.position_channels, window, row_index, columns)


def norm_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return relu(scale * x + shift) of features (B, F, K, L)."""
    return (x * scale[:, None, None] + shift[:, None, None]).relu()


def pointwise(weight: Tensor, x: Tensor) -> Tensor:
    """Return the 1x1 convolution of features (B, F, K, L) with a weight (O, F)."""
    return torch.einsum('of,bfkl->bokl', weight, x)
