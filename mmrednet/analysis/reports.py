"""Reports on the cost of a network: a dict for a file, and text for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from .categories import DEFAULT_COUNT, select
from .counting import Complexity
from .image_network import ImageNetwork, image_channels
from .networks import stage_of
from .usage import is_for_training

UNITS = {'macs': 'MACs (a multiply-add is one)', 'flops': 'FLOPs (a multiply-add is two)'}
VIEWS = ('operator', 'module', 'stage')
# the stage of what the model computes between its parts, such as a resize of the logits
BETWEEN = 'between parts'
# the prefix of the model's modules in an ImageNetwork
PREFIX = 'model.'


def describe(
    complexity: Complexity,
    network: ImageNetwork,
    *,
    name: str,
    shape: Sequence[int],
    count: Sequence[str] = DEFAULT_COUNT,
) -> dict[str, Any]:
    """Return everything that is known of the cost of a network, in exact integers.

    Args:
        complexity: Result of counting ``network``.
        network: Network that was counted.
        name: Name of the network in the report.
        shape: Height and width of the image.
        count: Categories or operators, see :meth:`Complexity.operators`.

    Returns:
        A dict of name, channels, shape, proposals (None without a second stage), count, parameters,
        macs and flops. Its by_operator, by_module and by_stage map names to macs and flops, the
        latter two to parameters as well. For uncounted and never_ran see :class:`Complexity`.
    """
    parameters = complexity.parameters()
    return dict(
        name=name,
        channels=image_channels(network.model),
        shape=list(shape),
        proposals=network.proposals if network.two_stage else None,
        count=list(count),
        parameters=dict(
            all=parameters.all, trainable=parameters.trainable, frozen=parameters.frozen
        ),
        **_both_units(complexity.counts[''], count),
        by_operator=_by_operator(complexity, count),
        by_module=_by_module(complexity, count),
        by_stage=_by_stage(complexity, network, count),
        uncounted=dict(complexity.uncounted),
        never_ran=[module.removeprefix(PREFIX) for module in complexity.never_ran],
    )


def missing(report: dict[str, Any]) -> list[str]:
    """Return a sentence for each kind of cost that inference has and the totals of a report lack:
    operators without a handle, and modules that never ran.
    """
    sentences = []
    uncounted = Counter(report['uncounted']).most_common()
    if uncounted:
        operators = ', '.join(f'{name} ({times} times)' for name, times in uncounted)
        sentences.append(f'Not counted, because they have no handle: {operators}.')
    idle = [name for name in report['never_ran'] if not is_for_training(name)]
    if idle:
        sentences.append(
            f'Not counted, because they never ran for an image alone: {", ".join(idle)}.'
        )
    return sentences


def _both_units(counts: Counter[str], count: Sequence[str]) -> dict[str, int]:
    macs = select(counts, count).total()
    flops = select(counts, count, flops=True).total()
    return dict(macs=macs, flops=flops)


def _by_operator(complexity: Complexity, count: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = complexity.operators(count)
    return {
        name: _both_units(Counter({name: value}), [name]) for name, value in counts.most_common()
    }


def _by_module(complexity: Complexity, count: Sequence[str]) -> dict[str, dict[str, int]]:
    modules = [name for name in complexity.counts if name.startswith(PREFIX)]
    rows = {}
    # a model without children is its only module
    for module in modules or ['']:
        rows[module.removeprefix(PREFIX)] = dict(
            parameters=complexity.parameters(module).all,
            **_both_units(complexity.counts[module], count),
        )
    return rows


def _by_stage(
    complexity: Complexity, network: ImageNetwork, count: Sequence[str]
) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    parameters: Counter[str] = Counter()
    # a parameter that several modules share counts in the first one's stage
    counted: set[nn.Parameter] = set()
    for module, own in complexity.own().items():
        stage = _stage(module, network)
        counts.setdefault(stage, Counter()).update(own)
        for parameter in network.get_submodule(module).parameters(recurse=False):
            if parameter not in counted:
                counted.add(parameter)
                parameters[stage] += parameter.numel()
    rows = {}
    for stage, own in counts.items():
        row = dict(parameters=parameters[stage], **_both_units(own, count))
        if any(row.values()):
            rows[stage] = row
    return rows


def _stage(module: str, network: ImageNetwork) -> str:
    """Return the stage of a module of an ImageNetwork: of its model, or its classifier."""
    if module.startswith(PREFIX):
        return stage_of(module.removeprefix(PREFIX), network.model)
    return BETWEEN if module in ('', 'model') else module


def as_text(
    report: dict[str, Any], view: str = 'operator', convention: str = 'macs', *, depth: int = 2
) -> str:
    """Return a report as text: exact and rounded totals, and a table.

    Args:
        report: Result of :func:`describe`.
        view: Rows of the table, one of ``VIEWS``. Default: 'operator'.
        convention: Unit of the table, 'macs' or 'flops'. The totals are in both. Default: 'macs'.
        depth: Number of levels of modules in the table. Default: 2.
    """
    lines = [_title(report), '', *_totals(report)]
    for_training = [name for name in report['never_ran'] if is_for_training(name)]
    if for_training:
        lines += [
            '',
            f'{", ".join(for_training)} did not run: for training alone, in the parameters but not '
            'in the rest.',
        ]
    return '\n'.join([*lines, '', *_table(report, view, convention, depth)])


def _title(report: dict[str, Any]) -> str:
    shape = ' x '.join(map(str, [report['channels'], *report['shape']]))
    proposals = ''
    if report['proposals'] is not None:
        proposals = f', {report["proposals"]} proposals'
    counted = ', '.join(report['count'])
    return f'{report["name"]}, input 1 x {shape}{proposals}, counted: {counted}'


def _totals(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in report['parameters'].items():
        lines.append(f'{name:>9} parameters  {value:>19,}  {value / 1e6:>10.2f} M')
    for unit, heading in UNITS.items():
        name, meaning = heading.split(' ', 1)
        value = report[unit]
        lines.append(f'{name:>20}  {value:>19,}  {value / 1e9:>10.2f} G  {meaning}')
    return lines


def _table(report: dict[str, Any], view: str, convention: str, depth: int) -> list[str]:
    has_parameters = view != 'operator'
    headings = [view, UNITS[convention], '10^9', '%']
    if has_parameters:
        headings.insert(1, 'parameters')
    lines = [_row(headings), '|---|' + '---:|' * (len(headings) - 1)]
    for name, row in report[f'by_{view}'].items():
        if view == 'module' and (name.count('.') >= depth or not any(row.values())):
            continue
        value = row[convention]
        # a report of a count that the network has none of has the total 0
        share = 100 * value / max(1, report[convention])
        cells = [name, f'{value:,}', f'{value / 1e9:.3f}', f'{share:.2f}']
        if has_parameters:
            cells.insert(1, f'{row["parameters"]:,}')
        lines.append(_row(cells))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
