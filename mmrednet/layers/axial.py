"""Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation (Wang et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from ..ops import axial, axial_attention
from ..ops.axial import TERMS
from .spatial import cell_average, spatial_operator

# while the norm of the logits sees its batch, chunks have all their terms made twice: as few as 1
# GiB in float32 allows
LOGITS_BUDGET = 1 << 28


class AxialAttention1d(BaseModule):
    r"""Position-sensitive attention along one axis.

    .. math:: y_i = \sum_{m} \mathrm{softmax}_m\big(q_i^T k_m + q_i^T r^q_{m-i} + k_m^T
    r^k_{m-i}\big)
              \, (v_m + r^v_{m-i})

    (equation 4 of the paper), for each of N heads, with a batch norm behind the projection, one on
    each term of the logits and one on each term of the result, as in the released code. A map of
    any length is attended with one
    table: relative positions beyond the table's ends take the value at the end.

    Where the norm of the logits uses its running statistics, all this is one operator that stores
    no logits on a GPU and makes them again in the backward pass. Otherwise memory grows with the
    length of the axis times the number of positions, and where the logits of all rows have more
    than ``logits_budget`` elements, rows are processed in chunks whose logits are computed again;
    the result is the same, in training too, where the norms see all rows.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        num_heads: N.
        axis: 'height' or 'width'.
        table_size: K: the table knows relative positions from -(K - 1) to K - 1.
        span: positions further than span / 2 apart do not attend to each other; None: all do.
        terms: which of 'query_key', 'query_position' and 'key_position' are in the logits.
        value_position: whether r^v is in the result.
        logits_budget: elements of the logits of one chunk.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: the channels cannot be divided, or an argument has no such value.
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
                'channels, '
                f'got {out_channels=}, {num_heads=}.'
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
        self._numbers = [TERMS.index(name) for name in self.terms]
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

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the terms (n, T * N, L, L) of lines (n, N, D / 2, L), before their norm."""
        tables = axial.tables(self.relative, query.shape[2], query.shape[3])
        return axial.logits(query, key, tables, self._numbers).flatten(1, 2)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, scale: Tensor, shift: Tensor
    ) -> Tensor:
        """Return the terms of the result (n, N, D, 2, L) of lines, with the norm of the logits as
        scale and shift.
        """
        return axial.mix(
            query,
            key,
            value,
            self.relative,
            scale,
            shift,
            self._numbers,
            self.span or 0,
            self.value_position,
        )

    def _statistics(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, int]:
        terms = self.logits(query, key)
        terms = terms.to(torch.promote_types(terms.dtype, torch.float32))
        return terms.sum((0, 2, 3)), terms.square().sum((0, 2, 3)), terms[:, 0].numel()

    def similarity_norm(
        self, chunks: list[tuple[Tensor, Tensor, Tensor]], run: Callable
    ) -> tuple[Tensor, Tensor]:
        """Return scale and shift of the norm of the logits: its running statistics, or those of all
        chunks.
        """
        norm = self.bn_similarity
        mean: Tensor
        variance: Tensor
        if self._norm_is_fixed():
            mean, variance = norm.running_mean, norm.running_var  # type: ignore[assignment]
        else:
            sums = [run(self._statistics, query, key) for query, key, _ in chunks]
            count = sum(item[2] for item in sums)
            mean = torch.stack([item[0] for item in sums]).sum(0) / count
            variance = torch.stack([item[1] for item in sums]).sum(0) / count - mean.square()
            variance = variance.clamp_min(0.0)
            _update_running(norm, mean, variance, count)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shape = (len(self.terms), self.num_heads)
        return scale.unflatten(0, shape), (norm.bias - mean * scale).unflatten(0, shape)

    def _norm_is_fixed(self) -> bool:
        norm = self.bn_similarity
        return not norm.training and norm.running_mean is not None and norm.running_var is not None

    def _mixed(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the terms of the result of all lines (n, N, ..., L)."""
        query, key, value = parts
        if self._norm_is_fixed():
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
        # the norm has to see all logits before any of them is used
        size = axial.chunk_size(query, self.logits_budget, len(self.terms))
        chunks = list(zip(*(part.split(size) for part in parts), strict=True))
        run = _recomputed if len(chunks) > 1 and torch.is_grad_enabled() else _directly
        scale, shift = self.similarity_norm(chunks, run)
        return torch.cat([run(self.mix, *chunk, scale, shift) for chunk in chunks])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        rows = x.permute(0, 3, 1, 2) if self.axis == 'height' else x.permute(0, 2, 1, 3)
        batch, others, _, length = rows.shape
        qkv = self.bn_qkv(self.qkv_transform(rows.flatten(0, 1))).unflatten(
            1, (self.num_heads, 2 * self.depth)
        )
        parts = qkv.split([self.depth // 2, self.depth // 2, self.depth], 2)
        mixed = self._mixed(parts)
        # channels of the norm are (head, channel, term), as published
        result = self.bn_output(mixed.flatten(1, 3)).unflatten(1, (-1, mixed.shape[3])).sum(2)
        result = result.unflatten(0, (batch, others))
        return result.permute(0, 2, 3, 1) if self.axis == 'height' else result.permute(0, 2, 1, 3)


def _directly(function: Callable, *arguments: Tensor) -> Any:
    return function(*arguments)


def _recomputed(function: Callable, *arguments: Tensor) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)


def _update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Do what a batch norm does in training mode with the statistics of its batch."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_(
            (variance * count / max(1, count - 1)).to(norm.running_var.dtype), momentum
        )


def _drop_index(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: object) -> None:
    """Published files keep a table of indices that the length of the axis determines."""
    state_dict.pop(f'{prefix}flatten_index', None)


@spatial_operator
class AxialAttention(BaseModule):
    """Attention along the height, then along the width: see :class:`AxialAttention1d`.

    With a stride the result is averaged over s x s; windows of an odd map that reach beyond it
    average what is there.

    Args:
        channels: C, of the input and of the output.
        num_heads: N; 2 N must divide C.
        stride: distance of neighbouring outputs.
        dilation: how much further a span reaches; attention over the whole axis stays as it is.
        table_size: K: relative positions are told apart up to K - 1.
        span: positions further than span / 2 apart do not attend to each other; None: all do.
        terms: which terms the logits have.
        value_position: whether positions are added to the values.
        logits_budget: elements of the logits of one chunk.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: the channels cannot be divided, or an argument has no such value.
    """

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
        self.axes = Sequential(
            *(
                AxialAttention1d(
                    channels,
                    channels,
                    num_heads=num_heads,
                    axis=axis,
                    table_size=table_size,
                    span=span,
                    terms=terms,
                    value_position=value_position,
                    logits_budget=logits_budget,
                )
                for axis in ('height', 'width')
            )
        )
        self.pool = cell_average(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.pool(self.axes(x))
