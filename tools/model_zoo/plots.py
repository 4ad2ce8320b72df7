"""Plots of classifiers: published accuracy against our MACs and against measured time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrednet.analysis.categories import select

from .rows import Row

MARKERS = 'osD^v<>Pp*hX'
# a load average above this says that other programs ran
MAX_LOAD = 0.5


def draw(rows: Sequence[Row], figures: Mapping[str, Any], folder: Path) -> None:
    """Write ``accuracy_macs.png``, and ``accuracy_<device>.png`` for each device with times.

    Args:
        rows: Rows of the networks. Those with a family and a score are drawn.
        figures: Counts and times, as in ``docs/model_zoo.json``.
        folder: Folder to write to.
    """
    giga = {}
    for row in rows:
        operators = Counter(figures['counts'][row.key]['operators'])
        giga[row.key] = select(operators, ['op']).total() / 1e9
    folder.mkdir(parents=True, exist_ok=True)
    title = 'ImageNet top-1 (published) against multiply-adds (counted)'
    label = 'multiply-adds for one image of 224 x 224, $10^9$, counted'
    _plot(rows, giga, title, label, folder / 'accuracy_macs.png')
    for device, times in figures['times'].items():
        label = f'time for one image of 224 x 224, float32, ms, measured\n{_machine(times)}'
        if times['load'] > MAX_LOAD:
            label += ', busy with other work: not to be compared'
        title = f'ImageNet top-1 (published) against {device.upper()} time (measured)'
        _plot(rows, times['milliseconds'], title, label, folder / f'accuracy_{device}.png')


def _machine(times: Mapping[str, Any]) -> str:
    machine = times['machine']
    parts = [machine['chip'], f'torch {machine["torch"]}']
    if 'threads' in machine:
        plural = 's' if machine['threads'] > 1 else ''
        parts.insert(1, f'{machine["threads"]} thread{plural}')
    return ', '.join(parts)


def _kernels(times: Mapping[str, Any]) -> str:
    machine = times['machine']
    return '; '.join(machine[key] for key in ('kernels', 'memory') if key in machine)


def _plot(
    rows: Sequence[Row], horizontal: Mapping[str, float], title: str, label: str, path: Path
) -> None:
    """Plot the published accuracy of each family of networks, a line for each.

    Args:
        rows: Rows of the networks.
        horizontal: Horizontal coordinate of each network that has one.
        title: Title of the plot.
        label: Label of the horizontal axis.
        path: File to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    families: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.family and row.score and row.key in horizontal:
            point = (horizontal[row.key], float(row.score))
            families.setdefault(row.family, []).append(point)
    figure = Figure(figsize=(8, 5.4), layout='constrained')
    axes = figure.add_subplot()
    for index, (family, points) in enumerate(families.items()):
        axes.plot(
            *zip(*sorted(points), strict=True),
            marker=MARKERS[index % len(MARKERS)],
            # matplotlib has ten colours; dashes tell the families beyond
            color=f'C{index % 10}',
            linestyle='-' if index < 10 else '--',
            markersize=5,
            linewidth=1.2,
            label=family,
        )
    axes.set(
        xscale='log',
        xlabel=label,
        ylabel='ImageNet top-1 accuracy, %, published',
        title=title,
    )
    axes.grid(alpha=0.3, which='both')
    axes.legend(fontsize=8)
    # without the version of matplotlib the file stays the same
    FigureCanvasAgg(figure).print_png(path, metadata={'Software': None})


def pictures(times: Mapping[str, Any]) -> list[str]:
    """Return the paragraphs of the page about the plots, with the machine of each."""
    lines = ['![Published top-1 against our MACs](images/accuracy_macs.png)', '']
    for device, device_times in times.items():
        option = '' if device == 'cpu' else f' --device {device}'
        lines += [
            f'![Published top-1 against measured time](images/accuracy_{device}.png)',
            '',
            f'*Times: {_machine(device_times)}; {_kernels(device_times)}; median of up '
            'to nine rounds in the better of two memory layouts, by `python '
            f'tools/model_zoo/generate.py --measure{option}`; load average before: '
            f'{device_times["load"]}.*',
            '',
        ]
        if device_times['load'] > MAX_LOAD:
            warning = 'Other programs ran at the same time: these times must not be compared.'
            lines += [f'**{warning}**', '']
    return lines
