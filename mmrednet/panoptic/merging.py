"""From predictions to a panoptic map: the post-processing of Panoptic-DeepLab (Cheng et al., CVPR
2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .centers import TOP_K_RULES, find_centers
from .nearest import is_traced, nearest_center

# mmdet's id of a segment: number of the instance times this, plus the class
INSTANCE_OFFSET = 1000
# steps of a probability in sums, which are integers so that they do not depend on their order
PROBABILITY_STEPS = 1 << 30


class PanopticMap(NamedTuple):
    """A panoptic map and its segments: K instances, some of which may be empty, then C classes of
    stuff.

    Args:
        slot: Segment of each pixel (H, W), from 0 to K + C; K + C is void.
        category: Class of each segment (K + C,).
        number: Number of the instance in its class (K + C,), 0 for stuff.
        area: Number of pixels of each segment (K + C,), 0 if there is no such segment.
        score: Score of each segment (K + C,).
    """

    slot: Tensor
    category: Tensor
    number: Tensor
    area: Tensor
    score: Tensor

    def ids(self, void: int) -> Tensor:
        """Return mmdet's ids (H, W), with this one for void."""
        ids = self.number * INSTANCE_OFFSET + self.category
        return torch.cat([ids, ids.new_full((1,), void)])[self.slot]

    def segments_info(self) -> list[dict]:
        """Return 'id', 'category' and 'score' of each segment that has pixels."""
        columns = (self.category, self.number, self.area, self.score)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            dict(id=number * INSTANCE_OFFSET + category, category=category, score=score)
            for category, number, area, score in rows
            if area
        ]


def center_heat(heat: Tensor, centers: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """Return the heat at each centre."""
    return heat[centers[:, 0], centers[:, 1]]


def mass_heat(heat: Tensor, centers: Tensor, index: Tensor, area: Tensor) -> Tensor:
    """Return the heat at the mean position of each instance's pixels, cut to integers."""
    height, width = index.shape
    rows = torch.arange(height, device=index.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=index.device).expand(height, width)
    count = centers.shape[0]
    row = add_up(rows, index, count + 1)[:count] // area.clamp(min=1)
    column = add_up(columns, index, count + 1)[:count] // area.clamp(min=1)
    return heat[row, column]


# name -> (whether the probability of the class is a factor, the heat that is one)
SCORES: dict[str, tuple[bool, Callable | None]] = {
    'semantic_center': (True, center_heat),
    'semantic_mass': (True, mass_heat),
    'semantic': (True, None),
    'center': (False, center_heat),
    'mass': (False, mass_heat),
}
CHOICES = dict(
    top_k_rule=list(TOP_K_RULES),
    numbering=['center', 'appearance'],
    foreground_vote=['all', 'things'],
    score=list(SCORES),
    no_center=['void', 'one_instance'],
)


class PanopticMerger(nn.Module):
    r"""Make a panoptic map of the predictions for one image.

    .. math:: k(p) = \arg\min_k |c_k - (p + o_p)|^2

    The centres c are the maxima of the heat map. Each pixel of a thing goes to the nearest centre.
    The class of an instance is the one that most of its pixels have; of equal numbers the smaller
    class wins. Stuff has the remaining pixels, if they are enough.

    Args:
        num_classes: Number of classes.
        thing_classes: Classes that are things.
        threshold: Value of the heat map that a centre must exceed. Default: 0.1.
        nms_kernel: Size of the window that a centre is the maximum of. Default: 7.
        top_k: Number of centres to keep. Default: 200.
        top_k_rule: Which centres are kept. 'best' are the ``top_k`` best; 'detectron2',
            'bowenc0221' and 'deeplab2' are those of the published codes, which lose the last one.
            Default: 'best'.
        stuff_area: Least area of a class of stuff. Default: 2048.
        stuff_above: True if an area of stuff must exceed ``stuff_area``. Default: False.
        numbering: Order of the instances of a class, that of their 'center' in rows, or of the
            first 'appearance' of a pixel. Default: 'appearance'.
        foreground_vote: With a mask of the foreground, whether 'all' of its pixels vote for the
            class, or those of 'things', while the others become void. Default: 'things'.
        no_center: What the pixels of things are where there is no centre, 'void' or
            'one_instance'. Default: 'void'.
        score: Score of an instance: the mean probability of its class ('semantic'), the heat at its
            'center', the heat at the mean of its pixels ('mass'), or a product: 'semantic_center'
            or 'semantic_mass'. Default: 'semantic_center'.

    Raises:
        ValueError: An argument has no such value.
    """

    is_thing: Tensor

    def __init__(
        self,
        num_classes: int,
        thing_classes: Sequence[int],
        *,
        threshold: float = 0.1,
        nms_kernel: int = 7,
        top_k: int = 200,
        top_k_rule: str = 'best',
        stuff_area: int = 2048,
        stuff_above: bool = False,
        numbering: str = 'appearance',
        foreground_vote: str = 'things',
        no_center: str = 'void',
        score: str = 'semantic_center',
    ) -> None:
        super().__init__()
        choices = dict(
            top_k_rule=top_k_rule,
            numbering=numbering,
            foreground_vote=foreground_vote,
            score=score,
            no_center=no_center,
        )
        for name, value in choices.items():
            if value not in CHOICES[name]:
                raise ValueError(f'{name} must be one of {CHOICES[name]}, got {value!r}.')
        if nms_kernel < 1 or nms_kernel % 2 == 0 or top_k < 1:
            raise ValueError(
                f'nms_kernel must be odd and top_k at least 1, got {nms_kernel=}, {top_k=}.'
            )
        self.num_classes = num_classes
        things = set(thing_classes)
        is_thing = torch.tensor([index in things for index in range(num_classes)])
        self.register_buffer('is_thing', is_thing, persistent=False)
        self.centers: dict[str, Any] = dict(
            threshold=threshold, kernel_size=nms_kernel, top_k=top_k, rule=top_k_rule
        )
        self.stuff_area = stuff_area + 1 if stuff_above else stuff_area
        self.by_appearance = numbering == 'appearance'
        self.things_vote = foreground_vote == 'things'
        self.fill_one = no_center == 'one_instance'
        self.has_probability, self.heat_of = SCORES[score]

    def forward(
        self,
        probability: Tensor,
        heat: Tensor,
        offset: Tensor,
        *,
        semantic: Tensor | None = None,
        foreground: Tensor | None = None,
    ) -> PanopticMap:
        """Return the panoptic map.

        Args:
            probability: Probabilities of the classes (C, H, W).
            heat: Heat map of the centres (H, W).
            offset: Rows and columns to the centre (2, H, W), in pixels.
            semantic: Class of each pixel (H, W). Default: the most probable one.
            foreground: Mask (H, W) of the pixels that belong to instances. Default: those of
                things.
        """
        semantic = most_probable(probability) if semantic is None else semantic
        is_thing = self.is_thing[semantic]
        members = is_thing if foreground is None else foreground
        centers, exists = self.find_centers(heat)
        index = self.group(centers, exists, offset, members)
        voters = index
        if foreground is not None and self.things_vote:
            voters = index.masked_fill(~is_thing, centers.shape[0])
        category, area = self.vote(voters, semantic, centers.shape[0])
        # stuff has the pixels outside all instances, and those of no segment are void
        slot = self.add_stuff(index, voters, semantic, centers.shape[0])
        number = self.number(voters, category, area)
        classes = torch.arange(self.num_classes, device=semantic.device)
        category = torch.cat([category, classes])
        number = torch.cat([number, torch.zeros_like(classes)])
        counts = add_up(torch.ones_like(slot), slot, category.shape[0] + 1)[:-1]
        score = self.score(probability, heat, centers, slot, category, counts)
        return PanopticMap(slot, category, number, counts, score)

    def find_centers(self, heat: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions (K, 2) of the centres in row order, and which of them exist (K,)."""
        centers, exists = find_centers(heat, **self.centers)
        if self.fill_one:
            # any position will do for the only instance
            exists = torch.cat([exists[:1] | ~exists.any(), exists[1:]])
        if is_traced():
            return centers, exists
        # those that exist come first; at least one stays, so that no tensor is empty
        count = max(int(exists.sum()), 1)
        return centers[:count], exists[:count]

    def group(self, centers: Tensor, exists: Tensor, offset: Tensor, members: Tensor) -> Tensor:
        """Return the index (H, W) of the centre of each pixel of an instance, K for the others."""
        height, width = members.shape
        rows = torch.arange(height, device=offset.device, dtype=offset.dtype)
        columns = torch.arange(width, device=offset.device, dtype=offset.dtype)
        points = torch.stack([offset[0] + rows[:, None], offset[1] + columns])
        positions = centers.to(offset.dtype).masked_fill(~exists[:, None], torch.inf)
        index = nearest_center(points, positions, members & exists.any())
        return index.masked_fill(~(members & exists.any()), centers.shape[0])

    def vote(self, index: Tensor, semantic: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return class and area (K,) of the instances."""
        classes = self.num_classes
        pairs = index * classes + semantic
        votes = add_up(torch.ones_like(pairs), pairs, (count + 1) * classes)
        votes = votes.view(-1, classes)[:count]
        return votes.argmax(1), votes.sum(1)

    def add_stuff(self, index: Tensor, voters: Tensor, semantic: Tensor, count: int) -> Tensor:
        """Return the segment (H, W) of each pixel: an instance, count + class, or void."""
        is_free = (index == count) & ~self.is_thing[semantic]
        void = self.num_classes
        stuff = semantic.masked_fill(~is_free, void)
        area = add_up(torch.ones_like(stuff), stuff, void + 1)[:-1]
        is_large = torch.cat([area >= self.stuff_area, area.new_zeros(1, dtype=torch.bool)])
        stuff = stuff.masked_fill(~is_large[stuff], void) + count
        return torch.where(voters < count, voters, stuff)

    def number(self, index: Tensor, category: Tensor, area: Tensor) -> Tensor:
        """Return the number of each instance (K,) in its class, from 1."""
        order = torch.arange(category.shape[0], device=index.device)
        if self.by_appearance:
            position = torch.arange(index.numel(), device=index.device)
            first = position.new_full((category.shape[0] + 1,), index.numel())
            order = first.scatter_reduce(0, index.flatten(), position, 'amin')[:-1]
        is_same = (category == category[:, None]) & (area > 0)
        return (is_same & (order < order[:, None])).sum(1) + 1

    def score(
        self,
        probability: Tensor,
        heat: Tensor,
        centers: Tensor,
        slot: Tensor,
        category: Tensor,
        area: Tensor,
    ) -> Tensor:
        """Return the scores (K + C,): stuff has the mean probability of its class alone."""
        class_of_pixel = torch.cat([category, category.new_zeros(1)])[slot]
        values = probability.gather(0, class_of_pixel[None])[0].double()
        steps = add_up((values * PROBABILITY_STEPS).round().long(), slot, area.shape[0] + 1)[:-1]
        mean = steps.double() / PROBABILITY_STEPS / area.clamp(min=1)
        count = centers.shape[0]
        things = mean[:count] if self.has_probability else torch.ones_like(mean[:count])
        if self.heat_of is not None:
            index = slot.clamp(max=count)
            things = things * self.heat_of(heat, centers, index, area[:count]).double()
        return torch.cat([things, mean[count:]])


def most_probable(probability: Tensor) -> Tensor:
    """Return the first class with the highest probability (H, W)."""
    # torch's argmax over the first axis is slow on CPUs
    if probability.is_cuda or is_traced():
        return probability.argmax(0)
    # results that are written in place have no gradients
    probability = probability.detach()
    best = probability[0].clone()
    index = torch.zeros_like(best, dtype=torch.int16)
    for category, values in enumerate(probability[1:], start=1):
        index.masked_fill_(values > best, category)
        torch.maximum(best, values, out=best)
    return index.long()


def add_up(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Return the sums (count,) of the values with each index. Values are integers, whose sums do
    not depend on the order.
    """
    sums = torch.zeros(count, dtype=torch.int64, device=values.device)
    return sums.scatter_add(0, index.flatten(), values.flatten())
