"""Centres of instances in a heat map: local maxima, of which the best are kept.

Everything has a fixed size and runs without waiting for the device, so it can be exported.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# the value of elements that are no maxima
SUPPRESSED = -1.0


def window_maximum(x: Tensor, size: int) -> Tensor:
    """Return the maximum (H, W) over the size x size window around each element.

    ``size`` is odd. Windows are doubled step by step, so the time grows with log(size).
    """
    for dim in (0, 1):
        reach = size // 2
        padding = (0, 0, reach, reach) if dim == 0 else (reach, reach)
        x = F.pad(x, padding, value=-torch.inf)
        width = 1
        while width < size:
            # two windows may overlap, which a maximum does not mind
            step = min(width, size - width)
            length = x.shape[dim] - step
            x = torch.maximum(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            width += step
    return x


def local_maxima(heat: Tensor, threshold: float, kernel_size: int) -> Tensor:
    """Return the heat map (H, W) where it is above the threshold and a maximum of its window, and
    ``SUPPRESSED`` elsewhere. Equal maxima all stay.
    """
    is_center = (heat > threshold) & (heat == window_maximum(heat, kernel_size))
    return heat.masked_fill(~is_center, SUPPRESSED)


def keep_best(scores: Tensor, top_k: int) -> Tensor:
    """Return which maxima are kept: the ``top_k`` best, of equal ones the first."""
    limit = scores.topk(min(top_k, scores.shape[0])).values[-1]
    is_above, is_equal = scores > limit, scores == limit
    room = top_k - is_above.sum()
    return (is_above | (is_equal & (is_equal.cumsum(0) <= room))) & (scores > SUPPRESSED)


def keep_detectron2(scores: Tensor, top_k: int) -> Tensor:
    """Return which maxima are kept: those above the best but ``top_k``; an image with fewer pixels
    is an error.
    """
    return scores > scores.topk(top_k).values[-1].clamp(min=0)


def keep_bowenc0221(scores: Tensor, top_k: int) -> Tensor:
    """Return which maxima are kept: those above the best but ``top_k``."""
    return keep_detectron2(scores, min(top_k, scores.shape[0]))


def keep_deeplab2(scores: Tensor, top_k: int) -> Tensor:
    """Return which maxima are kept: all, or of more than ``top_k`` those above the best but k."""
    has_more = (scores > SUPPRESSED).sum() > top_k
    return torch.where(has_more, keep_bowenc0221(scores, top_k), scores > SUPPRESSED)


# name -> which maxima are kept; the published codes keep one less than they say
TOP_K_RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    'best': keep_best,
    'detectron2': keep_detectron2,
    'bowenc0221': keep_bowenc0221,
    'deeplab2': keep_deeplab2,
}


def find_centers(
    heat: Tensor, *, threshold: float, kernel_size: int, top_k: int, rule: str = 'best'
) -> tuple[Tensor, Tensor]:
    """Return positions (K, 2) of the centres in row order, and which of them exist (K,).

    K is ``top_k``, or the number of pixels if that is less.

    Args:
        heat: Heat map (H, W).
        threshold: Value that a centre must exceed.
        kernel_size: Size of the window that a centre is the maximum of.
        top_k: Number of centres to keep.
        rule: Name of the rule by which they are kept, see ``TOP_K_RULES``. Default: 'best'.
    """
    scores = local_maxima(heat, threshold, kernel_size).flatten()
    is_kept = TOP_K_RULES[rule](scores, top_k)
    count = scores.shape[0]
    # the first elements have the highest keys, so that the result is in row order
    keys = (count - torch.arange(count, device=heat.device)) * is_kept
    best = keys.topk(min(top_k, count)).values
    exists = best > 0
    position = (count - best) * exists
    width = heat.shape[1]
    return torch.stack([position // width, position % width], 1), exists
