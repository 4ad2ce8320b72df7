"""Neighbourhood attention with the signatures of natten 0.17, on the primitives of this package."""

from __future__ import annotations

from torch import Tensor

from .attention import bias_of_taps
from .local import local_aggregate, local_correlate
from .window import IntPair, Window


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: IntPair,
    dilation: IntPair = 1,
    rpb: Tensor | None = None,
) -> Tensor:
    """Return the logits of neighbourhood attention: natten's ``na2d_qk``.

    Args:
        query: Tensor (B, heads, H, W, D).
        key: Tensor (B, heads, H, W, D).
        kernel_size: Size of the window, an odd number or a pair of them.
        dilation: Distance between neighbouring taps.
        rpb: Bias (heads, 2 * Kh - 1, 2 * Kw - 1) of relative positions, or None.

    Returns:
        (B, heads, H, W, Kh * Kw).

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match, or the map is smaller than kernel * dilation.
    """
    window = Window(kernel_size, 1, dilation, border='shift')
    logits = local_correlate(_channels_third(query), _channels_third(key), window)
    if rpb is not None:
        logits = logits + bias_of_taps(rpb.flatten(1), window, logits.shape[-2:])
    return logits.movedim(2, -1)


def na2d_av(attn: Tensor, value: Tensor, kernel_size: IntPair, dilation: IntPair = 1) -> Tensor:
    """Return the weighted sums of the neighbours: natten's ``na2d_av``.

    Args:
        attn: Weights (B, heads, H, W, Kh * Kw).
        value: Tensor (B, heads, H, W, D).
        kernel_size: Size of the window, an odd number or a pair of them.
        dilation: Distance between neighbouring taps.

    Returns:
        (B, heads, H, W, D).

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape does not match, or the map is smaller than kernel * dilation.
    """
    window = Window(kernel_size, 1, dilation, border='shift')
    return local_aggregate(_channels_third(value), _channels_third(attn), window).movedim(2, -1)


def na1d_qk(
    query: Tensor, key: Tensor, kernel_size: int, dilation: int = 1, rpb: Tensor | None = None
) -> Tensor:
    """Return the logits (B, heads, L, K) of queries and keys (B, heads, L, D).

    See :func:`na2d_qk`; ``rpb`` is (heads, 2 * K - 1).
    """
    row_bias = None if rpb is None else rpb.unsqueeze(1)
    logits = na2d_qk(
        query.unsqueeze(2), key.unsqueeze(2), (1, kernel_size), (1, dilation), row_bias
    )
    return logits.squeeze(2)


def na1d_av(attn: Tensor, value: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
    """Return the weighted sums (B, heads, L, D) of values of this shape.

    See :func:`na2d_av`; ``attn`` is (B, heads, L, K).
    """
    window = ((1, kernel_size), (1, dilation))
    return na2d_av(attn.unsqueeze(2), value.unsqueeze(2), *window).squeeze(2)


def _channels_third(x: Tensor) -> Tensor:
    """Return the view (B, heads, D, H, W) of a tensor (B, heads, H, W, D)."""
    return x.movedim(-1, 2) if x.dim() == 5 else x
