"""The Markdown of ``docs/model_zoo.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .rows import Difference, Row

# headings of the lists of differences
EXPLAINED, OPEN = 'Where ours differ beyond the printed digit', 'Open differences'
CONVENTIONS, OPTIONS = 'How each source counts', 'Counted with other settings'
OPEN_TEXT = 'No reason for these differences is proven. Supposed reasons are marked as such.'
OPTIONS_TEXT = (
    'The sources of these figures counted other networks than those of their configs. The tables '
    'compare what they counted. These are the settings, and the figures of the config as it is.'
)
# Markdown is not wrapped as code is
# ruff: noqa: E501
HEADER = """# Model zoo

**None of the accuracies on this page was reproduced by us.** None of these networks was trained on ImageNet, COCO,
Cityscapes or ADE20K here. The accuracies are quoted from the sources above each table.

Parameters and MACs are ours beside the published ones. They are counted at the source's input size and as the source
[counts](#how-each-source-counts) ([more on counting](counting.md)). A difference of "=" means that ours, counted so,
rounds to the printed number. Where a program prints two decimals and its user one, ours is rounded twice as well.

`python tools/model_zoo/generate.py` writes this page from `model_zoo.yml`, the published figures, and
`model_zoo.json`, exact counts and times. `--check` counts everything again and compares.
"""


def page(rows: Sequence[Row], counts: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the Markdown of the page.

    Args:
        rows: Rows of the networks.
        counts: Result of :meth:`Row.count` by the keys of the rows.
        pictures: Paragraphs about the plots.
    """
    lines = [HEADER, *pictures, f'## {CONVENTIONS}', '', *_list_conventions(rows), '']
    for heading in (EXPLAINED, OPEN):
        lines += [f'## {heading}', '']
        if heading == OPEN:
            lines += [OPEN_TEXT, '']
        lines += [*_list_differences(rows, counts, heading), '']
    if any(row.options for row in rows):
        lines += [f'## {OPTIONS}', '', OPTIONS_TEXT, '', *_list_options(rows, counts), '']
    tables: dict[str, list[Row]] = {}
    for row in rows:
        tables.setdefault(row.title, []).append(row)
    for table in tables.values():
        lines += [*_table(table, counts), '']
    return '\n'.join(lines)


def _list_conventions(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table of the ways of counting, and what is counted so."""
    titles: dict[int, list[str]] = {}
    conventions = {}
    for row in rows:
        conventions[id(row.convention)] = row.convention
        titles.setdefault(id(row.convention), []).append(row.title)
    lines = [_line(['tables', 'program', 'counted']), '|---|---|---|']
    for key, convention in conventions.items():
        tables = '; '.join(dict.fromkeys(titles[key]))
        lines.append(_line([tables, convention.tool or 'not known', convention.text]))
    return lines


def _list_options(rows: Sequence[Row], counts: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of the settings of networks that sources counted."""
    headings = ['network', 'settings', 'parameters, 10^6', 'MACs or FLOPs, 10^9', 'how it is known']
    lines = [_line(headings), '|---|---|---:|---:|---|']
    for row in rows:
        if row.options:
            own = {name: value for name, value in counts[row.key].items() if name != 'published'}
            settings = '<br>'.join(f'`{name}={value}`' for name, value in row.options.items())
            figures = [f'{figure.computed:.2f}' for figure in row.differences(own).values()]
            lines.append(_line([row.key, settings, *figures, row.options_why]))
    return lines


def _list_differences(rows: Sequence[Row], counts: Mapping[str, Any], heading: str) -> list[str]:
    """Return the lines of a table of the differences under one heading."""
    lines = [
        _line(['network', 'figure', 'ours', 'published', 'difference', 'why']),
        '|---|---|---:|---:|---:|---|',
    ]
    for row in rows:
        notes = row.why if heading == EXPLAINED else row.unexplained
        for figure, difference in row.differences(counts[row.key]).items():
            if difference.exists and figure in notes:
                computed = f'{difference.computed:.2f}'
                cells = [row.key, difference.unit, computed, difference.published]
                lines.append(_line([*cells, difference.text, notes[figure]]))
    return lines


def _table(rows: Sequence[Row], counts: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of networks, which have one title."""
    first = rows[0]
    has_published = any(row.params or row.macs or row.score for row in rows)
    lines = [f'## {first.title}', '']
    if has_published:
        task = f'{first.task}. ' if first.task else ''
        sources = '; '.join(dict.fromkeys(row.source for row in rows))
        lines.append(f'{task}Published in: {sources}.')
    lines += [*_ways_of_counting(rows), '']
    headings = ['network', 'input', 'parameters, 10^6']
    comparison = ['published', 'difference'] if has_published else []
    headings += [*comparison, f'{first.convention.unit}, 10^9', *comparison]
    if has_published:
        headings += [f'{first.metrics}, published', 'reproduced by us']
    lines += [_line(headings), '|---|---' + '|---:' * (len(headings) - 2) + '|']
    for row in rows:
        lines.append(_line(_cells(row, counts[row.key], has_published)))
    return lines


def _ways_of_counting(rows: Sequence[Row]) -> list[str]:
    """Return a line for each way in which the networks of a table are counted."""
    ways: dict[str, list[str]] = {}
    for row in rows:
        ways.setdefault(f'{row.parameters} parameters; {row.convention.text}', []).append(row.key)
    if len(ways) == 1:
        return [f'Counted: {way}.' for way in ways]
    return [f'- Counted for {", ".join(keys)}: {way}.' for way, keys in ways.items()]


def _cells(row: Row, counts: Mapping[str, Any], has_published: bool) -> list[str]:
    """Return the cells of a network in its table."""
    name = row.key
    if row.options:
        name += f' ([other settings](#{_anchor(OPTIONS)}))'
    cells = [name, ' x '.join(map(str, counts['shape']))]
    for figure, difference in row.differences(counts).items():
        cells.append(f'{difference.computed:.2f}')
        if has_published:
            heading = EXPLAINED if figure in row.why else OPEN
            cells += [difference.published or '-', _link(difference, heading)]
    if has_published:
        cells += [row.score, 'no'] if row.score else ['-', '-']
    return cells


def _link(difference: Difference, heading: str) -> str:
    """Return the text of a difference, linked to its reason."""
    if not difference.exists:
        return difference.text or '-'
    return f'[{difference.text}](#{_anchor(heading)})'


def _anchor(heading: str) -> str:
    return heading.lower().replace(' ', '-')


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
