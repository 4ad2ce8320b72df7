"""What operators apply to their input: the results of ``attention(x)`` of a spatial operator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import Window
from ..ops._torch import shifted_axis


class TapWeights(NamedTuple):
    """Weights over the taps of a window.

    Args:
        weight: Weights, of shape (B, G, K, Ho, Wo), of G groups of channels and K taps.
        window: Window of neighbours. Tap (u, v) has the number u * kernel[1] + v.
        reflects: True if taps beyond the border are on the feature map continued by reflection.
            Otherwise they count as zero.
        sums_to_one: True if the weights are a softmax.
    """

    weight: Tensor
    window: Window
    reflects: bool = False
    sums_to_one: bool = True

    def taps(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return row (Kh, Ho) and column (Kw, Wo) of every tap on a feature map of this size.

        Without reflection, a tap may lie outside the feature map.
        """
        if self.window.border == 'shift':
            return self._shifted_taps(height, width)
        positions = []
        outputs = self.weight.shape[-2:]
        for axis, length in enumerate((height, width)):
            output = torch.arange(outputs[axis]) * self.window.stride[axis]
            tap = torch.arange(self.window.kernel[axis]) * self.window.dilation[axis]
            position = tap[:, None] + output - self.window.padding[axis]
            positions.append(reflected(position, length) if self.reflects else position)
        return positions[0], positions[1]

    def _shifted_taps(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return rows and columns of the taps of shifted windows.

        A map that is smaller than a window is continued at its end, so that taps may lie outside.
        """
        positions = []
        for axis, length in enumerate((height, width)):
            least = self.window.kernel[axis] * self.window.dilation[axis]
            tap_positions, _ = shifted_axis(
                self.window, axis, max(length, least), torch.device('cpu')
            )
            positions.append(tap_positions[:, :length])
        return positions[0], positions[1]


def reflected(index: Tensor, length: int) -> Tensor:
    """Return the indices on 0 .. length - 1 of indices that lie beyond it, by reflection at its
    ends, as often as it takes.
    """
    if length == 1:
        return torch.zeros_like(index)
    period = 2 * (length - 1)
    index = index % period
    return torch.minimum(index, period - index)


class AxisWeights(NamedTuple):
    """Weights along one axis: a softmax over all positions of a row or of a column.

    Args:
        weight: Weights, of shape (B, N, H, W, L), of N heads. L is W along rows, and H along
            columns.
        axis: Axis of the attention, 'height' or 'width'.
    """

    weight: Tensor
    axis: str


class Gate(NamedTuple):
    """Factors that multiply the input.

    Args:
        factor: Factors, of shape (B, C, H, W), (B, C, 1, 1) or (B, 1, H, W).
    """

    factor: Tensor


class SamplingPoints(NamedTuple):
    """Places where taps sample the input, and the factors of the samples.

    Args:
        place: Row and column in input positions, of shape (B, G, K, 2, Ho, Wo), of G groups of
            channels and K taps.
        factor: Factors, of shape (B, G, K, Ho, Wo); ones where the operator has none.
    """

    place: Tensor
    factor: Tensor


# weights over positions of the feature map
PositionWeights = TapWeights | AxisWeights
# what a layer's ``attention`` returns: one of these, or several of parts that follow one another
Attention = PositionWeights | Gate | SamplingPoints
