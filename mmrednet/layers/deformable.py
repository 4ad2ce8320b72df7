"""Deformable convolution, versions 1 and 2 (Dai et al., ICCV 2017; Zhu et al., CVPR 2019), by
mmcv's operators.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Window
from ..ops.precision import full_precision
from ..ops.transforms import is_transformed
from . import deformable_ops  # noqa: F401  registers the operators of exported programs
from .attention import SamplingPoints, TapWeights
from .safe_module import SafeModule
from .spatial import spatial_operator


class DeformableConv(SafeModule):
    """A convolution whose taps move by offsets that another convolution makes of the input.

    The state-dict keys are those of mmcv and mmdet: ``weight``, ``conv_offset.weight`` and
    ``conv_offset.bias``. The offsets start at zero. mmcv's compiled operators are imported when the
    first layer is built. Under autocast they run in float32.

    Args:
        channels: Number of channels C of the input and of the output.
        kernel_size: Size of the kernel, an odd number.
        stride: Distance between neighbouring outputs.
        dilation: Distance between neighbouring taps before they move.
        deform_groups: Number of groups of channels that move together.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ImportError: mmcv was installed without its compiled operators.
        ValueError: ``kernel_size`` is even.
    """

    # 'dcn' is an attribute of mmdet's blocks
    _abbr_ = 'deform_conv'
    example: ClassVar[dict] = {}
    # names in mmcv.ops: of the function, and of the layer
    operator: str
    mmcv_class: str
    # channels of the offset per tap and group: y, x and, in version 2, a weight
    offsets: int

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        deform_groups: int = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size=}.')
        try:
            from mmcv import ops
        except ImportError as error:
            raise ImportError(
                f'{type(self).__name__} needs the compiled operators of mmcv, which cannot be '
                f'imported: {error}. Install the full mmcv, not mmcv-lite.'
            ) from error
        # imported here, so that only users of these layers need the compiled operators
        self.function = getattr(ops, self.operator)
        self.stride, self.dilation, self.deform_groups = stride, dilation, deform_groups
        self.padding = dilation * (kernel_size // 2)
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel_size, kernel_size))
        offsets = deform_groups * self.offsets * kernel_size**2
        self.conv_offset = nn.Conv2d(channels, offsets, kernel_size, stride, self.padding, dilation)
        nn.init.kaiming_uniform_(self.weight, nonlinearity='relu')
        self.start_still()
        # mmengine's dcn_offset_lr_mult asks for instances of mmcv's class
        layer: Any = type(self)
        self.__class__ = _also_mmcv(layer, self.mmcv_class)

    def init_weights(self) -> None:
        """Initialise, and let taps start at the positions of a convolution's taps."""
        super().init_weights()
        # a parent's init_cfg has drawn the offsets like any convolution
        self.start_still()

    def start_still(self) -> None:
        """Let the offsets of any input be zero."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        padded = self._padded(x)
        offset = self.conv_offset(padded)
        # mmcv's operators refuse an empty batch, on which no tap moves
        result = self._move(padded, offset) if x.shape[0] else self._stay(padded)
        return self._cropped(result, x)

    def attention(self, x: Tensor) -> SamplingPoints:
        """Return where the taps sample (B, C, H, W), and the factors of the samples."""
        offset = self._cropped(self.conv_offset(self._padded(x)), x)
        moves, factor = self.moves(offset)
        size = self.weight.shape[-1]
        groups = (self.deform_groups, size**2)
        window = Window(size, self.stride, self.dilation, self.padding)
        axes = TapWeights(factor, window).taps(*x.shape[-2:])
        # (Kh, Kw, Ho, Wo) each, then (K, 2, Ho, Wo)
        rows = axes[0][:, None, :, None].expand(-1, size, -1, offset.shape[-1])
        columns = axes[1][None, :, None, :].expand(size, -1, offset.shape[-2], -1)
        taps = torch.stack([rows, columns], 2).flatten(0, 1).to(offset)
        return SamplingPoints(taps + moves.unflatten(1, (*groups, 2)), factor.unflatten(1, groups))

    def _padded(self, x: Tensor) -> Tensor:
        """Return feature maps that are at least as large as the kernel, which mmcv's operators ask
        for. Outside of a feature map there are zeros anyway.
        """
        height, width = x.shape[-2:]
        size = self.weight.shape[-1]
        return F.pad(x, (0, max(0, size - width), 0, max(0, size - height)))

    def _cropped(self, result: Tensor, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return result[..., : -(-height // self.stride), : -(-width // self.stride)]

    def _move(self, x: Tensor, offset: Tensor) -> Tensor:
        if is_transformed((x, offset, self.weight)):
            raise RuntimeError(
                f'{type(self).__name__} has no forward-mode derivatives and no rules for '
                "torch.func: mmcv's operator is known to backward() and torch.autograd.grad alone. "
                'Call these, for one sample after another if each needs its own gradient.'
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        with full_precision(x.device.type):
            # on a CPU the operators read memory as if it were contiguous
            wide_x, wide_offset = x.to(dtype).contiguous(), offset.to(dtype).contiguous()
            return self.convolve(wide_x, wide_offset).to(offset.dtype)

    def _stay(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation)

    def operator_of(self) -> Callable:
        """Return mmcv's function, or during an export the operator that calls it."""
        # before torch 2.7 there is no way to know
        is_exporting = getattr(torch.compiler, 'is_exporting', bool)()
        return getattr(torch.ops.mmrednet, self.operator) if is_exporting else self.function

    @abstractmethod
    def moves(self, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moves (B, 2 G K, Ho, Wo), (y, x) of every tap, and the factors (B, G K, Ho,
        Wo).
        """

    @abstractmethod
    def convolve(self, x: Tensor, offset: Tensor) -> Tensor:
        """Apply mmcv's operator, which knows float32 and float64 on every device."""


@functools.cache
def _also_mmcv(layer: Any, mmcv_class: str) -> Any:
    """Return a subclass of a layer and of mmcv's layer, which is made when mmcv is loaded.

    Its methods are those of the layer; copies and pickles of an instance are of the layer.
    """
    from mmcv import ops

    def reduce(self: nn.Module, _: int) -> tuple:
        return _restore, (layer, mmcv_class), self.__dict__

    methods = dict(
        __module__=layer.__module__,
        __qualname__=layer.__qualname__,
        __doc__=layer.__doc__,
        __repr__=nn.Module.__repr__,
        __reduce_ex__=reduce,
    )
    return type(layer.__name__, (layer, getattr(ops, mmcv_class)), methods)


def _restore(layer: Any, mmcv_class: str) -> nn.Module:
    subclass = _also_mmcv(layer, mmcv_class)
    return subclass.__new__(subclass)


@spatial_operator
class DCN(DeformableConv):
    """Version 1: taps move. Arguments: see :class:`DeformableConv`."""

    operator, mmcv_class, offsets = 'deform_conv2d', 'DeformConv2d', 2

    def moves(self, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets as they are, and ones."""
        return offset, torch.ones_like(offset[:, ::2])

    def convolve(self, x: Tensor, offset: Tensor) -> Tensor:
        """Apply mmcv's operator to the input and the offsets (y, x) of every tap."""
        weight = self.weight.contiguous()
        return self.operator_of()(
            x, offset, weight, self.stride, self.padding, self.dilation, 1, self.deform_groups
        )


@spatial_operator
class DCNv2(DeformableConv):
    """Version 2: taps move, and each has a weight. Arguments: see :class:`DeformableConv`."""

    operator, mmcv_class, offsets = 'modulated_deform_conv2d', 'ModulatedDeformConv2d', 3

    def moves(self, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets (y, x) of every tap, and the sigmoid of its weight."""
        # thirds in mmcv's order, of which the first two are offsets
        *offsets, mask = offset.chunk(3, 1)
        return torch.cat(offsets, 1), mask.sigmoid()

    def convolve(self, x: Tensor, offset: Tensor) -> Tensor:
        """Apply mmcv's operator to the input, the offsets (y, x) of every tap and the sigmoid of
        its weight.
        """
        moves, factor = self.moves(offset)
        return self.operator_of()(
            x,
            moves,
            factor,
            self.weight.contiguous(),
            None,
            self.stride,
            self.padding,
            self.dilation,
            1,
            self.deform_groups,
        )
