"""Table and plot of networks that were trained several times, with the spread over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt


@dataclass
class Entry:
    """A network and the results of its trainings.

    Args:
        name: Name of the network.
        results: Accuracy after each training, one per seed.
        parameters: Number of parameters.
        multiply_adds: Number of multiply-adds for one image.
        seconds: Median seconds per iteration.
        peak: Highest peak memory of the trainings, in bytes.
        finite: False if a loss was not finite.
    """

    name: str
    results: list[float]
    parameters: int
    multiply_adds: int
    seconds: float
    peak: int
    finite: bool = True

    @property
    def mean(self) -> float:
        """Mean of the results."""
        return statistics.mean(self.results)

    @property
    def spread(self) -> float:
        """Standard deviation of the results, 0 for a single one."""
        return statistics.stdev(self.results) if len(self.results) > 1 else 0.0


def within_spread(entry: Entry, best: Entry) -> bool:
    """Return whether an entry is as good as the best one, as far as the seeds can tell.

    It is if the means differ by no more than the sum of the two standard deviations. A single seed
    tells nothing, so that no entry is.
    """
    if min(len(entry.results), len(best.results)) < 2:
        return False
    return best.mean - entry.mean <= best.spread + entry.spread


def table(entries: Sequence[Entry], metric: str) -> Iterator[str]:
    """Yield the lines of a Markdown table. A ``=`` marks what is within the spread of the best."""
    best = max(entries, key=lambda entry: entry.mean)
    yield f'| operator | {metric} | parameters | 10^9 multiply-adds | seconds | peak memory, GiB |'
    yield '|---|---|---|---|---|---|'
    for entry in entries:
        accuracy = f'{entry.mean:.3f}'
        if len(entry.results) > 1:
            accuracy += f' ± {entry.spread:.3f}'
        if entry is not best and within_spread(entry, best):
            accuracy += ' ='
        if not entry.finite:
            accuracy += ' (loss not finite)'
        yield (
            f'| {entry.name} | {accuracy} | {entry.parameters:,} | {entry.multiply_adds / 1e9:.3f} '
            f'| {entry.seconds:.3f} | {entry.peak / 2**30:.2f} |'
        )


def plot(entries: Sequence[Entry], metric: str, title: str, path: Path) -> None:
    """Plot accuracy against time and against multiply-adds, with the spread as error bars.

    Args:
        entries: Networks.
        metric: Name of the accuracy.
        title: Title of the picture.
        path: File to write.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout='constrained')
    labels = ('seconds per training iteration, median', 'multiply-adds for one image, $10^9$')
    scales = (lambda entry: entry.seconds, lambda entry: entry.multiply_adds / 1e9)
    for axes, label, scale in zip(panels, labels, scales, strict=True):
        for entry in entries:
            place = (scale(entry), entry.mean)
            axes.errorbar(*place, yerr=entry.spread, fmt='o', capsize=3)
            axes.annotate(entry.name, place, xytext=(5, 4), textcoords='offset points', fontsize=8)
        axes.set_xlabel(label)
        axes.margins(x=0.4)
        axes.grid(alpha=0.3)
    count = len(entries[0].results)
    seeds = f'mean and standard deviation of {count} seeds' if count > 1 else 'one seed'
    panels[0].set_ylabel(f'{metric}\n{seeds}')
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
