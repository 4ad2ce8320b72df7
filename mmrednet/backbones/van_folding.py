"""Blocks of VAN and MSCAN whose norms and scales are part of their 1x1 convolutions.

In eval mode a batch norm is n(x) = a x + b. With the scales s and t of the two branches a block is

    y = x + s (n(x) + W2 u(W1 n(x) + c1) + c2)  =  (1 + s a) x + W2' u(W1' x + c1') + c2'
    z = y + t (W4 v(W3 m(y) + c3) + c4)         =  y + W4' v(W3' y + c3') + c4'

where n and m are the norms, u is the activation and the operator, and v the depth-wise convolution
and the activation.
"""

from __future__ import annotations

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers.fixed_norm import is_fixed, scale_and_shift
from ..layers.plain import is_plain, plain_pointwise
from .van import ConvFeedForward, GatedAttention, VANBlock


class FoldedVANBlock(BaseModule):
    """A :class:`VANBlock` in eval mode with its norms and scales folded into its convolutions.

    Args:
        block: Block with :func:`parts_to_fold`, whose modules become those of the folded one.
    """

    # layer and activation of which mmrednet.fuse may make one
    consecutive = ('proj_1', 'activation')

    def __init__(self, block: VANBlock) -> None:
        super().__init__()
        attention, scale = block.attn, block.layer_scale_1.detach()
        factor, shift = scale_and_shift(block.norm1)
        # the attention adds its input, which is the output of the norm
        skip = 1 + scale * factor
        self.register_buffer('skip', skip.to(scale.dtype)[:, None, None])
        self.proj_1 = _after_affine(attention.proj_1, factor, shift)
        self.activation = attention.activation
        self.spatial_gating_unit = attention.spatial_gating_unit
        self.proj_2 = _with_scale(attention.proj_2, scale, shift)
        self.mlp = block.mlp
        factor, shift = scale_and_shift(block.norm2)
        _after_affine(self.mlp.fc1, factor, shift)
        _with_scale(self.mlp.fc2, block.layer_scale_2.detach(), torch.zeros_like(shift))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        branch = self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x))))
        # skip * x + branch, in one pass over memory
        x = torch.addcmul(branch, self.skip, x)
        return x + self.mlp(x)


def parts_to_fold(block: VANBlock) -> list[nn.Module] | None:
    """Return the modules that a :class:`FoldedVANBlock` changes or leaves out, or None if one of
    them has to be called.
    """
    attention, mlp = block.attn, block.mlp
    if not is_plain(attention, GatedAttention) or not is_plain(mlp, ConvFeedForward):
        return None
    norms = [block.norm1, block.norm2]
    convolutions = [attention.proj_1, attention.proj_2, mlp.fc1, mlp.fc2]
    if not all(is_fixed(norm) for norm in norms) or not is_plain(
        block.drop_path, nn.Identity, DropPath
    ):
        return None
    if any(plain_pointwise(convolution) is not convolution for convolution in convolutions):
        return None
    return [attention, mlp, block.drop_path, *norms, *convolutions]


def _after_affine(convolution: nn.Conv2d, factor: Tensor, shift: Tensor) -> nn.Conv2d:
    """Let a 1x1 convolution compute what it made of ``factor * x + shift``."""
    weight = convolution.weight.detach().to(factor.dtype)
    bias = weight.flatten(1) @ shift
    if convolution.bias is not None:
        bias = bias + convolution.bias.detach()
    return _set_parameters(convolution, weight * factor[:, None, None], bias)


def _with_scale(convolution: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """Let a 1x1 convolution compute ``scale * (y + shift)`` instead of y."""
    weight = convolution.weight.detach().to(shift.dtype)
    bias = scale * shift
    if convolution.bias is not None:
        bias = bias + scale * convolution.bias.detach()
    return _set_parameters(convolution, weight * scale[:, None, None, None], bias)


def _set_parameters(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    # the copy keeps dtype and layout
    copy = torch.empty_like(convolution.weight).copy_(weight)
    convolution.weight = nn.Parameter(copy)
    convolution.bias = nn.Parameter(bias.to(copy.dtype))
    return convolution
