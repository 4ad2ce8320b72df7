"""mmcv's deformable convolutions as operators of torch, for programs that are exported.

mmcv's own functions are classes of Python, which ``torch.export`` cannot record. An exported
program calls these operators, and needs mmrednet and mmcv where it runs.
"""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op


@custom_op('mmrednet::deform_conv2d', mutates_args=())
def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Call mmcv's function of this name, whose arguments these are."""
    from mmcv import ops

    options = (stride, padding, dilation, groups, deform_groups)
    return ops.deform_conv2d(x, offset, weight, *options)


@custom_op('mmrednet::modulated_deform_conv2d', mutates_args=())
def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Call mmcv's function of this name, whose arguments these are."""
    from mmcv import ops

    options = (stride, padding, dilation, groups, deform_groups)
    return ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *options)


@deform_conv2d.register_fake
def _(x: Tensor, offset: Tensor, weight: Tensor, *options: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[-2:])


@modulated_deform_conv2d.register_fake
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, *options: object) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[-2:])
