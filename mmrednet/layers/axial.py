"""Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation (Wang et al., ECCV 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from mmengine.model import Sequential
from torch import Tensor, nn

from ..ops import axial, axial_moments
from ..ops.axial_definition import TERMS, default_budget, logits, outside_span, tables
from ..ops.tracing import leaf_module
from .attention import AxisWeights
from .batch_statistics import Moments, synchronised, update_running
from .flat_layers import batch_norm, pointwise
from .groups import join_groups
from .plain import BATCH_NORMS, is_plain
from .recomputed_maps import recomputed_map
from .safe_module import SafeModule
from .spatial import cell_average, spatial_operator

# elements of all logits that operators without a fused kernel may have at once: 1 GiB in float32
LOGITS_BUDGET = 1 << 28

Affine = tuple[Tensor, Tensor]


class AxialAttention1d(SafeModule):
    r"""Position-sensitive attention along one axis.

    .. math:: y_i = \sum_{m} \mathrm{softmax}_m\big(q_i^T k_m + q_i^T r^q_{m-i} + k_m^T
    r^k_{m-i}\big)
              \, (v_m + r^v_{m-i})

    (equation 4 of the paper), for each of N heads. As in the released code, there is a batch norm
    after the projection, one on each term of the logits, and one on each term of the result. One
    table serves feature maps of any length: relative positions beyond its ends take the value at
    the end.

    One operator computes the logits and what follows them up to the norm of the result, and another
    one the statistics of the logits in training. They store no logits. Where there is no fused
    kernel, they work on chunks of rows whose logits have at most ``logits_budget`` elements, and
    compute them again in the backward pass. With a span, pairs beyond it are neither computed nor
    seen by the norm of the logits.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        num_heads: Number of heads N.
        axis: Axis of the attention, 'height' or 'width'.
        table_size: Size K of the table: it has relative positions from -(K - 1) to K - 1.
        span: Width of the attention: positions further than span / 2 apart do not attend to each
            other. None lets all positions attend to each other.
        terms: Terms of the logits: some of 'query_key', 'query_position' and 'key_position'.
        value_position: True if r^v is in the result.
        logits_budget: Number of elements that the logits of one chunk may have where there is no
            fused kernel.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: The channels cannot be divided, or an argument has no such value.
    """

    position_scale: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int = 8,
        axis: str = 'height',
        table_size: int = 56,
        span: int | None = None,
        terms: tuple[str, ...] = TERMS,
        value_position: bool = True,
        logits_budget: int = LOGITS_BUDGET,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_heads < 1 or out_channels % (2 * num_heads):
            raise ValueError(
                '2 * num_heads must divide out_channels: queries and keys have half as many '
                f'channels, got {out_channels=}, {num_heads=}.'
            )
        if axis not in ('height', 'width'):
            raise ValueError(f"axis must be 'height' or 'width', got {axis!r}.")
        if not terms or not set(terms) <= set(TERMS):
            raise ValueError(f'terms must be some of {TERMS}, got {terms!r}.')
        if table_size < 1 or (span is not None and (span < 1 or span % 2 == 0)):
            raise ValueError(
                f'table_size must be at least 1 and span odd or None, got {table_size=}, {span=}.'
            )
        self.num_heads, self.axis, self.table_size, self.span = num_heads, axis, table_size, span
        self.terms = tuple(name for name in TERMS if name in terms)
        self.value_position, self.logits_budget = value_position, logits_budget
        # ops/axial.py numbers the terms
        self._term_indices = [TERMS.index(name) for name in self.terms]
        # channels of the values of a head; its queries and keys have half as many
        self.depth = out_channels // num_heads
        # the names of the published checkpoints
        self.qkv_transform = nn.Conv1d(in_channels, 2 * out_channels, 1, bias=False)
        self.bn_qkv: nn.Module = nn.BatchNorm1d(2 * out_channels)
        self.bn_similarity = nn.BatchNorm2d(len(self.terms) * num_heads)
        self.bn_output: nn.Module = nn.BatchNorm1d((2 if value_position else 1) * out_channels)
        self.relative = nn.Parameter(
            torch.randn(2 * self.depth, 2 * table_size - 1) * self.depth**-0.5
        )
        nn.init.normal_(self.qkv_transform.weight, std=in_channels**-0.5)
        # a buffer without a value is not in the state dict: `fold` sets it
        self.register_buffer('position_scale', None)
        self.register_load_state_dict_pre_hook(_drop_index)

    @leaf_module
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        mixed = self.attend(self.lines(x))
        # channels of the norm are (head, channel, term), as published
        parts = batch_norm(self.bn_output, join_groups(self.to_lines(mixed)))
        if self.position_scale is not None or not self.value_position:
            return parts
        return parts.unflatten(1, (-1, 2)).sum(2)

    def lines(self, x: Tensor) -> Tensor:
        """Return queries, keys and values (B, N, 2 D, J, L) of the lines of (B, C, H, W)."""
        projected = pointwise(self.qkv_transform, x)
        qkv = recomputed_map(projected, self.bn_qkv, apply=batch_norm)
        return self.to_lines(qkv.unflatten(1, (self.num_heads, 2 * self.depth)))

    def fold(self, qkv: Affine, output: Affine) -> None:
        """Let projection and attention apply the norms of queries, keys and values and of the
        result. The norms become ``nn.Identity``.

        :func:`mmrednet.fuse` calls this.

        Args:
            qkv: Scale and shift of ``bn_qkv``, of shape (2 * out_channels,).
            output: Scale and shift of ``bn_output``, of shape (parts * out_channels,).
        """
        scale, shift = (x.clone().unflatten(0, (self.num_heads, -1)) for x in qkv)
        by_part, shift_by_part = (x.unflatten(0, (self.num_heads, self.depth, -1)) for x in output)
        # The weights of a softmax sum to one: what is added to all values is added to the result.
        values = slice(self.depth, None)
        scale[:, values] *= by_part[..., 0]
        shift[:, values] = shift[:, values] * by_part[..., 0] + shift_by_part.sum(2)
        weight = self.qkv_transform.weight.detach()
        folded = weight.to(scale.dtype) * scale.flatten()[:, None, None]
        self.qkv_transform.weight = nn.Parameter(folded.to(weight.dtype))
        self.qkv_transform.bias = nn.Parameter(shift.flatten().to(weight.dtype))
        if self.value_position:
            self.position_scale = by_part[..., 1].to(weight.dtype)
        self.bn_qkv, self.bn_output = nn.Identity(), nn.Identity()

    def to_lines(self, x: Tensor) -> Tensor:
        """View maps (B, N, C, H, W) as lines (B, N, C, J, L) along the axis, or back."""
        return x.transpose(3, 4) if self.axis == 'height' else x

    def attend(self, lines: Tensor) -> Tensor:
        """Return the terms of the result of lines.

        Args:
            lines: Tensor (B, N, 2 D, J, L): queries, keys and values of J lines of L positions.

        Returns:
            (B, N, D * parts, J, L), where the term of the values and that of their positions lie
            together for each channel. If the norm of the result is folded into the layer, it is
            their sum (B, N, D, J, L).
        """
        # a norm in training has to see all logits before any of them is used
        if not is_plain(self.bn_similarity, *BATCH_NORMS):
            return self.attend_by_modules(lines)
        scale, shift = self.similarity_norm(lines)
        return axial.attention(
            lines,
            self.relative.to(lines.dtype),
            scale,
            shift,
            self.position_scale,
            *self._options,
            self.value_position,
            self._budget(lines),
        )

    @property
    def _options(self) -> tuple[int, list[int], int]:
        # number of key channels, terms and span
        return self.depth // 2, self._term_indices, self.span or 0

    def _budget(self, lines: Tensor) -> int:
        return min(self.logits_budget, default_budget(lines))

    def attend_by_modules(self, lines: Tensor) -> Tensor:
        """Attend as ``attend``, with ``bn_similarity`` called as a module on all logits."""
        query, key, value = axial.rows(lines, self.depth // 2)
        weight = self.weights(query, key).to(value.dtype)
        parts = [torch.einsum('bgij,bgcj->bgci', weight, value)]
        if self.value_position:
            table = tables(self.relative, query.shape[2], query.shape[3])[2]
            parts.append(torch.einsum('bgij,cij->bgci', weight, table.to(value.dtype)))
        if self.position_scale is None:
            mixed = torch.stack(parts, 3).flatten(2, 3)
        else:
            mixed = parts[0] + parts[1] * self.position_scale[:, :, None]
        return mixed.unflatten(0, (lines.shape[0], -1)).movedim(1, 3)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the weights (n, N, L, L) of lines (n, N, D / 2, L), in float32 or wider."""
        logits = self.norm_logits(self.logits(query, key))
        logits = logits.unflatten(1, (-1, self.num_heads)).sum(1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(3)

    def attention(self, x: Tensor) -> AxisWeights:
        """Return the weights that are applied to the values of (B, C, H, W) and their positions."""
        lines = self.lines(x)
        query, key, _ = axial.rows(lines, self.depth // 2)
        weight = self.weights(query, key).unflatten(0, (len(x), -1)).transpose(1, 2)
        # lines along the height are columns
        return AxisWeights(weight.transpose(2, 3) if self.axis == 'height' else weight, self.axis)

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the terms (n, T * N, L, L) of lines (n, N, D / 2, L), before their norm."""
        positions = tables(self.relative, query.shape[2], query.shape[3])
        return logits(query, key, positions, self._term_indices).flatten(1, 2)

    def norm_logits(self, terms: Tensor) -> Tensor:
        """Return the normed terms (n, T * N, L, L), minus infinity beyond the span.

        The norm sees pairs within the span alone.
        """
        if self.span is None:
            return self.bn_similarity(terms)
        outside = outside_span(terms.shape[-1], self.span, terms.device)
        normed = self.bn_similarity(terms[:, :, ~outside][..., None])
        result = normed.new_full(terms.shape, -torch.inf)
        result[:, :, ~outside] = normed[..., 0]
        return result

    def similarity_norm(self, lines: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift (T, N) of the norm of the logits.

        They are made of its running statistics if these are fixed, else of the statistics of the
        logits of all pairs of positions within the span.
        """
        norm = self.bn_similarity
        mean: Tensor
        variance: Tensor
        if self._norm_is_fixed():
            mean, variance = norm.running_mean, norm.running_var  # type: ignore[assignment]
        else:
            # every process has a part of the batch
            mean, variance, count = synchronised(self._moments(lines), norm)
            update_running(norm, mean, variance, count)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = norm.bias - mean * scale
        shape = (len(self.terms), self.num_heads)
        return scale.unflatten(0, shape), shift.unflatten(0, shape)

    def _norm_is_fixed(self) -> bool:
        norm = self.bn_similarity
        return not norm.training and norm.running_mean is not None and norm.running_var is not None

    def _moments(self, lines: Tensor) -> Moments:
        table, budget = self.relative.to(lines.dtype), self._budget(lines)
        mean, variance = axial_moments.moments(lines, table, *self._options, budget)
        elements = axial_moments.elements(lines, self.span or 0)
        count = mean.new_tensor(elements, dtype=torch.float64)
        return Moments(mean.flatten(), variance.flatten(), count)


def _drop_index(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: object) -> None:
    """Drop the table of indices of published files: the length of the axis determines it."""
    state_dict.pop(f'{prefix}flatten_index', None)


@spatial_operator
class AxialAttention(SafeModule):
    """Attention along the height, then along the width: see :class:`AxialAttention1d`.

    With a stride s the result is averaged over s x s.

    Args:
        channels: Number of channels C of the input and of the output.
        num_heads: Number of heads N; 2 N must divide C.
        stride: Distance between neighbouring outputs.
        dilation: Factor of the span; attention over the whole axis does not change.
        table_size: Size K of the table: relative positions are told apart up to K - 1.
        span: Width of the attention: positions further than span / 2 apart do not attend to each
            other. None lets all positions attend to each other.
        terms: Terms of the logits: some of 'query_key', 'query_position' and 'key_position'.
        value_position: True if positions are added to the values.
        logits_budget: Number of elements that the logits of one chunk may have where there is no
            fused kernel.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: The channels cannot be divided, or an argument has no such value.
    """

    example: ClassVar[dict] = dict(num_heads=2, table_size=4)

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        stride: int = 1,
        dilation: int = 1,
        table_size: int = 56,
        span: int | None = None,
        terms: tuple[str, ...] = TERMS,
        value_position: bool = True,
        logits_budget: int = LOGITS_BUDGET,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if dilation != 1 and span is not None:
            # a dilated stage reaches as far as the stride that it replaces would have let it
            span = dilation * (span - 1) + 1
        options: dict[str, Any] = dict(
            num_heads=num_heads,
            table_size=table_size,
            span=span,
            terms=terms,
            value_position=value_position,
            logits_budget=logits_budget,
        )
        self.axes = Sequential(
            AxialAttention1d(channels, channels, axis='height', **options),
            AxialAttention1d(channels, channels, axis='width', **options),
        )
        self.pool = cell_average(stride)

    def attention(self, x: Tensor) -> tuple[AxisWeights, AxisWeights]:
        """Return the weights along the height, and those along the width that follow."""
        height, width = self.axes
        return height.attention(x), width.attention(height(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(self.axes(x))
