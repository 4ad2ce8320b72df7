"""Top-k accuracy of classifiers."""

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
        topk: Numbers k. Those above the number of classes are left out. Default: (1, 5).
        **kwargs: Other arguments of mmengine's BaseMetric.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Store the rank of each image's class: 0 if it has the highest score.

        Of equal scores the class with the lowest index ranks first, as in ``argmax``. NaN ranks
        before every number, so that a network that returns equal scores or NaN gets no credit.
        """
        for sample in data_samples:
            scores, label = sample['scores'], int(sample['label'])
            indices = torch.arange(len(scores), device=scores.device)
            lower = scores < scores[label]
            tied = (scores == scores[label]) & (indices >= label)
            rank = int((~(lower | tied)).sum())
            self.results.append((rank, len(scores)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the percentages."""
        ranks = torch.tensor([rank for rank, _ in results])
        num_classes = results[0][1]
        metrics = {}
        for k in self.topk:
            if k <= num_classes:
                metrics[f'top{k}'] = 100 * float((ranks < k).double().mean())
        return metrics
