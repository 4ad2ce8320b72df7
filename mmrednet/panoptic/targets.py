"""Training targets of Panoptic-DeepLab (Cheng et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE_LABEL = 255
ROUNDINGS = {'half_even': torch.round, 'truncate': torch.trunc}


class Targets(NamedTuple):
    """What one image, or a batch of them, is trained for.

    Args:
        semantic: Class of each pixel (H, W), ``IGNORE_LABEL`` where there is none.
        heat: Heat map of the centres (H, W).
        offset: Rows and columns from a pixel to the centre of its instance (2, H, W).
        semantic_weight: Weight of each pixel in the semantic loss (H, W).
        heat_weight: Weight of each pixel in the loss of the heat map (H, W).
        offset_weight: Weight of each pixel in the loss of the offsets (H, W).
    """

    semantic: Tensor
    heat: Tensor
    offset: Tensor
    semantic_weight: Tensor
    heat_weight: Tensor
    offset_weight: Tensor


class Segments(NamedTuple):
    """Properties of segments (S + 1,), the last of which stands for void."""

    category: Tensor
    is_thing: Tensor
    is_crowd: Tensor
    is_void: Tensor


class PanopticTargets:
    r"""Make the targets of a map of segment ids.

    .. math:: h_p = \max_k \exp\Big(-\frac{|p - \bar c_k|^2}{2 \sigma^2}\Big), \qquad
              o_p = c_{k(p)} - p

    The centre c of a thing is the mean of its pixels, and the one of the heat map is rounded. A
    Gaussian ends 3 sigma + 1 pixels from its centre, along rows and along columns.

    Args:
        thing_classes: Classes that are things.
        sigma: Standard deviation of the Gaussians in pixels. Default: 8.
        rounding: How the centre of the heat map is rounded, 'half_even' or 'truncate'.
            Default: 'half_even'.
        exact_offsets: True if offsets lead to the mean, False if to the rounded centre.
            Default: False.
        crowd_centers: True if crowd segments of things have Gaussians and offsets, whose pixels
            have no weight. Default: False.
        small_area: Area below which an instance is small. Default: 4096.
        small_weight: Weight of small instances in the semantic loss. Default: 3.
        small_crowds: True if crowd segments may be small. Default: False.
        stuff_offsets: True if stuff has offsets, which are 0, with weight. Default: False.
        ignore_crowd: True if crowd segments are ignored in the semantic loss. Default: False.

    Raises:
        ValueError: ``rounding`` has no such value, or ``sigma`` is not positive.
    """

    def __init__(
        self,
        thing_classes: Sequence[int],
        *,
        sigma: float = 8,
        rounding: str = 'half_even',
        exact_offsets: bool = False,
        crowd_centers: bool = False,
        small_area: int = 4096,
        small_weight: float = 3,
        small_crowds: bool = False,
        stuff_offsets: bool = False,
        ignore_crowd: bool = False,
    ) -> None:
        if rounding not in ROUNDINGS:
            raise ValueError(f'rounding must be one of {list(ROUNDINGS)}, got {rounding!r}.')
        if sigma <= 0:
            raise ValueError(f'sigma must be positive, got {sigma}.')
        self.thing_classes = frozenset(thing_classes)
        self.sigma, self.round = sigma, ROUNDINGS[rounding]
        self.exact_offsets, self.crowd_centers = exact_offsets, crowd_centers
        self.small_area, self.small_weight = small_area, small_weight
        self.small_crowds, self.stuff_offsets = small_crowds, stuff_offsets
        self.ignore_crowd = ignore_crowd

    def __call__(self, ids: Tensor, segments_info: Sequence[Mapping]) -> Targets:
        """Return the targets of one image.

        Args:
            ids: Segment id of each pixel (H, W), 0 for void. An id that is not listed is void.
            segments_info: One mapping per segment, with 'id', 'category' (index of the class) and
                'iscrowd'. A segment may have no pixels.
        """
        index = segment_index(ids, segments_info)
        segments = self.segments(segments_info, ids.device)
        area = torch.bincount(index.flatten(), minlength=len(segments.category))
        centers = mean_positions(index, area)
        has_center = segments.is_thing & (area > 0)
        if not self.crowd_centers:
            has_center &= ~segments.is_crowd
        rounded = self.round(centers)
        heat = gaussians(rounded[has_center].long(), ids.shape, self.sigma)
        offset = self.offsets(index, centers if self.exact_offsets else rounded, has_center)
        return Targets(
            self.semantic(index, segments),
            heat,
            offset,
            *self.weights(index, segments, area),
        )

    def segments(self, segments_info: Sequence[Mapping], device: torch.device) -> Segments:
        """Return the properties of the segments and of void."""
        category = [int(segment['category']) for segment in segments_info] + [IGNORE_LABEL]
        things = [value in self.thing_classes for value in category]
        crowds = [bool(segment.get('iscrowd', 0)) for segment in segments_info] + [False]
        voids = [False] * len(segments_info) + [True]
        columns = (category, things, crowds, voids)
        return Segments(*(torch.tensor(column, device=device) for column in columns))

    def semantic(self, index: Tensor, segments: Segments) -> Tensor:
        """Return the classes (H, W) of a map of segment indices."""
        category = segments.category
        if self.ignore_crowd:
            category = category.masked_fill(segments.is_crowd, IGNORE_LABEL)
        return category[index]

    def offsets(self, index: Tensor, centers: Tensor, has_center: Tensor) -> Tensor:
        """Return the vectors (2, H, W) from pixels to the centres of their segments."""
        height, width = index.shape
        rows = torch.arange(height, device=index.device, dtype=centers.dtype)
        columns = torch.arange(width, device=index.device, dtype=centers.dtype)
        targets = centers[index]
        offset = torch.stack([targets[..., 0] - rows[:, None], targets[..., 1] - columns])
        return offset.where(has_center[index], offset.new_zeros(())).float()

    def weights(
        self, index: Tensor, segments: Segments, area: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights (H, W) of the semantic loss, of the heat map and of the offsets."""
        is_small = segments.is_thing & (area < self.small_area)
        if not self.small_crowds:
            is_small &= ~segments.is_crowd
        semantic = torch.ones_like(area, dtype=torch.float32)
        semantic = semantic.masked_fill(is_small, float(self.small_weight))
        labelled = ~(segments.is_crowd | segments.is_void)
        has_offset = labelled if self.stuff_offsets else labelled & segments.is_thing
        return semantic[index], labelled[index].float(), has_offset[index].float()


def segment_index(ids: Tensor, segments_info: Sequence[Mapping]) -> Tensor:
    """Return the index in ``segments_info`` of each pixel's segment; void has the next index."""
    void = len(segments_info)
    if not void:
        return torch.zeros_like(ids)
    listed = torch.tensor([int(segment['id']) for segment in segments_info], device=ids.device)
    ordered, order = listed.sort()
    slot = torch.searchsorted(ordered, ids).clamp_(max=void - 1)
    is_listed = (ordered[slot] == ids) & (ids != 0)
    return order[slot].masked_fill(~is_listed, void)


def mean_positions(index: Tensor, area: Tensor) -> Tensor:
    """Return the mean row and column (S, 2) of the pixels of each segment, in double precision."""
    height, width = index.shape
    rows = torch.arange(height, device=index.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=index.device).expand(height, width)
    # sums of integers are exact and do not depend on their order
    sums = torch.zeros(2, len(area), dtype=torch.int64, device=index.device)
    sums[0].scatter_add_(0, index.flatten(), rows.flatten())
    sums[1].scatter_add_(0, index.flatten(), columns.flatten())
    return (sums.double() / area.clamp(min=1)).T


def gaussians(centers: Tensor, shape: Sequence[int], sigma: float) -> Tensor:
    """Return the maximum (H, W) of Gaussians around the centres (K, 2), whole rows and columns."""
    height, width = shape
    reach = int(3 * sigma + 1)
    step = torch.arange(-reach, reach + 1, device=centers.device)
    distance = (step[:, None] ** 2 + step**2).double()
    window = torch.exp(-distance / (2 * sigma**2)).float()
    # a border around the map takes what lies outside
    padded = window.new_zeros(height + 2 * reach, width + 2 * reach)
    rows = (centers[:, :1] + reach + step)[:, :, None]
    columns = (centers[:, 1:] + reach + step)[:, None]
    position = rows * padded.shape[1] + columns
    values = window.expand_as(position)
    padded.view(-1).scatter_reduce_(0, position.flatten(), values.flatten(), 'amax')
    return padded[reach : reach + height, reach : reach + width].contiguous()
