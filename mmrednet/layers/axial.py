"""Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation (Wang et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.utils.checkpoint
from mmengine.model import Sequential
from torch import Tensor, nn

from ..ops import axial, axial_attention
from ..ops.axial import TERMS
from .batch_statistics import Moments, combined, moments, synchronised, update_running
from .plain import BATCH_NORMS, is_plain
from .safe_module import SafeModule
from .spatial import cell_average, spatial_operator

# in training, the norm of the logits needs all logits of a chunk of rows at once: 1 GiB in float32
LOGITS_BUDGET = 1 << 28

Lines = tuple[Tensor, Tensor, Tensor]


class AxialAttention1d(SafeModule):
    r"""Position-sensitive attention along one axis.

    .. math:: y_i = \sum_{m} \mathrm{softmax}_m\big(q_i^T k_m + q_i^T r^q_{m-i} + k_m^T
    r^k_{m-i}\big)
              \, (v_m + r^v_{m-i})

    (equation 4 of the paper), for each of N heads. As in the released code, there is a batch norm
    after the projection, one on each term of the logits, and one on each term of the result. One
    table serves feature maps of any length: relative positions beyond its ends take the value at
    the end.

    Where the norm of the logits uses its running statistics, one operator computes all of this. On
    a GPU it stores no logits. Otherwise memory grows with the length of the axis times the number
    of positions. If the logits of all rows have more than ``logits_budget`` elements, rows are
    processed in chunks, whose logits are computed again in the backward pass. The norms see all
    rows, so the result is the same.

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
        logits_budget: Number of elements that the logits of one chunk may have.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: The channels cannot be divided, or an argument has no such value.
    """

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
        self.bn_qkv = nn.BatchNorm1d(2 * out_channels)
        self.bn_similarity = nn.BatchNorm2d(len(self.terms) * num_heads)
        self.bn_output = nn.BatchNorm1d((2 if value_position else 1) * out_channels)
        self.relative = nn.Parameter(
            torch.randn(2 * self.depth, 2 * table_size - 1) * self.depth**-0.5
        )
        nn.init.normal_(self.qkv_transform.weight, std=in_channels**-0.5)
        self.register_load_state_dict_pre_hook(_drop_index)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        rows = x.permute(0, 3, 1, 2) if self.axis == 'height' else x.permute(0, 2, 1, 3)
        heads = (self.num_heads, 2 * self.depth)
        qkv = self.bn_qkv(self.qkv_transform(rows.flatten(0, 1))).unflatten(1, heads)
        mixed = self.attend(*qkv.split([self.depth // 2, self.depth // 2, self.depth], 2))
        # channels of the norm are (head, channel, term), as published
        result = self.bn_output(mixed.flatten(1, 3)).unflatten(1, (-1, mixed.shape[3])).sum(2)
        result = result.unflatten(0, rows.shape[:2])
        return result.permute(0, 2, 3, 1) if self.axis == 'height' else result.permute(0, 2, 1, 3)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the terms of the result (n, N, D, 1 or 2, L) of lines (n, N, ..., L)."""
        if self._norm_is_fixed():
            # no logits are needed before their norm is known
            scale, shift = self.similarity_norm([], _directly)
            return axial_attention(
                query,
                key,
                value,
                self.relative,
                scale,
                shift,
                terms=self.terms,
                span=self.span,
                value_position=self.value_position,
                logits_budget=min(self.logits_budget, axial.default_budget(query)),
            )
        if not is_plain(self.bn_similarity, *BATCH_NORMS):
            return self.attend_by_modules(query, key, value)
        # the norm has to see all logits before any of them is used
        chunks = self._chunks(query, key, value)
        run = _recomputed if len(chunks) > 1 and torch.is_grad_enabled() else _directly
        scale, shift = self.similarity_norm(chunks, run)
        return torch.cat([run(self.mix, *chunk, scale, shift) for chunk in chunks])

    def _chunks(self, *lines: Tensor) -> list[Lines]:
        size = axial.chunk_size(lines[0], self.logits_budget, len(self.terms))
        return list(zip(*(tensor.split(size) for tensor in lines), strict=True))

    def attend_by_modules(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend as ``attend``, with ``bn_similarity`` called as a module."""
        norm = self.bn_similarity
        if norm.training or getattr(norm, 'running_mean', None) is None:
            return self._attend_lines(query, key, value)
        # with running statistics, lines do not depend on each other
        chunks = self._chunks(query, key, value)
        return torch.cat([self._attend_lines(*chunk) for chunk in chunks])

    def _attend_lines(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        terms = self.bn_similarity(self.logits(query, key))
        logits = terms.unflatten(1, (-1, self.num_heads)).sum(1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.span is not None:
            position = torch.arange(logits.shape[-1], device=logits.device)
            distance = (position[:, None] - position).abs()
            logits = logits.masked_fill(distance > self.span // 2, -torch.inf)
        weight = logits.softmax(3).to(value.dtype)
        parts = [torch.einsum('bgij,bgcj->bgci', weight, value)]
        if self.value_position:
            table = axial.tables(self.relative, query.shape[2], query.shape[3])[2]
            parts.append(torch.einsum('bgij,cij->bgci', weight, table.to(value.dtype)))
        return torch.stack(parts, 3)

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the terms (n, T * N, L, L) of lines (n, N, D / 2, L), before their norm."""
        tables = axial.tables(self.relative, query.shape[2], query.shape[3])
        return axial.logits(query, key, tables, self._term_indices).flatten(1, 2)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, scale: Tensor, shift: Tensor
    ) -> Tensor:
        """Return the terms of the result (n, N, D, 1 or 2, L) of lines, with the norm of the logits
        as scale and shift.
        """
        return axial.mix(
            query,
            key,
            value,
            self.relative,
            scale,
            shift,
            self._term_indices,
            self.span or 0,
            self.value_position,
        )

    def similarity_norm(self, chunks: list[Lines], run: Callable) -> tuple[Tensor, Tensor]:
        """Return scale and shift (T, N) of the norm of the logits.

        They are made of its running statistics if these are fixed, else of the statistics of the
        logits of all chunks.
        """
        norm = self.bn_similarity
        mean: Tensor
        variance: Tensor
        if self._norm_is_fixed():
            mean, variance = norm.running_mean, norm.running_var  # type: ignore[assignment]
        else:
            parts = [Moments(*run(self._moments, query, key)) for query, key, _ in chunks]
            # every process has a part of the batch
            mean, variance, count = synchronised(combined(parts), norm)
            update_running(norm, mean, variance, count)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = norm.bias - mean * scale
        shape = (len(self.terms), self.num_heads)
        return scale.unflatten(0, shape), shift.unflatten(0, shape)

    def _norm_is_fixed(self) -> bool:
        norm = self.bn_similarity
        if norm.training or not is_plain(norm, *BATCH_NORMS):
            return False
        return norm.running_mean is not None and norm.running_var is not None

    def _moments(self, query: Tensor, key: Tensor) -> Moments:
        terms = self.logits(query, key)
        # half precision cannot hold sums over whole feature maps
        return moments(terms.to(torch.promote_types(terms.dtype, torch.float32)))


def _directly(function: Callable, *arguments: Tensor) -> Any:
    return function(*arguments)


def _recomputed(function: Callable, *arguments: Tensor) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)


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
        logits_budget: Number of elements that the logits of one chunk may have.
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

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(self.axes(x))
