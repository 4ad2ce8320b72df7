"""Local Relation Networks for Image Recognition (Hu et al., ICCV 2019)."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Window, local_attention, local_difference_attention
from .position import GeometryPrior
from .spatial import spatial_operator

RELATIONS = ('product', 'squared_difference', 'absolute_difference', 'key')


@spatial_operator
class LocalRelation(BaseModule):
    r"""Weigh neighbours by how their scalar keys relate to the query, and by where they are.

    .. math:: y_i = W \sum_j \mathrm{softmax}_j\big(\Phi(q_i, k_j) + f(j - i)\big) \, x_j

    (equations 1 and 2 of the paper), one query and one key for each group of m channels; f is the
    geometry prior, a small network over relative positions, and W a 1x1 convolution. Neighbours
    outside the map get no weight.

    Args:
        channels: C, of the input and of the output.
        kernel_size: odd size of the neighbourhood.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps.
        group_channels: m, how many neighbouring channels share their weights; if it does not divide
            C, the last group has fewer.
        relation: Phi: 'product' (q k), 'squared_difference' (-(q - k)^2), 'absolute_difference'
            (-|q - k|) or 'key' (k alone).
        prior_channels: hidden width of the geometry prior; 0 leaves the prior out.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: ``group_channels`` is not positive, or there is no such relation.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        stride: int = 1,
        dilation: int = 1,
        group_channels: int = 8,
        relation: str = 'product',
        prior_channels: int = 16,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if group_channels < 1:
            raise ValueError(f'group_channels must be at least 1, got {group_channels=}.')
        if relation not in RELATIONS:
            raise ValueError(f'relation must be one of {RELATIONS}, got {relation!r}.')
        self.relation, self.stride, self.group_channels = relation, stride, group_channels
        self.groups, self.missing = -(-channels // group_channels), -channels % group_channels
        self.window = Window(kernel_size, stride, dilation)
        self.query = None if relation == 'key' else nn.Conv2d(channels, self.groups, 1)
        self.key = nn.Conv2d(channels, self.groups, 1)
        self.prior = (
            GeometryPrior(self.groups, prior_channels, self.window.kernel)
            if prior_channels
            else None
        )
        self.project = nn.Conv2d(channels, channels, 1, bias=False)

    def _pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, G, D, Ho, Wo) and (B, G, D, H, W) whose products are the relation."""
        key = self.key(x)
        if self.query is None:
            ones = torch.ones_like(key[..., :: self.stride, :: self.stride])
            return ones.unsqueeze(2), key.unsqueeze(2)
        query = self.query(x[..., :: self.stride, :: self.stride])
        if self.relation == 'squared_difference':
            # -(q - k)^2 without its -q^2, which is the same for all neighbours and so nothing to
            # the softmax
            return torch.stack([2 * query, -torch.ones_like(query)], 2), torch.stack(
                [key, key.square()], 2
            )
        return query.unsqueeze(2), key.unsqueeze(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        value = F.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x
        value = value.unflatten(1, (self.groups, -1))
        prior = None if self.prior is None else self.prior()
        query, key = self._pair(x)
        if self.relation == 'absolute_difference':
            result = local_difference_attention(query, key, value, self.window, bias=prior)
        else:
            result = local_attention(query, key, value, self.window, bias=prior)
        result = result.flatten(1, 2)
        return self.project(result[:, : x.shape[1]])
