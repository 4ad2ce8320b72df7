"""A softmax whose logits come in parts, so that they are never stored together."""

from __future__ import annotations

import torch
from torch import Tensor

# Logit of what has no weight. Minus infinity would make NaN where a row of taps has no weight.
LOWEST = -1e30


class RunningSoftmax:
    """Weighted sums of values by the softmax of logits that come in parts.

    The maximum and the sums are corrected when a part has a larger logit.
    """

    def __init__(self) -> None:
        self.largest: Tensor | None = None
        self.total: Tensor | None = None

    def add(self, logits: Tensor, values: Tensor, weigh: object = None) -> None:
        """Add a part of the logits.

        Args:
            logits: Tensor (..., T, L).
            values: Tensor (..., L, D + 1), whose last channel is ones.
            weigh: Function from the exponentials to the matrices that multiply the values.
                Default: None, the exponentials themselves.
        """
        largest = logits.amax(-1, keepdim=True)
        if self.largest is not None:
            largest = torch.maximum(self.largest, largest)
        weights = (logits - largest).exp()
        part = (weigh(weights) if callable(weigh) else weights) @ values
        if self.largest is not None and self.total is not None:
            part = part + self.total * (self.largest - largest).exp()
        self.largest, self.total = largest, part

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the sums (..., T, D), and the logarithm (..., T, 1) of the softmax's sum."""
        assert self.largest is not None
        assert self.total is not None
        sums, count = self.total[..., :-1], self.total[..., -1:]
        # zero where nothing has a weight; half of it, since rounding may have changed LOWEST
        result = torch.where(self.largest > LOWEST / 2, sums / count, 0.0)
        return result, self.largest + count.log()
