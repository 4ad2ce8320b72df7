"""Pairwise and patchwise attention of Exploring Self-attention for Image Recognition (Zhao et al.,
CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Window, local_aggregate
from ..ops.window import IntPair
from .spatial import spatial_operator

# how the query (B, R, 1, L) and the keys (B, R, K, L) become features of each neighbour (B, F, K,
# L), and F of R
PAIRWISE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[int], int]]] = {
    'subtraction': (lambda query, keys: query - keys, lambda relation: relation),
    'summation': (lambda query, keys: query + keys, lambda relation: relation),
    'concatenation': (
        lambda query, keys: torch.cat([query.expand_as(keys), keys], 1),
        lambda relation: 2 * relation,
    ),
    'hadamard': (lambda query, keys: query * keys, lambda relation: relation),
    'dot_product': (lambda query, keys: (query * keys).sum(1, keepdim=True), lambda relation: 1),
}
# the same for a whole patch: features (B, F, 1, L), and F of R and K
PATCHWISE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[int, int], int]]] = {
    'concatenation': (
        lambda query, keys: torch.cat([query.squeeze(2), keys.flatten(1, 2)], 1).unsqueeze(2),
        lambda relation, taps: relation * (taps + 1),
    ),
    'star_product': (
        lambda query, keys: (query * keys).sum(1).unsqueeze(2),
        lambda relation, taps: taps,
    ),
    'clique_product': (
        lambda query, keys: torch.einsum('brjl,brkl->bjkl', keys, keys).flatten(1, 2).unsqueeze(2),
        lambda relation, taps: taps * taps,
    ),
}


def _reflected(length: int, padding: int, device: torch.device) -> Tensor:
    """Return the indices 0 .. length - 1 continued on both sides by reflection, as often as it
    takes.
    """
    period = max(1, 2 * (length - 1))
    index = torch.arange(-padding, length + padding, device=device) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


class VectorAttention(BaseModule):
    """What both kinds share: projections, reflection at the border, and weights shared by
    interleaved channels.

    Channel c of the values takes weight c modulo (C_out / share), a strided view of the values. The
    map is continued by reflection beyond its border, on maps smaller than the window as often as it
    takes.

    Arguments: see :class:`SANPairwise`; ``relations`` are those that a kind knows.
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
        relations: dict,
        norm_cfg: dict,
        act_cfg: dict,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(init_cfg)
        out_channels = channels if out_channels is None else out_channels
        relation_channels = (
            max(1, channels // 16) if relation_channels is None else relation_channels
        )
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
        """Return the mapping: norm, activation and 1x1 convolution, ``depth`` times, the last with
        a bias.
        """
        layers: list[nn.Module] = []
        for index in range(depth):
            last = index == depth - 1
            layers += [
                build_norm_layer(self.norm_cfg, features)[1],
                build_activation_layer(self.act_cfg),
                nn.Conv2d(features, outputs if last else width, 1, bias=last),
            ]
            features = width
        return nn.Sequential(*layers)

    def pad(self, x: Tensor) -> Tensor:
        """Continue (B, C, H, W) by reflection."""
        rows, columns = (
            _reflected(length, padding, x.device)
            for length, padding in zip(x.shape[-2:], self.padding, strict=True)
        )
        return x.index_select(2, rows).index_select(3, columns)

    def neighbours(self, x: Tensor) -> Tensor:
        """Return (B, C, K, L) of (B, C, H, W): every output position's neighbours."""
        window = self.window
        patches = F.unfold(self.pad(x), window.kernel, window.dilation, stride=window.stride)
        return patches.unflatten(1, (x.shape[1], window.taps))

    def aggregate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Sum the values of x by weights (B, G, K, Ho, Wo), G interleaved groups."""
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

    (equations 2 and 3 of the paper, the position of section 3.1), with p a learned linear map of
    coordinates in [-1, 1] and gamma a small network; its last layer is wide enough for one weight
    per group of shared channels.

    Args:
        channels: C, of the input.
        out_channels: of the output and of the values; C by default.
        relation_channels: of what delta sees; C / 16 by default.
        kernel_size: odd size of the footprint, or (rows, columns): (1, k) is a span of a row.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps.
        share_channels: how many channels share a weight.
        relation: delta: 'subtraction' (the released networks), 'summation', 'concatenation',
            'hadamard' or 'dot_product'.
        gamma_depth: convolutions in gamma.
        norm_cfg: of the norms in gamma.
        act_cfg: of the activations in gamma.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: the channels cannot be divided, or there is no such relation.
    """

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
        features = PAIRWISE[relation][1](self.relation_channels) + 2
        self.conv_w = self.gamma(features, self.relation_channels, self.groups, gamma_depth)
        self.conv_p = nn.Conv2d(2, 2, 1)

    def coordinates(self, x: Tensor) -> Tensor:
        """Return (1, 2, H, W): column and row of every position, from -1 to 1."""
        axes = [
            torch.linspace(-1, 1, length, device=x.device, dtype=self.conv_p.weight.dtype)
            if length > 1
            else torch.zeros(1, device=x.device, dtype=self.conv_p.weight.dtype)
            for length in x.shape[-2:]
        ]
        rows, columns = torch.meshgrid(*axes, indexing='ij')
        return torch.stack([columns, rows])[None]

    def weights(self, x: Tensor) -> Tensor:
        """Return alpha (B, G, K, Ho, Wo)."""
        stride = self.stride
        query = self.conv1(x[..., ::stride, ::stride]).flatten(2).unsqueeze(2)
        related = PAIRWISE[self.relation][0](query, self.neighbours(self.conv2(x)))
        position = self.conv_p(self.coordinates(x))
        offset = position[..., ::stride, ::stride].flatten(2).unsqueeze(2) - self.neighbours(
            position
        )
        features = torch.cat([related, offset.expand(len(x), -1, -1, -1).to(related.dtype)], 1)
        logits = self.conv_w(features)
        alpha = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(2)
        return alpha.unflatten(3, self.output_size(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.aggregate(x, self.weights(x))


@spatial_operator
class SANPatchwise(VectorAttention):
    r"""Weigh all neighbours by one tensor that depends on the patch as a whole.

    .. math:: y_i = \sum_{j \in R(i)} \alpha(x_{R(i)})_j \odot \beta(x_j), \qquad
              \alpha(x_{R(i)}) = \gamma\big(\delta(x_{R(i)})\big)

    (equation 4 of the paper; no softmax and no position). Arguments: see :class:`SANPairwise`.

    Args:
        relation: delta: 'concatenation' (the released networks: the centre and all neighbours),
            'star_product' (the centre times each neighbour) or 'clique_product' (each neighbour
            times each other).

    Raises:
        ValueError: the channels cannot be divided, or there is no such relation.
    """

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
        features = PATCHWISE[relation][1](self.relation_channels, taps)
        self.conv_w = self.gamma(features, self.groups, taps * self.groups, gamma_depth)

    def weights(self, x: Tensor) -> Tensor:
        """Return alpha (B, G, K, Ho, Wo)."""
        query = self.conv1(x[..., :: self.stride, :: self.stride]).flatten(2).unsqueeze(2)
        features = PATCHWISE[self.relation][0](query, self.neighbours(self.conv2(x)))
        return (
            self.conv_w(features)
            .unflatten(1, (self.groups, self.window.taps))
            .squeeze(3)
            .unflatten(3, self.output_size(x))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.aggregate(x, self.weights(x))
