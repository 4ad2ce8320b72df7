"""The nearest centre of each point: exact, with memory in proportion to the points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# side of the blocks of pixels that share a list of candidates
BLOCK = 32
# elements that are worked on at a time; a few such arrays fit a core's cache
CHUNK = 1 << 16
# a bound is only as exact as its rounding
SLACK = 1e-3


def nearest_center(points: Tensor, centers: Tensor, mask: Tensor) -> Tensor:
    """Return the index (H, W) of the centre that is nearest to each point; of equally near ones the
    first.

    Pixels are sorted out in blocks. The box around the points of a block bounds their distances, so
    only few centres can be the nearest of any of them, and only those are compared.

    Args:
        points: Rows and columns of the points (2, H, W).
        centers: Rows and columns (K, 2) of the centres, infinite for those that do not exist.
        mask: Pixels (H, W) whose centre is asked for. Others have any index.
    """
    if is_traced():
        # the lists of candidates depend on the data, a graph does not
        return compare(points[0], points[1], centers.T[:, :, None, None])
    height, width = mask.shape
    padding = (0, -width % BLOCK, 0, -height % BLOCK)
    blocks = to_blocks(F.pad(points, padding))
    lists = candidates(blocks, to_blocks(F.pad(mask, padding)[None])[0], centers)
    index = assign_blocks(blocks, lists, centers)
    return from_blocks(index, width + padding[1])[:height, :width]


def is_traced() -> bool:
    """Return whether a graph is being made that does not depend on data."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def to_blocks(x: Tensor) -> Tensor:
    """Map (C, H, W) to blocks (C, N, BLOCK * BLOCK)."""
    return (
        x.unflatten(2, (-1, BLOCK))
        .unflatten(1, (-1, BLOCK))
        .transpose(2, 3)
        .flatten(3)
        .flatten(1, 2)
    )


def from_blocks(x: Tensor, width: int) -> Tensor:
    """Map blocks (N, BLOCK * BLOCK) to (H, width)."""
    rows = x.view(-1, width // BLOCK, BLOCK, BLOCK)
    return rows.transpose(1, 2).reshape(-1, width)


def candidates(blocks: Tensor, mask: Tensor, centers: Tensor) -> Tensor:
    """Return which centres may be the nearest of a point in each block (N, K)."""
    low = blocks.masked_fill(~mask, torch.inf).amin(2)[:, :, None]
    high = blocks.masked_fill(~mask, -torch.inf).amax(2)[:, :, None]
    center = centers.T[:, None]
    gap = torch.maximum(low - center, center - high).clamp(min=0)
    reach = torch.maximum((center - low).abs(), (center - high).abs())
    # every point of the block has a centre within this distance
    bound = (reach**2).sum(0).amin(1, keepdim=True)
    is_candidate = (gap**2).sum(0) <= bound * (1 + SLACK) + SLACK
    return is_candidate & mask.any(1)[:, None]


def assign_blocks(blocks: Tensor, lists: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest of the candidates (N, BLOCK * BLOCK)."""
    counts, order = lists.sum(1).sort()
    # candidates in the order of their index, then others
    slots = lists.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    # a block with one candidate needs no comparison
    index = slots[:, :1].expand(-1, blocks.shape[2]).clone()
    start = int((counts < 2).sum())
    sizes = counts.tolist()
    step = max(1, CHUNK // blocks.shape[2])
    for first in range(start, len(sizes), step):
        chosen = order[first : first + step]
        count = sizes[min(first + step, len(sizes)) - 1]
        choices = slots[chosen, :count]
        # a shorter list goes on with centres that are no candidates, which does no harm
        positions = centers[choices].permute(2, 1, 0)[..., None]
        best = compare(blocks[0, chosen], blocks[1, chosen], positions)
        index[chosen] = choices.gather(1, best)
    return index


def compare(rows: Tensor, columns: Tensor, centers: Tensor) -> Tensor:
    """Return which of the centres is nearest to each point.

    Args:
        rows: Rows (...) of the points.
        columns: Columns (...) of the points.
        centers: Rows and columns (2, K, ...) of the centres, where ``...`` may be broadcast.
    """
    nearest = torch.full_like(rows, torch.inf)
    index = torch.zeros_like(rows, dtype=torch.int64)
    for candidate, center in enumerate(centers.unbind(1)):
        height, width = rows - center[0], columns - center[1]
        distance = torch.addcmul(height * height, width, width)
        is_nearer = distance < nearest
        nearest = torch.minimum(nearest, distance)
        index = index.masked_fill(is_nearer, candidate)
    return index
