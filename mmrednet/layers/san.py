"""Pairwise and patchwise attention of Exploring Self-attention for Image Recognition (Zhao et al.,
CVPR 2020).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from torch import Tensor, nn

from ..ops import Gamma, Window, local_vector_attention, vector_statistics
from ..ops.vector_attention import aggregate_rows
from ..ops.vector_mapping import Options, by_chunks, chunk_features
from ..ops.vector_relations import PAIRWISE, PATCHWISE, Relation
from ..ops.window import IntPair
from .attention import TapWeights
from .batch_statistics import Moments, synchronised, update_running
from .plain import BATCH_NORMS, is_plain, plain_pointwise
from .safe_module import SafeModule
from .spatial import spatial_operator


class VectorAttention(SafeModule):
    """Base of both operators: projections, norms of gamma, and the weighted sum.

    Channel c of the values takes weight c modulo (C_out / share), a strided view of the values. The
    feature map is continued by reflection beyond its border. Arguments: see :class:`SANPairwise`;
    ``relations`` are the relations that an operator knows.

    One operator computes the features of all neighbours, gamma and the weighted sum, where gamma
    has two layers with batch norms and ReLUs. In training, the batch norms see the statistics of
    all features first. Any other gamma is called as a module.
    """

    patchwise: ClassVar[bool]
    # channels behind queries and keys, of which the difference is taken
    position_channels: ClassVar[int]
    # gamma, whose weights the operator reads: mmrednet.fuse leaves its layers as they are
    read_children: ClassVar[tuple[str, ...]] = ('conv_w',)

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
        self.window = Window(kernel_size, stride, dilation)
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

    def subsample(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) at the output positions."""
        # the gradient of a slice fills a map with zeros first, even where nothing is skipped
        return x if self.stride == 1 else x[..., :: self.stride, :: self.stride]

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, R, Ho, Wo) and keys (B, R, H, W)."""
        return self.conv1(self.subsample(x)), self.conv2(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        (query, key), value = self.queries_and_keys(x), self.conv3(x)
        # a trace shows the separate steps, for those who count them
        if self._gamma_is_plain() and not torch.jit.is_tracing():
            gamma = self.normed_gamma(query, key)
            return local_vector_attention(query, key, value, gamma, self.window, **self._relation())
        return self._by_rows(lambda rows: self._weighted_rows(query, key, value, rows), query, 2)

    def _weighted_rows(
        self, query: Tensor, key: Tensor, value: Tensor, rows: tuple[int, int]
    ) -> Tensor:
        return aggregate_rows(value, self._weights_of_rows(query, key, rows), self.window, rows)

    def weights(self, x: Tensor) -> Tensor:
        """Return alpha (B, G, K, Ho, Wo)."""
        query, key = self.queries_and_keys(x)
        return self._by_rows(lambda rows: self._weights_of_rows(query, key, rows), query, 3)

    def attention(self, x: Tensor) -> TapWeights:
        """Return the weights that are applied to the values of (B, C, H, W)."""
        softmax = not self.patchwise
        return TapWeights(self.weights(x), self.window, reflects=True, sums_to_one=softmax)

    def _weights_of_rows(self, query: Tensor, key: Tensor, rows: tuple[int, int]) -> Tensor:
        """Return alpha (B, G, K, rows, Wo) of some rows of outputs."""
        features = chunk_features(query, key, self._options(), rows)
        return self.alpha(self.conv_w(features)).unflatten(3, (-1, query.shape[3]))

    @abstractmethod
    def alpha(self, logits: Tensor) -> Tensor:
        """Return weights (B, G, K, L) of the outputs of gamma."""

    def _by_rows(self, compute: Callable, query: Tensor, row_dim: int) -> Tensor:
        """Join the results of a function of rows of outputs, one chunk of rows at a time."""
        gamma = self.conv_w
        # a norm that looks at its input has to see all of it
        norms = list(gamma.children())[::3] if isinstance(gamma, nn.Sequential) else []
        is_fixed = bool(norms) and all(_is_fixed(norm) for norm in norms)
        if torch.jit.is_tracing() or not is_fixed:
            return compute((0, query.shape[2]))
        stored = sum(parameter.numel() for parameter in self.conv_w.parameters())
        return torch.cat(by_chunks(compute, query, stored, self._options()), row_dim)

    def _relation(self) -> dict[str, Any]:
        return dict(
            relation=self.relation,
            patchwise=self.patchwise,
            position_channels=self.position_channels,
        )

    def _options(self) -> Options:
        return Options(**self._relation(), window=list(self.window))

    def _gamma_is_plain(self) -> bool:
        """Return whether gamma may be computed from its weights, without calls of its modules."""
        gamma = self.conv_w
        if not is_plain(gamma, nn.Sequential) or len(gamma) != 6:
            return False
        norm1, activation1, first, norm2, activation2, last = gamma
        # mmrednet.fuse folds the second norm into the layer before it
        is_folded = is_plain(norm2, nn.Identity)
        has_bias = getattr(first, 'bias', None) is not None
        is_normed = is_plain(norm2, *BATCH_NORMS) and norm2.affine and not has_bias
        return (
            is_plain(norm1, *BATCH_NORMS)
            and norm1.affine
            and (is_folded or is_normed)
            and all(is_plain(activation, nn.ReLU) for activation in (activation1, activation2))
            and all(plain_pointwise(layer) is not None for layer in (first, last))
        )

    def normed_gamma(self, query: Tensor, key: Tensor) -> Gamma:
        """Return gamma with its norms as scales and shifts, by the statistics of the features where
        a norm is in training mode.
        """
        norm1, _, first, norm2, _, last = self.conv_w
        weight1, weight2 = first.weight.flatten(1), last.weight.flatten(1)

        def statistics(layer: tuple[Tensor, Tensor, Tensor] | None) -> Moments:
            mean, variance = vector_statistics(
                query, key, self.window, **self._relation(), first_layer=layer
            )
            vectors = 1 if self.patchwise else self.window.taps
            count = vectors * query[:, 0].numel()
            return Moments(mean, variance, mean.new_tensor(count, dtype=torch.float64))

        scale1, shift1 = _scale_and_shift(norm1, lambda: statistics(None))
        if isinstance(norm2, nn.Identity):
            scale2 = torch.ones_like(scale1[:1]).expand(len(weight1))
            shift2 = torch.zeros_like(scale2) if first.bias is None else first.bias
        else:
            scale2, shift2 = _scale_and_shift(norm2, lambda: statistics((scale1, shift1, weight1)))
        return Gamma(scale1, shift1, weight1, scale2, shift2, weight2, last.bias)

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Return (Ho, Wo) for an input (B, C, H, W)."""
        return -(-x.shape[-2] // self.stride), -(-x.shape[-1] // self.stride)


def _is_fixed(norm: Any) -> bool:
    """Return whether a norm is a batch norm that uses its running statistics, or was folded."""
    if is_plain(norm, nn.Identity):
        return True
    is_batch_norm = is_plain(norm, *BATCH_NORMS) and not norm.training
    return is_batch_norm and norm.running_mean is not None and norm.running_var is not None


def _scale_and_shift(norm: Any, statistics: Callable[[], Moments]) -> tuple[Tensor, Tensor]:
    """Return a batch norm as scale and shift, in float32 or wider.

    Args:
        norm: The norm.
        statistics: Computes the statistics of its input. It is called if the norm uses them.
    """
    if _is_fixed(norm):
        mean, variance = norm.running_mean, norm.running_var
    else:
        # every process has a part of the batch
        mean, variance, count = synchronised(statistics(), norm)
        update_running(norm, mean, variance, count)
    # half precision would round the statistics once more
    dtype = torch.promote_types(variance.dtype, torch.float32)
    scale = norm.weight.to(dtype) * torch.rsqrt(variance.to(dtype) + norm.eps)
    return scale, norm.bias.to(dtype) - mean.to(dtype) * scale


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
    patchwise, position_channels = False, 2

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
        # channels-last, so that they do not decide the layout of the queries and keys before them
        return torch.stack([columns, rows], -1)[None].to(x.dtype).movedim(-1, 1)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, R + 2, Ho, Wo) and keys (B, R + 2, H, W), with positions p behind."""
        query, key = super().queries_and_keys(x)
        position = self.conv_p(self.coordinates(x)).expand(x.shape[0], -1, -1, -1).to(key.dtype)
        return torch.cat([query, self.subsample(position)], 1), torch.cat([key, position], 1)

    def alpha(self, logits: Tensor) -> Tensor:
        """Return the softmax (B, G, K, L) of logits over the neighbours."""
        # a softmax in half precision would not sum to one
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(2)


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
    patchwise, position_channels = True, 0

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

    def alpha(self, logits: Tensor) -> Tensor:
        """Return (B, G, K, L) of (B, G * K, 1, L)."""
        return logits.unflatten(1, (self.groups, self.window.taps)).squeeze(3)
