"""How often the right class is the first, or among the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Percentage of images whose class is among the k with the highest scores, as
    ``accuracy/top<k>``.

    Args:
        topk: the numbers k; one that exceeds the number of classes is left out.
        **kwargs: see mmengine's BaseMetric.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep for every image the place of its class: 0 if it has the highest score.

        Of equal scores the class with the lowest number is the first, as in ``argmax``, and what is
        no number stands
        before everything: a network that gives equal scores or NaN knows no class.
        """
        for sample in data_samples:
            scores, label = sample['scores'], int(sample['label'])
            own, number = scores[label], torch.arange(len(scores), device=scores.device)
            behind = (scores < own) | (scores == own) & (number >= label)
            self.results.append((int((~behind).sum()), len(scores)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the percentages."""
        places = torch.tensor([place for place, _ in results])
        return {
            f'top{k}': 100 * float((places < k).double().mean())
            for k in self.topk
            if k <= results[0][1]
        }
