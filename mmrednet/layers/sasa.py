"""Stand-Alone Self-Attention in Vision Models (Ramachandran et al., NeurIPS 2019)."""

from __future__ import annotations

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Window, attend, local_aggregate, local_attention, local_correlate
from ..registry import MODELS
from .position import RelativeEmbedding, absolute_embedding
from .spatial import cell_average, spatial_operator

POSITIONS = ('relative', 'absolute', 'none')


@spatial_operator
class StandAloneSelfAttention(BaseModule):
    r"""Let every position attend to its neighbours.

    .. math:: y_i = \sum_{j \in N_k(i)} \mathrm{softmax}_j\big(q_i^T k_j + q_i^T r_{j-i}\big) \,
    v_j, \qquad
              q = W_Q x, \; k = W_K x, \; v = W_V x

    (equation 3 of the paper: no scaling of the logits), for each of N heads. The projections are
    dense, as the published sizes ask. Neighbours outside the map get no weight. With a stride s the
    result at every position is averaged over s x s; windows of an odd map that reach beyond it
    average what is there.

    Args:
        channels: C, of the input and of the output.
        kernel_size: odd k of the neighbourhood.
        num_heads: N; must divide C.
        stride: distance of neighbouring outputs.
        dilation: distance of neighbouring taps.
        position: 'relative' (r as above), 'absolute' (sines of the position are added to what
            queries and keys see) or 'none' (table 5 of the paper).
        content: whether q^T k is among the logits; without it there are no keys (table 6).
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: the channels cannot be divided, or no logits are left.
    """

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
        self.window = Window(kernel_size, 1, dilation)
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key = nn.Conv2d(channels, channels, 1, bias=False) if content else None
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.relative = None
        if position == 'relative':
            self.relative = RelativeEmbedding(num_heads, channels // num_heads, self.window.kernel)
        self.pool = cell_average(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        heads = (self.num_heads, x.shape[1] // self.num_heads)
        seen = x + absolute_embedding(x) if self.absolute else x
        query = self.query(seen).unflatten(1, heads)
        value = self.value(x).unflatten(1, heads)
        if self.key is not None:
            tables = (
                {}
                if self.relative is None
                else dict(rows=self.relative.rows, columns=self.relative.columns)
            )
            result = local_attention(
                query, self.key(seen).unflatten(1, heads), value, self.window, **tables
            )
        elif self.relative is not None:
            weight = attend(self.relative(query), self.window, x.shape[-2:])
            result = local_aggregate(value, weight, self.window)
        return self.pool(result.flatten(1, 2))


@MODELS.register_module()
class AttentionStem(BaseModule):
    r"""The first layer of the full-attention networks: values depend on where in the window they
    are (section 3.2).

    .. math:: v_{ab} = \Big(\sum_m p(a, b, m) \, W_V^m\Big) x_{ab}, \qquad
              p(a, b, m) = \mathrm{softmax}_m\big((\mathrm{row}_a + \mathrm{column}_b)^T \nu^m\big)

    with content-based attention over k x k windows (taps -k/2 to k/2 - 1), then batch norm and k x
    k max pooling.

    Args:
        in_channels: of the image.
        out_channels: of the output.
        kernel_size: k, and the stride of the stem.
        num_heads: N.
        num_mixtures: how many value projections are mixed.
        norm_cfg: of the norm.
        init_cfg: see mmengine's BaseModule.

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
        """Return p (M, K): how much of each projection a tap's value takes."""
        where = self.rows[:, :, None] + self.columns[:, None]
        return torch.einsum('mc,cuv->muv', self.mixtures, where).flatten(1).softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / k), ceil(W / k))."""
        height, width = x.shape[-2:]
        # an even window with the same padding on both sides has one output more, which is cut off
        extra = [
            count - length
            for count, length in zip(
                self.window.output_size(height, width), (height, width), strict=True
            )
        ]
        query = F.pad(self.query(x), (0, extra[1], 0, extra[0])).unflatten(1, self.heads)
        weight = attend(
            local_correlate(query, self.key(x).unflatten(1, self.heads), self.window),
            self.window,
            (height, width),
        )
        # the projections are linear, so the few channels of the image are summed before they are
        # projected
        image = x.unsqueeze(1).expand(-1, self.heads[0], -1, -1, -1)
        sums = torch.stack(
            [
                local_aggregate(image, weight * share[:, None, None], self.window)
                for share in self.mixture()
            ],
            1,
        )
        projections = self.values.weight.reshape(len(self.mixtures), *self.heads, x.shape[1])
        total = torch.einsum('mndc,bmnchw->bndhw', projections, sums.to(projections.dtype))
        return self.pool(self.norm(total.flatten(1, 2)[..., :height, :width]))
