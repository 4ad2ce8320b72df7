"""Published figures of networks beside ours: rows of ``docs/model_zoo.yml``, counts of ours, and
the page of both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
import yaml

from mmrednet.analysis.categories import check_count, select
from mmrednet.analysis.counting import count_network
from mmrednet.analysis.image_network import ImageNetwork
from mmrednet.analysis.networks import build_network
from mmrednet.analysis.reports import describe, missing

IMAGENET_CLASSES = 1000
# of a row, that may differ
FIGURES = ('parameters', 'macs')


@dataclass(frozen=True)
class Convention:
    """What a source counts.

    Args:
        text: in words.
        count: categories or operators, see :func:`mmrednet.analysis.categories.select`.
        flops: whether a multiply-add is two.
        weights: of operators that the source counts otherwise.
        norms: a regular expression that the names of the counted norms contain; by default all are.
    """

    text: str
    count: Sequence[str]
    flops: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    norms: str = ''

    @property
    def unit(self) -> str:
        """What it calls its numbers."""
        return 'FLOPs' if self.flops else 'MACs'

    def giga(self, operators: Mapping[str, int]) -> float:
        """Return 10^9 of what operators take."""
        counts = select(Counter(operators), self.count, flops=self.flops)
        return sum(value * self.weights.get(name, 1) for name, value in counts.items()) / 1e9


@dataclass(frozen=True)
class Row:
    """A network, and what was published about it; numbers as they were printed.

    Args:
        title: of the table that it stands in.
        convention: how its source counts.
        name: of a network given by ``model``.
        model: of a backbone.
        config: path of a config below ``configs``, without its ending.
        family: the line that it belongs to in the plots.
        task: what was trained.
        metrics: what ``score`` is.
        source: where it was published.
        shape: (H, W) of the image; by default see :func:`mmrednet.analysis.networks.build_network`.
        parameters: 'all' or 'trainable', what the source counts.
        params: 10^6.
        macs: 10^9, or FLOPs if the convention says so.
        score: accuracy.
        why: of 'parameters' and 'macs' what explains that ours differ.
        unexplained: of the others that differ what is known, or supposed.
    """

    title: str
    convention: Convention
    name: str = ''
    model: dict[str, Any] | None = None
    config: str = ''
    family: str = ''
    task: str = ''
    metrics: str = 'score'
    source: str = ''
    shape: Sequence[int] | None = None
    parameters: str = 'all'
    params: str = ''
    macs: str = ''
    score: str = ''
    why: Mapping[str, str] = field(default_factory=dict)
    unexplained: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What it is called in the file of counts."""
        return self.config or self.name

    def build(self, root: Path) -> tuple[ImageNetwork, Sequence[int]]:
        """Return the network, of classifiers with a layer for ImageNet's classes, and its (H, W)."""
        if self.model is None:
            network, shape = build_network(str(root / f'configs/{self.config}.py'))
        else:
            network, shape = build_network(
                {'init_cfg': None, **self.model}, classes=IMAGENET_CLASSES
            )
        return network, self.shape or shape

    def count(self, root: Path) -> dict[str, Any]:
        """Return shape, parameters and what operators take, in exact integers, norms as the
        convention says.
        """
        network, shape = self.build(root)
        complexity = count_network(network, torch.zeros(1, 3, *shape))
        lacking = missing(describe(complexity, network, name=self.key, shape=shape))
        if lacking:
            raise RuntimeError(f'{self.key} cannot be counted wholly. {" ".join(lacking)}')
        operators = Counter(complexity.counts[''])
        for module, own in complexity.own().items():
            if not re.search(self.convention.norms, module):
                operators['batch_norm'] -= own['batch_norm']
        parameters = complexity.parameters()
        return dict(
            shape=list(shape),
            all=parameters.all,
            trainable=parameters.trainable,
            operators=dict(sorted(operators.items())),
        )

    def differences(self, counts: Mapping[str, Any]) -> dict[str, tuple[float, str, str]]:
        """Return ours, the published figure and the difference, of parameters (M) and of what they
        take (G).
        """
        ours = {
            'parameters': counts[self.parameters] / 1e6,
            self.convention.unit: self.convention.giga(counts['operators']),
        }
        return {
            unit: (value, published, difference(value, published))
            for (unit, value), published in zip(ours.items(), (self.params, self.macs), strict=True)
        }


def difference(ours: float, published: str) -> str:
    """Return '=' where ours rounds to the printed digits, else by how many percent it is more; ''
    without a number.
    """
    if not published:
        return ''
    printed = Decimal(published)
    unit = Decimal(1).scaleb(int(printed.as_tuple().exponent))
    # the half itself, too
    if abs(Decimal(ours) - printed) <= unit * Decimal('0.5000001'):
        return '='
    return f'{100 * (ours / float(printed) - 1):+.1f} %'


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file such as ``docs/model_zoo.yml``.

    Raises:
        ValueError: a convention counts what there is not, two rows have one name, or a note is of
            no figure, of one that has another, or empty.
    """
    data = yaml.safe_load(path.read_text())
    conventions = {name: Convention(**entry) for name, entry in data['conventions'].items()}
    rows = []
    for group in data['groups']:
        shared = {name: value for name, value in group.items() if name != 'rows'}
        for row in group['rows']:
            entry = {**shared, **row}
            entry['source'] = data['sources'][entry['source']] if 'source' in entry else ''
            entry['convention'] = conventions[entry['convention']]
            check_count(entry['convention'].count)
            rows.append(Row(**entry))
            _check_notes(rows[-1])
    keys = Counter(row.key for row in rows)
    if max(keys.values()) > 1:
        raise ValueError(
            f'rows must have names of their own, got {[key for key in keys if keys[key] > 1]} in '
            f'{path}.'
        )
    return rows


def _check_notes(row: Row) -> None:
    notes = [*row.why.items(), *row.unexplained.items()]
    names = [name for name, _ in notes]
    if (
        not set(names) <= set(FIGURES)
        or len(set(names)) < len(names)
        or not all(text.strip() for _, text in notes)
    ):
        raise ValueError(
            f'{row.key}: why and unexplained must have texts for some of {FIGURES}, each of its '
            'own, got '
            f'{dict(row.why)} and {dict(row.unexplained)}.'
        )


# headings of the page
WHY, OPEN = 'Where ours differ beyond the printed digit', 'Open differences'
SAID_OF_OPEN = 'Here nothing proves why ours differ; what is supposed is marked so.'
# the text of a page in Markdown is not wrapped as code is
# ruff: noqa: E501
HEADER = """# Model zoo

**None of the accuracies on this page was reproduced by us: none of these networks was trained on ImageNet, COCO,
Cityscapes or ADE20K.** They are quoted from the sources named above each table. Parameters and MACs are ours beside the
published ones, at the source's input size and counted as the source counts ([how](counting.md)). A difference of "="
means that ours, rounded, is the printed number.

Written by `python tools/model_zoo/generate.py` from `model_zoo.yml` (what was published) and `model_zoo.json`
(what was counted, in exact integers, and times); `--check` counts everything again and compares.
"""


def page(rows: Iterable[Row], counts: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the Markdown of the page.

    Args:
        rows: of :func:`read_rows`.
        counts: what :meth:`Row.count` returned, by the keys of the rows.
        pictures: paragraphs about plots.
    """
    rows = list(rows)
    lines = [HEADER, *pictures]
    for heading, said in ((WHY, []), (OPEN, [SAID_OF_OPEN, ''])):
        lines += [
            f'## {heading}',
            '',
            *said,
            '| network | figure | ours | published | difference | why |',
            '|---|---|---:|---:|---:|---|',
        ]
        lines += [line for row in rows for line in _differing(row, counts[row.key], heading)] + ['']
    for title in dict.fromkeys(row.title for row in rows):
        lines += [*_table([row for row in rows if row.title == title], counts), '']
    return '\n'.join(lines)


def _differing(row: Row, counts: Mapping[str, Any], heading: str) -> list[str]:
    """Return what stands under a heading about a row."""
    notes = row.why if heading == WHY else row.unexplained
    return [
        f'| {row.key} | {unit} | {ours:.2f} | {published} | {apart} | {notes[figure]} |'
        for figure, (unit, (ours, published, apart)) in zip(
            FIGURES, row.differences(counts).items(), strict=True
        )
        if apart not in ('', '=') and figure in notes
    ]


def _table(rows: Sequence[Row], counts: Mapping[str, Any]) -> list[str]:
    first = rows[0]
    published = any(row.params or row.macs or row.score for row in rows)
    unit = first.convention.unit
    where = f'{first.task}. ' if first.task else ''
    lines = [f'## {first.title}', '']
    if published:
        lines += [f'{where}Published in: {"; ".join(dict.fromkeys(row.source for row in rows))}.']
    which = 'trainable parameters' if first.parameters == 'trainable' else 'all parameters'
    lines += [f'Counted: {which}; {first.convention.text}.', '']
    heads = [
        'network',
        'input',
        'parameters, 10^6',
        *(['published', 'difference'] * published),
        f'{unit}, 10^9',
        *(
            ['published', 'difference', f'{first.metrics}, published', 'reproduced by us']
            * published
        ),
    ]
    lines += [f'| {" | ".join(heads)} |', '|---|---' + '|---:' * (len(heads) - 2) + '|']
    for row in rows:
        count = counts[row.key]
        cells = [row.key, ' x '.join(map(str, count['shape']))]
        for figure, (ours, printed, apart) in zip(
            FIGURES, row.differences(count).values(), strict=True
        ):
            heading = (WHY if figure in row.why else OPEN).lower().replace(' ', '-')
            linked = f'[{apart}](#{heading})' if apart not in ('', '=') else apart or '-'
            cells += [f'{ours:.2f}', *([printed or '-', linked] * published)]
        if published:
            cells += [row.score or '-', 'no' if row.score else '-']
        lines.append(f'| {" | ".join(cells)} |')
    return lines
