"""Pairwise and patchwise attention of Exploring Self-attention for Image Recognition (Zhao et al.,
CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Window, local_aggregate
from ..ops.window import IntPair
from .safe_module import SafeModule
from .spatial import spatial_operator


class Relation(NamedTuple):
    """A relation delta between the centre of a window and its neighbours.

    Args:
        features: Maps the query (B, R, 1, L) and the keys (B, R, K, L) to features: (B, F, K, L) of
            every neighbour, or (B, F, 1, L) of the whole patch.
        feature_count: Maps R and K to the number of features F.
    """

    features: Callable[[Tensor, Tensor], Tensor]
    feature_count: Callable[[int, int], int]


def _concatenate_pair(query: Tensor, keys: Tensor) -> Tensor:
    return torch.cat([query.expand_as(keys), keys], 1)


def _concatenate_patch(query: Tensor, keys: Tensor) -> Tensor:
    return torch.cat([query.squeeze(2), keys.flatten(1, 2)], 1).unsqueeze(2)


def _clique_product(query: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum('brjl,brkl->bjkl', keys, keys).flatten(1, 2).unsqueeze(2)


PAIRWISE = {
    'subtraction': Relation(lambda query, keys: query - keys, lambda r, k: r),
    'summation': Relation(lambda query, keys: query + keys, lambda r, k: r),
    'concatenation': Relation(_concatenate_pair, lambda r, k: 2 * r),
    'hadamard': Relation(lambda query, keys: query * keys, lambda r, k: r),
    'dot_product': Relation(
        lambda query, keys: (query * keys).sum(1, keepdim=True), lambda r, k: 1
    ),
}
PATCHWISE = {
    'concatenation': Relation(_concatenate_patch, lambda r, k: r * (k + 1)),
    'star_product': Relation(
        lambda query, keys: (query * keys).sum(1).unsqueeze(2), lambda r, k: k
    ),
    'clique_product': Relation(_clique_product, lambda r, k: k * k),
}


def _reflected(length: int, padding: int, device: torch.device) -> Tensor:
    """Return the indices 0 .. length - 1 continued on both sides by reflection.

    A padding wider than the map is reflected again and again, which ``F.pad`` does not do.
    """
    if length == 1:
        return torch.zeros(1 + 2 * padding, device=device, dtype=torch.long)
    period = 2 * (length - 1)
    index = torch.arange(-padding, length + padding, device=device) % period
    return torch.minimum(index, period - index)


class VectorAttention(SafeModule):
    """Base of both operators: projections, reflection at the border, and the weighted sum.

    Channel c of the values takes weight c modulo (C_out / share), a strided view of the values. The
    feature map is continued by reflection beyond its border. Arguments: see :class:`SANPairwise`;
    ``relations`` are the relations that an operator knows.
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None,
        relation_channels: int | None,
        kernel_size: IntPair,
        stride: int,
        dilation: int,
        share_channels: int,
        relation: str,
        relations: dict[str, Relation],
        norm_cfg: dict,
        act_cfg: dict,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(init_cfg)
        out_channels = channels if out_channels is None else out_channels
        if relation_channels is None:
            relation_channels = max(1, channels // 16)
        if share_channels < 1 or out_channels % share_channels:
            raise ValueError(
                f'share_channels must divide out_channels, got {out_channels=}, {share_channels=}.'
            )
        if relation not in relations:
            raise ValueError(f'relation must be one of {list(relations)}, got {relation!r}.')
        centred = Window(kernel_size, stride, dilation)
        self.padding = centred.padding
        # the map is padded by reflection before the window slides over it
        self.window = Window(centred.kernel, stride, dilation, padding=0)
        self.stride, self.groups = stride, out_channels // share_channels
        self.relation = relation
        self.norm_cfg, self.act_cfg = norm_cfg, act_cfg
        self.relation_channels = relation_channels
        self.conv1 = nn.Conv2d(channels, relation_channels, 1)
        self.conv2 = nn.Conv2d(channels, relation_channels, 1)
        self.conv3 = nn.Conv2d(channels, out_channels, 1)

    def gamma(self, features: int, width: int, outputs: int, depth: int) -> nn.Sequential:
        """Return the mapping: ``depth`` times norm, activation and 1x1 convolution, the last one
        with a bias.
        """
        layers: list[nn.Module] = []
        for index in range(depth):
            is_last = index == depth - 1
            layers += [
                build_norm_layer(self.norm_cfg, features)[1],
                build_activation_layer(self.act_cfg),
                nn.Conv2d(features, outputs if is_last else width, 1, bias=is_last),
            ]
            features = width
        return nn.Sequential(*layers)

    def pad(self, x: Tensor) -> Tensor:
        """Continue (B, C, H, W) by reflection."""
        rows = _reflected(x.shape[2], self.padding[0], x.device)
        columns = _reflected(x.shape[3], self.padding[1], x.device)
        return x.index_select(2, rows).index_select(3, columns)

    def neighbours(self, x: Tensor) -> Tensor:
        """Return the neighbours (B, C, K, L) of every output position on (B, C, H, W)."""
        window = self.window
        patches = F.unfold(self.pad(x), window.kernel, window.dilation, stride=window.stride)
        return patches.unflatten(1, (x.shape[1], window.taps))

    def subsample(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) at the output positions."""
        return x[..., :: self.stride, :: self.stride]

    def aggregate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Sum the values of x by weights (B, G, K, Ho, Wo) of G interleaved groups."""
        value = self.pad(self.conv3(x))
        # channel c belongs to group c % G: a view, not a permutation
        interleaved = value.unflatten(1, (-1, self.groups)).transpose(1, 2)
        return local_aggregate(interleaved, weight, self.window).transpose(1, 2).flatten(1, 2)

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Return (Ho, Wo) for an input (B, C, H, W)."""
        return -(-x.shape[-2] // self.stride), -(-x.shape[-1] // self.stride)


@spatial_operator
class SANPairwise(VectorAttention):
    r"""Weigh each neighbour by a vector that depends on it and on the centre.

    .. math:: y_i = \sum_{j \in R(i)} \alpha(x_i, x_j) \odot \beta(x_j), \qquad
              \alpha = \mathrm{softmax}_j \, \gamma\big(\delta(x_i, x_j), \, p_i - p_j\big)

    (equations 2 and 3 of the paper, the position of section 3.1). The position p is a learned
    linear map of coordinates in [-1, 1]. The mapping gamma is a small network, whose last layer has
    one weight per group of channels.

    Args:
        channels: Number of input channels C.
        out_channels: Number of channels of the output and of the values; None is C.
        relation_channels: Number of channels of the queries and keys; None is C / 16.
        kernel_size: Size of the footprint, odd, or a pair (rows, columns): (1, k) is a span of a
            row.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps.
        share_channels: Number of channels that share a weight.
        relation: Relation delta: 'subtraction' (the released networks), 'summation',
            'concatenation', 'hadamard' or 'dot_product'.
        gamma_depth: Number of convolutions in gamma.
        norm_cfg: Config of the norms in gamma.
        act_cfg: Config of the activations in gamma.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: The channels cannot be divided, or there is no such relation.
    """

    example: ClassVar[dict] = dict(kernel_size=3)

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        relation_channels: int | None = None,
        kernel_size: IntPair = 7,
        stride: int = 1,
        dilation: int = 1,
        share_channels: int = 8,
        relation: str = 'subtraction',
        gamma_depth: int = 2,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='ReLU'),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            channels,
            out_channels=out_channels,
            relation_channels=relation_channels,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            share_channels=share_channels,
            relation=relation,
            relations=PAIRWISE,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            init_cfg=init_cfg,
        )
        # two more for the relative position
        features = PAIRWISE[relation].feature_count(self.relation_channels, self.window.taps) + 2
        self.conv_w = self.gamma(features, self.relation_channels, self.groups, gamma_depth)
        self.conv_p = nn.Conv2d(2, 2, 1)

    def coordinates(self, x: Tensor) -> Tensor:
        """Return (1, 2, H, W): column and row of every position, from -1 to 1."""
        # coordinates of half precision would not tell the positions of a long axis apart
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows, columns = (_coordinates(size, x.device, dtype) for size in x.shape[-2:])
        rows, columns = torch.meshgrid(rows, columns, indexing='ij')
        return torch.stack([columns, rows])[None].to(x.dtype)

    def offsets(self, x: Tensor) -> Tensor:
        """Return p_i - p_j, (1, 2, K, L)."""
        position = self.conv_p(self.coordinates(x))
        centre = self.subsample(position).flatten(2).unsqueeze(2)
        return centre - self.neighbours(position)

    def weights(self, x: Tensor) -> Tensor:
        """Return alpha (B, G, K, Ho, Wo)."""
        # (B, R, 1, L) beside the neighbours (B, R, K, L)
        query = self.conv1(self.subsample(x)).flatten(2).unsqueeze(2)
        relation = PAIRWISE[self.relation].features(query, self.neighbours(self.conv2(x)))
        offset = self.offsets(x).expand(len(x), -1, -1, -1).to(relation.dtype)
        logits = self.conv_w(torch.cat([relation, offset], 1))
        # a softmax in half precision would not sum to one
        alpha = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(2)
        return alpha.unflatten(3, self.output_size(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.aggregate(x, self.weights(x))


def _coordinates(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    if length == 1:
        return torch.zeros(1, device=device, dtype=dtype)
    # torch.linspace would make the length of a traced or exported network a constant
    twice = 2 * torch.arange(length, device=device, dtype=dtype) - (length - 1)
    return twice / (length - 1)


@spatial_operator
class SANPatchwise(VectorAttention):
    r"""Weigh all neighbours by one tensor that depends on the patch as a whole.

    .. math:: y_i = \sum_{j \in R(i)} \alpha(x_{R(i)})_j \odot \beta(x_j), \qquad
              \alpha(x_{R(i)}) = \gamma\big(\delta(x_{R(i)})\big)

    (equation 4 of the paper, without a softmax and a position). Other arguments: see
    :class:`SANPairwise`.

    Args:
        relation: Relation delta: 'concatenation' (the released networks: the centre and all
            neighbours), 'star_product' (the centre times each neighbour) or 'clique_product' (each
            neighbour times each other).

    Raises:
        ValueError: The channels cannot be divided, or there is no such relation.
    """

    example: ClassVar[dict] = dict(kernel_size=3)

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        relation_channels: int | None = None,
        kernel_size: IntPair = 7,
        stride: int = 1,
        dilation: int = 1,
        share_channels: int = 8,
        relation: str = 'concatenation',
        gamma_depth: int = 2,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='ReLU'),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            channels,
            out_channels=out_channels,
            relation_channels=relation_channels,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            share_channels=share_channels,
            relation=relation,
            relations=PATCHWISE,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            init_cfg=init_cfg,
        )
        taps = self.window.taps
        features = PATCHWISE[relation].feature_count(self.relation_channels, taps)
        self.conv_w = self.gamma(features, self.groups, taps * self.groups, gamma_depth)

    def weights(self, x: Tensor) -> Tensor:
        """Return alpha (B, G, K, Ho, Wo)."""
        query = self.conv1(self.subsample(x)).flatten(2).unsqueeze(2)
        features = PATCHWISE[self.relation].features(query, self.neighbours(self.conv2(x)))
        alpha = self.conv_w(features).unflatten(1, (self.groups, self.window.taps))
        return alpha.squeeze(3).unflatten(3, self.output_size(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.aggregate(x, self.weights(x))
