"""Plots of the zoo's classifiers: published accuracy against MACs and against measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrednet.analysis.categories import select

from .rows import Row

MARKERS = 'osD^v<>Pp*hX'
# a load average above it says that the machine had other work
QUIET = 0.5


def draw(rows: Sequence[Row], known: Mapping[str, Any], folder: Path) -> None:
    """Write ``accuracy_macs.png``, and ``accuracy_<device>.png`` for each device that was timed.

    Args:
        rows: of :func:`model_zoo.rows.read_rows`; those with a family and a score are
            drawn.
        known: counts of the rows and times, as in ``docs/model_zoo.json``.
        folder: to write to.
    """
    giga = {
        row.key: sum(select(known['counts'][row.key]['operators'], ['op']).values()) / 1e9
        for row in rows
    }
    folder.mkdir(parents=True, exist_ok=True)
    _plot(rows, giga, '$10^9$ multiply-adds at 224 x 224, ours', folder / 'accuracy_macs.png')
    for device, times in known['times'].items():
        busy = '' if times['load'] <= QUIET else ', busy with other work: not to be compared'
        _plot(
            rows,
            times['milliseconds'],
            f'milliseconds for one image of 224 x 224, ours\n{_machine(times)}{busy}',
            folder / f'accuracy_{device}.png',
        )


def _machine(times: Mapping[str, Any]) -> str:
    machine = times['machine']
    threads = (
        f'{machine["threads"]} thread{"s" if machine["threads"] > 1 else ""}, '
        if 'threads' in machine
        else ''
    )
    return f'{machine["chip"]}, {threads}torch {machine["torch"]}'


def _plot(rows: Sequence[Row], horizontal: Mapping[str, float], label: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.family and row.score and row.key in horizontal]
    figure = Figure(figsize=(8, 5.4), layout='constrained')
    axes = figure.add_subplot()
    for index, family in enumerate(dict.fromkeys(row.family for row in shown)):
        points = sorted(
            (horizontal[row.key], float(row.score)) for row in shown if row.family == family
        )
        axes.plot(
            *zip(*points, strict=True),
            marker=MARKERS[index % len(MARKERS)],
            color=f'C{index % 10}',
            linestyle='-' if index < 10 else '--',
            markersize=5,
            linewidth=1.2,
            label=family,
        )
    axes.set(
        xscale='log',
        xlabel=label,
        ylabel='ImageNet top-1, %, as published',
        title='Not trained by us',
    )
    axes.grid(alpha=0.3, which='both')
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path, metadata={'Software': None})


def pictures(times: Mapping[str, Any]) -> list[str]:
    """Return what the page says of the plots, with the machine behind each."""
    lines = ['![Published top-1 against our MACs](images/accuracy_macs.png)', '']
    for device, measured in times.items():
        lines += [
            f'![Published top-1 against measured time](images/accuracy_{device}.png)',
            '',
            f'*Times: {_machine(measured)}; {measured["machine"]["kernels"]}; median of up to nine '
            'rounds in the '
            'better of two memory layouts, by `python tools/model_zoo/generate.py --measure'
            f'{"" if device == "cpu" else f" --device {device}"}`; load average before: '
            f'{measured["load"]}.*',
            '',
        ]
        if measured['load'] > QUIET:
            lines += [
                '**Other programs ran at the same time: these times must not be compared.**',
                '',
            ]
    return lines
