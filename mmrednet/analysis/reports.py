"""What a network takes, as a dict for a file and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from .counting import DEFAULT_COUNT, Complexity, chosen
from .image_network import ImageNetwork
from .networks import stage_of
from .usage import in_training_alone

UNITS = {'macs': 'MACs (a multiply-add is one)', 'flops': 'FLOPs (a multiply-add is two)'}
VIEWS = ('operator', 'module', 'stage')
PARAMETERS = ('all', 'trainable', 'frozen')
# the stage of operators that run in the model itself, between its parts, such as a resize of logits
BETWEEN = 'between parts'


def describe(
    complexity: Complexity,
    network: ImageNetwork,
    *,
    name: str,
    shape: Sequence[int],
    count: Sequence[str] = DEFAULT_COUNT,
) -> dict[str, Any]:
    """Return all that is known of a network, in exact integers.

    Args:
        complexity: of ``network``.
        network: what was counted.
        name: to call it by.
        shape: (H, W) of the image.
        count: categories or operators, see :meth:`Complexity.operators`.

    Returns:
        name, shape, proposals (None without a second stage), count, parameters, macs, flops, and
        by_operator, by_module and by_stage with macs and flops of each; the latter two with
        parameters too; uncounted and never_ran, see :class:`Complexity`.
    """
    modules = [module for module in complexity.counts if module.startswith('model.')] or ['']
    by_module = {
        module.removeprefix('model.'): dict(
            parameters=complexity.parameters(module).all, **_both(complexity.counts[module], count)
        )
        for module in modules
    }
    return dict(
        name=name,
        shape=list(shape),
        proposals=network.proposals if network.two_stage else None,
        count=list(count),
        parameters={kind: getattr(complexity.parameters(), kind) for kind in PARAMETERS},
        **_both(complexity.counts[''], count),
        by_operator={
            operator: _both(Counter({operator: value}), [operator])
            for operator, value in chosen(complexity.counts[''], count).most_common()
        },
        by_module=by_module,
        by_stage=_stages(complexity, network, count),
        uncounted=dict(complexity.uncounted),
        never_ran=[name.removeprefix('model.') for name in complexity.never_ran],
    )


def missing(report: dict[str, Any]) -> list[str]:
    """Say what the totals of a report lack although inference needs it: operators, and parts that
    never ran.
    """
    operators = ', '.join(
        f'{name} ({times} times)' for name, times in Counter(report['uncounted']).most_common()
    )
    parts = ', '.join(name for name in report['never_ran'] if not in_training_alone(name))
    return [
        *([f'Not counted, because nobody knows how: {operators}.'] if operators else []),
        *([f'Not counted, because they never ran for an image alone: {parts}.'] if parts else []),
    ]


def _both(counts: Counter[str], count: Sequence[str]) -> dict[str, int]:
    return {unit: chosen(counts, count, flops=unit == 'flops').total() for unit in UNITS}


def _stages(
    complexity: Complexity, network: ImageNetwork, count: Sequence[str]
) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    parameters: Counter[str] = Counter()
    known: set[nn.Parameter] = set()
    for module, own in complexity.own().items():
        inside = module.removeprefix('model').removeprefix('.')
        # what the model does between its parts has no module of its own
        stage = (
            stage_of(inside, network.model)
            if module.startswith('model.')
            else module
            if inside
            else BETWEEN
        )
        counts.setdefault(stage, Counter()).update(own)
        for parameter in set(network.get_submodule(module).parameters(recurse=False)) - known:
            known.add(parameter)
            parameters[stage] += parameter.numel()
    rows = {
        stage: dict(parameters=parameters[stage], **_both(own, count))
        for stage, own in counts.items()
    }
    return {stage: row for stage, row in rows.items() if any(row.values())}


def as_text(
    report: dict[str, Any], view: str = 'operator', convention: str = 'macs', *, depth: int = 2
) -> str:
    """Return a report as text: what was counted, exact and rounded totals, and a table.

    Args:
        report: of :func:`describe`.
        view: the rows of the table, one of ``VIEWS``.
        convention: of the table, 'macs' or 'flops'; the totals are given in both.
        depth: how deep modules are listed.
    """
    batch = f'1 x 3 x {" x ".join(map(str, report["shape"]))}'
    proposals = '' if report['proposals'] is None else f', {report["proposals"]} proposals'
    lines = [
        f'{report["name"]}, input {batch}{proposals}, counted: {", ".join(report["count"])}',
        '',
    ]
    lines += [
        f'{kind:>9} parameters  {number:>19,}  {number / 1e6:>10.2f} M'
        for kind, number in report['parameters'].items()
    ]
    lines += [
        f'{unit.upper().replace("S", "s"):>20}  {report[unit]:>19,}  {report[unit] / 1e9:>10.2f} G '
        ' '
        f'{meaning[meaning.index("(") :]}'
        for unit, meaning in UNITS.items()
    ]
    excused = [name for name in report['never_ran'] if in_training_alone(name)]
    if excused:
        lines += [
            '',
            f'{", ".join(excused)} did not run: for training alone, in the parameters but not in '
            'the rest.',
        ]
    rows = report[f'by_{view}']
    if view == 'module':
        rows = {
            name: row for name, row in rows.items() if name.count('.') < depth and any(row.values())
        }
    has_parameters = view != 'operator'
    lines += [
        '',
        f'| {view} | '
        + ('parameters | ' if has_parameters else '')
        + f'{UNITS[convention]} | 10^9 | % |',
        '|---|' + '---:|' * (3 + has_parameters),
    ]
    for name, row in rows.items():
        share = 100 * row[convention] / max(1, report[convention])
        lines.append(
            f'| {name} | '
            + (f'{row["parameters"]:,} | ' if has_parameters else '')
            + f'{row[convention]:,} | {row[convention] / 1e9:.3f} | {share:.2f} |'
        )
    return '\n'.join(lines)
