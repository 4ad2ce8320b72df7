"""Stand-Alone Self-Attention in Vision Models (Ramachandran et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Window, attend, local_aggregate, local_attention, local_correlate
from ..ops.tracing import leaf_module
from ..registry import MODELS
from .attention import TapWeights
from .groups import join_groups
from .plain import is_plain, plain_pointwise
from .position import RelativeEmbedding, absolute_embedding
from .safe_module import SafeModule
from .spatial import cell_average, spatial_operator

POSITIONS = ('relative', 'absolute', 'none')


@spatial_operator
class StandAloneSelfAttention(SafeModule):
    r"""Let every position attend to its neighbours.

    .. math:: y_i = \sum_{j \in N_k(i)} \mathrm{softmax}_j\big(q_i^T k_j + q_i^T r_{j-i}\big) \,
    v_j, \qquad
              q = W_Q x, \; k = W_K x, \; v = W_V x

    (equation 3 of the paper, without a scale of the logits), for each of N heads. The projections
    are dense, as the published sizes require. Neighbours outside the feature map get no weight.
    With a stride s the result at every position is averaged over s x s.

    Args:
        channels: Number of channels C of the input and of the output.
        kernel_size: Size k of the neighbourhood, an odd number.
        num_heads: Number of heads N; it must divide C.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps.
        position: Kind of position embedding: 'relative' (r as above), 'absolute' (sines of the
            position are added to the input of queries and keys) or 'none' (table 5 of the paper).
        content: True if q^T k is among the logits. Without it there are no keys (table 6).
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: The channels cannot be divided, or no logits are left.
    """

    example: ClassVar[dict] = dict(kernel_size=3, num_heads=2)

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        num_heads: int = 8,
        stride: int = 1,
        dilation: int = 1,
        position: str = 'relative',
        content: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'num_heads must divide channels, got {channels=}, {num_heads=}.')
        if position not in POSITIONS:
            raise ValueError(f'position must be one of {POSITIONS}, got {position!r}.')
        if not content and position != 'relative':
            raise ValueError(
                f"content=False leaves the relative positions alone: position must be 'relative', "
                f'got {position!r}.'
            )
        self.num_heads, self.absolute = num_heads, position == 'absolute'
        # attention at every position; the pool strides
        self.window = Window(kernel_size, 1, dilation)
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key = nn.Conv2d(channels, channels, 1, bias=False) if content else None
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.relative: Any = None
        if position == 'relative':
            self.relative = RelativeEmbedding(num_heads, channels // num_heads, self.window.kernel)
        self.pool = cell_average(stride)

    def attend(self, query: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
        """Return the weighted sums (B, N, D, H, W) of values of this shape."""
        if key is not None and self.relative is None:
            return local_attention(query, key, value, self.window)
        if key is not None and is_plain(self.relative, RelativeEmbedding):
            # one operator, which stores no weights
            tables = dict(rows=self.relative.rows, columns=self.relative.columns)
            return local_attention(query, key, value, self.window, **tables)
        return local_aggregate(value, self.weights(query, key), self.window)

    def weights(self, query: Tensor, key: Tensor | None) -> Tensor:
        """Return the weights (B, N, K, H, W) of queries and keys (B, N, D, H, W)."""
        logits: Any = 0
        if self.relative is not None:
            logits = self.relative(query)
        if key is not None:
            logits = logits + local_correlate(query, key, self.window)
        return attend(logits, self.window, query.shape[-2:])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return queries and keys (B, N, D, H, W) of (B, C, H, W)."""
        heads = (self.num_heads, x.shape[1] // self.num_heads)
        content = x + absolute_embedding(x) if self.absolute else x
        query = self.query(content).unflatten(1, heads)
        key = None if self.key is None else self.key(content).unflatten(1, heads)
        return query, key

    def attention(self, x: Tensor) -> TapWeights:
        """Return the weights that are applied to the values of (B, C, H, W), before any pool."""
        return TapWeights(self.weights(*self.project(x)), self.window)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        query, key = self.project(x)
        value = self.value(x).unflatten(1, query.shape[1:3])
        return self.pool(join_groups(self.attend(query, key, value)))


@MODELS.register_module()
class AttentionStem(SafeModule):
    r"""First layer of the full-attention networks, whose values depend on the tap of the window.

    .. math:: v_{ab} = \Big(\sum_m p(a, b, m) \, W_V^m\Big) x_{ab}, \qquad
              p(a, b, m) = \mathrm{softmax}_m\big((\mathrm{row}_a + \mathrm{column}_b)^T \nu^m\big)

    (section 3.2 of the paper), with content-based attention over k x k windows (taps -k/2 to k/2 -
    1), then a norm and k x k max pooling.

    Args:
        in_channels: Number of channels of the image.
        out_channels: Number of output channels.
        kernel_size: Window size k, also the stride of the stem.
        num_heads: Number of heads N; it must divide ``out_channels``.
        num_mixtures: Number of value projections that are mixed.
        norm_cfg: Config of the norm.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 4,
        num_heads: int = 4,
        num_mixtures: int = 4,
        norm_cfg: dict = dict(type='BN'),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_heads < 1 or out_channels % num_heads:
            raise ValueError(
                f'num_heads must divide out_channels, got {out_channels=}, {num_heads=}.'
            )
        self.heads = (num_heads, out_channels // num_heads)
        self.window = Window(kernel_size, padding=kernel_size // 2)
        self.query = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.key = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.values = nn.Conv2d(in_channels, num_mixtures * out_channels, 1, bias=False)
        self.rows = nn.Parameter(torch.randn(out_channels, kernel_size))
        self.columns = nn.Parameter(torch.randn(out_channels, kernel_size))
        self.mixtures = nn.Parameter(torch.randn(num_mixtures, out_channels) * out_channels**-0.5)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        self.pool = nn.MaxPool2d(kernel_size, ceil_mode=True)

    def mixture(self) -> Tensor:
        """Return p (M, K): the share of each projection in the value of each tap."""
        embedding = self.rows[:, :, None] + self.columns[:, None]
        return torch.einsum('mc,cuv->muv', self.mixtures, embedding).flatten(1).softmax(0)

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention (B, N, K, Ho, Wo); an even window makes Ho = H + 1."""
        height, width = x.shape[-2:]
        out_height, out_width = self.window.output_size(height, width)
        # the additional outputs get queries of zero, and are cut off in `forward`
        query = F.pad(self.query(x), (0, out_width - width, 0, out_height - height))
        key = self.key(x).unflatten(1, self.heads)
        logits = local_correlate(query.unflatten(1, self.heads), key, self.window)
        return attend(logits, self.window, (height, width))

    def attention(self, x: Tensor) -> TapWeights:
        """Return the weights that are applied to the mixed values of (B, C, H, W)."""
        return TapWeights(self.weights(x), self.window)

    def aggregate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted sums (B, N, D, Ho, Wo) of the mixed values of (B, C, H, W)."""
        # attention times the share of a projection, for every tap
        shares = [weight * share[:, None, None] for share in self.mixture()]
        convolution = plain_pointwise(self.values)
        if convolution is None or convolution.bias is not None:
            values = self.values(x).unflatten(1, (len(shares), *self.heads)).unbind(1)
            pairs = zip(values, shares, strict=True)
            parts = [local_aggregate(value, share, self.window) for value, share in pairs]
            return torch.stack(parts).sum(0)
        # projections are linear, so the three channels of the image are summed before they become
        # many
        image = x.unsqueeze(1).expand(-1, self.heads[0], -1, -1, -1)
        sums = torch.stack([local_aggregate(image, share, self.window) for share in shares], 1)
        projections = convolution.weight.reshape(len(shares), *self.heads, x.shape[1])
        return torch.einsum('mndc,bmnchw->bndhw', projections, sums.to(projections.dtype))

    @leaf_module
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / k), ceil(W / k))."""
        out = join_groups(self.aggregate(x, self.weights(x)))
        # the last row and column belong to the additional outputs of an even window
        return self.pool(self.norm(out[..., : x.shape[-2], : x.shape[-1]]))
