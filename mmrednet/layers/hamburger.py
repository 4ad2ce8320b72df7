"""Hamburger: matrix decomposition as global attention (Geng et al., ICLR 2021), as the decoder of
SegNeXt uses it.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.precision import full_precision
from ..ops.tracing import leaf_module
from .safe_module import SafeModule


class NMF2D(nn.Module):
    r"""Replace a non-negative map by a low-rank approximation, by multiplicative updates.

    The map X (D, N), with D = C / S channels and N = H * W positions, is approximated by :math:`B
    C^T` with the bases B (D, R) and the coefficients C (N, R), which start from
    :math:`\mathrm{softmax}(X^T B)` and are updated in turn:

    .. math:: C \leftarrow C \odot \frac{X^T B}{C B^T B + \epsilon}, \qquad
              B \leftarrow B \odot \frac{X C}{B C^T C + \epsilon}

    (algorithm 2 of the paper; :math:`\epsilon` is 1e-6). The sums are taken in float32 or wider.
    Every image is decomposed on its own.

    Args:
        channels: Number of channels C of the input and of the output.
        MD_S: Number S of parts of the channels that are decomposed separately.
        MD_R: Rank R of the approximation.
        train_steps: Number of updates in training mode.
        eval_steps: Number of updates in eval mode.
        rand_init: True to start every forward from new random bases. The published code does, so
            that its output for an image differs from call to call. By default the bases are drawn
            once and kept in the state dict.
        seed: Random seed of the bases that are drawn once.

    Raises:
        ValueError: ``MD_S`` does not divide the channels.
    """

    epsilon = 1e-6
    bases: Tensor

    def __init__(
        self,
        channels: int,
        *,
        MD_S: int = 1,
        MD_R: int = 64,
        train_steps: int = 6,  # noqa: N803
        eval_steps: int = 7,
        rand_init: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if MD_S < 1 or channels % MD_S:
            raise ValueError(f'MD_S must divide channels, got {channels=}, {MD_S=}.')
        self.parts, self.rank = MD_S, MD_R
        self.train_steps, self.eval_steps = train_steps, eval_steps
        self.rand_init = rand_init
        if not rand_init:
            generator = torch.Generator().manual_seed(seed)
            # drawn on the CPU on every machine, and kept on the default device as other buffers
            bases = torch.rand(MD_S, channels // MD_S, MD_R, generator=generator, device='cpu')
            bases = F.normalize(bases, dim=1)
            self.register_buffer('bases', torch.empty(bases.shape).copy_(bases))
            self.register_load_state_dict_pre_hook(_keep_bases)

    def starting_bases(self, parts: Tensor) -> Tensor:
        """Return the bases (B * S, D, R) from which the decomposition of (B * S, D, N) starts."""
        if self.rand_init:
            return F.normalize(parts.new_empty(*parts.shape[:2], self.rank).uniform_(), dim=1)
        return self.bases.to(parts.dtype).repeat(parts.shape[0] // self.parts, 1, 1)

    def _new_coefficients(self, x: Tensor, bases: Tensor, coefficients: Tensor) -> Tensor:
        # B^T B first: it has R x R elements, C B^T has N x D
        return coefficients * (x.mT @ bases) / (coefficients @ (bases.mT @ bases) + self.epsilon)

    def _new_bases(self, x: Tensor, bases: Tensor, coefficients: Tensor) -> Tensor:
        return (
            bases * (x @ coefficients) / (bases @ (coefficients.mT @ coefficients) + self.epsilon)
        )

    @leaf_module
    def forward(self, x: Tensor) -> Tensor:
        """Map the non-negative (B, C, H, W) to its approximation."""
        # float16 cannot hold products over all positions, nor epsilon
        with full_precision(x.device.type):
            parts = x.unflatten(1, (self.parts, -1)).flatten(0, 1).flatten(2)
            parts = parts.to(torch.promote_types(x.dtype, torch.float32))
            bases = self.starting_bases(parts)
            coefficients = torch.softmax(parts.mT @ bases, dim=-1)
            for _ in range(self.train_steps if self.training else self.eval_steps):
                coefficients = self._new_coefficients(parts, bases, coefficients)
                bases = self._new_bases(parts, bases, coefficients)
            # the coefficients of the final bases
            coefficients = self._new_coefficients(parts, bases, coefficients)
            return (bases @ coefficients.mT).reshape(x.shape).to(x.dtype)


def _keep_bases(ham: NMF2D, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Keep the bases of the layer when a published file, which has none, is loaded."""
    state_dict.setdefault(f'{prefix}bases', ham.bases)


class Hamburger(SafeModule):
    """1x1 convolution, ReLU, decomposition, 1x1 convolution with a norm, added to the input, ReLU.

    Args:
        channels: Number of channels of the input and of the output.
        norm_cfg: Config of the norm after the second convolution.
        ham_kwargs: Keyword arguments of :class:`NMF2D`.
    """

    def __init__(
        self, channels: int, *, norm_cfg: dict | None = None, ham_kwargs: dict | None = None
    ) -> None:
        super().__init__()
        self.ham_in = ConvModule(channels, channels, 1, act_cfg=None)
        self.ham = NMF2D(channels, **(ham_kwargs or {}))
        self.ham_out = ConvModule(channels, channels, 1, norm_cfg=norm_cfg, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        return F.relu(x + self.ham_out(self.ham(F.relu(self.ham_in(x)))))
