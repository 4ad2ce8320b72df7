"""Local Relation Networks for Image Recognition (Hu et al., ICCV 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import (
    Window,
    attend,
    local_attention,
    local_correlate,
    local_difference_attention,
)
from ..ops.difference_attention import difference_logits
from ..ops.onednn import pointwise_conv2d
from .attention import TapWeights
from .groups import join_groups
from .plain import plain_pointwise
from .position import GeometryPrior
from .safe_module import SafeModule
from .spatial import spatial_operator

RELATIONS = ('product', 'squared_difference', 'absolute_difference', 'key')


@spatial_operator
class LocalRelation(SafeModule):
    r"""Weigh neighbours by the relation of their scalar keys to the query, and by their positions.

    .. math:: y_i = W \sum_j \mathrm{softmax}_j\big(\Phi(q_i, k_j) + f(j - i)\big) \, x_j

    (equations 1 and 2 of the paper), with one query and one key for each group of m channels. The
    geometry prior f is a small network over relative positions, and W a 1x1 convolution. Neighbours
    outside the feature map get no weight.

    Args:
        channels: Number of channels C of the input and of the output.
        kernel_size: Size of the neighbourhood, an odd number.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps.
        group_channels: Number of neighbouring channels m that share their weights. If it does not
            divide C, the last group has fewer.
        relation: Relation Phi: 'product' (q k), 'squared_difference' (-(q - k)^2),
            'absolute_difference' (-|q - k|) or 'key' (k alone).
        prior_channels: Number of hidden features of the geometry prior; 0 leaves the prior out.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: ``group_channels`` is not positive, or there is no such relation.
    """

    example: ClassVar[dict] = dict(kernel_size=3)

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
        # channels that fill up the last group are zeros, and are cut off again
        self.groups, self.missing = -(-channels // group_channels), -channels % group_channels
        self.window = Window(kernel_size, stride, dilation)
        self.query = None if relation == 'key' else nn.Conv2d(channels, self.groups, 1)
        self.key = nn.Conv2d(channels, self.groups, 1)
        self.prior = None
        if prior_channels:
            self.prior = GeometryPrior(self.groups, prior_channels, self.window.kernel)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)

    def _factors(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, G, D, Ho, Wo) and (B, G, D, H, W) whose products are the relation."""
        if self.relation == 'squared_difference':
            # -(q - k)^2 = 2 q k - k^2 - q^2, and the softmax over neighbours cancels q^2
            query = torch.stack([2 * query, -torch.ones_like(query)], 2)
            return query, torch.stack([key, key.square()], 2)
        return query.unsqueeze(2), key.unsqueeze(2)

    def aggregate(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the weighted sums (B, G, D, Ho, Wo) of values (B, G, D, H, W)."""
        prior = None if self.prior is None else self.prior()
        if self.relation == 'absolute_difference':
            factors = query.unsqueeze(2), key.unsqueeze(2)
            return local_difference_attention(*factors, value, self.window, bias=prior)
        return local_attention(*self._factors(query, key), value, self.window, bias=prior)

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, G, Ho, Wo) and keys (B, G, H, W) of (B, C, H, W)."""
        at_once = self._project_at_once(x)
        if at_once is not None:
            return at_once
        key = self.key(x)
        if self.query is None:
            # the relation is the key alone: q k with q = 1
            return torch.ones_like(key[..., :: self.stride, :: self.stride]), key
        return self.query(x[..., :: self.stride, :: self.stride]), key

    def _project_at_once(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return queries and keys by a single convolution, or None where both must be called.

        They have few channels, so that most of the time is that of reading the map.
        """
        query, key = plain_pointwise(self.query), plain_pointwise(self.key)
        if query is None or key is None or self.stride > 1:
            return None
        if query.bias is None or key.bias is None:
            return None
        weight = torch.cat([query.weight, key.weight])
        both = pointwise_conv2d(x, weight, torch.cat([query.bias, key.bias]))
        # the gradients of two slices would each fill a whole map
        query_map, key_map = both.split(self.groups, 1)
        return query_map, key_map

    def attention(self, x: Tensor) -> TapWeights:
        """Return the weights that are applied to (B, C, H, W), before the last convolution."""
        query, key = self.projections(x)
        prior = None if self.prior is None else self.prior()
        if self.relation == 'absolute_difference':
            logits = difference_logits(
                query.unsqueeze(2), key.unsqueeze(2), prior, list(self.window)
            )
        else:
            logits = local_correlate(*self._factors(query, key), self.window)
            if prior is not None:
                logits = logits + prior[:, :, None, None]
        return TapWeights(attend(logits, self.window, x.shape[-2:]), self.window)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        query, key = self.projections(x)
        value = F.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x
        value = value.unflatten(1, (self.groups, self.group_channels))
        result = join_groups(self.aggregate(query, key, value))
        return self.project(result[:, : x.shape[1]])
