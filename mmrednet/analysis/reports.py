"""What a network takes, as a dict for a file and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from .counting import DEFAULT_COUNT, Complexity, chosen
from .networks import ImageNetwork, stage_of

UNITS = {'macs': 'MACs (a multiply-add is one)', 'flops': 'FLOPs (a multiply-add is two)'}
VIEWS = ('operator', 'module', 'stage')
PARAMETERS = ('all', 'trainable', 'frozen')


def describe(complexity: Complexity, network: ImageNetwork, *, name: str, shape: Sequence[int],
             count: Sequence[str] = DEFAULT_COUNT) -> dict[str, Any]:
    """Return all that is known of a network, in exact integers.

    Args:
        complexity: of ``network``.
        network: what was counted.
        name: to call it by.
        shape: (H, W) of the image.
        count: categories or operators, see :meth:`Complexity.operators`.

    Returns:
        name, shape, proposals (None without a second stage), count, parameters, macs, flops, and by_operator,
        by_module and by_stage with macs and flops of each; the latter two with parameters too; uncounted.
    """
    modules = [module for module in complexity.counts if module.startswith('model.')] or ['']
    by_module = {module.removeprefix('model.'): dict(
        parameters=complexity.parameters(module).all, **_both(complexity.counts[module], count)) for module in modules}
    return dict(
        name=name, shape=list(shape), proposals=network.proposals if network.two_stage else None, count=list(count),
        parameters={kind: getattr(complexity.parameters(), kind) for kind in PARAMETERS},
        **_both(complexity.counts[''], count),
        by_operator={operator: _both(Counter({operator: value}), [operator])
                     for operator, value in chosen(complexity.counts[''], count).most_common()},
        by_module=by_module, by_stage=_stages(complexity, network, count), uncounted=dict(complexity.uncounted))


def _both(counts: Counter[str], count: Sequence[str]) -> dict[str, int]:
    return {unit: chosen(counts, count, flops=unit == 'flops').total() for unit in UNITS}


def _stages(complexity: Complexity, network: ImageNetwork, count: Sequence[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    parameters: Counter[str] = Counter()
    known: set[nn.Parameter] = set()
    for module, own in complexity.own().items():
        inside = module.removeprefix('model').removeprefix('.')
        stage = stage_of(inside, network.model) if module.startswith('model.') else module or 'other'
        counts.setdefault(stage, Counter()).update(own)
        for parameter in set(network.get_submodule(module).parameters(recurse=False)) - known:
            known.add(parameter)
            parameters[stage] += parameter.numel()
    rows = {stage: dict(parameters=parameters[stage], **_both(own, count)) for stage, own in counts.items()}
    return {stage: row for stage, row in rows.items() if any(row.values())}


def as_text(report: dict[str, Any], view: str = 'operator', convention: str = 'macs', *, depth: int = 2) -> str:
    """Return a report as text: what was counted, exact and rounded totals, and a table.

    Args:
        report: of :func:`describe`.
        view: the rows of the table, one of ``VIEWS``.
        convention: of the table, 'macs' or 'flops'; the totals are given in both.
        depth: how deep modules are listed.
    """
    batch = f'1 x 3 x {" x ".join(map(str, report["shape"]))}'
    proposals = '' if report['proposals'] is None else f', {report["proposals"]} proposals'
    lines = [f'{report["name"]}, input {batch}{proposals}, counted: {", ".join(report["count"])}', '']
    lines += [f'{kind:>9} parameters  {number:>19,}  {number / 1e6:>10.2f} M' for kind, number in
              report['parameters'].items()]
    lines += [f'{unit.upper().replace("S", "s"):>20}  {report[unit]:>19,}  {report[unit] / 1e9:>10.2f} G  '
              f'{meaning[meaning.index("("):]}' for unit, meaning in UNITS.items()]
    rows = report[f'by_{view}']
    if view == 'module':
        rows = {name: row for name, row in rows.items() if name.count('.') < depth and any(row.values())}
    has_parameters = view != 'operator'
    lines += ['', f'| {view} | ' + ('parameters | ' if has_parameters else '') + f'{UNITS[convention]} | 10^9 | % |',
              '|---|' + '---:|' * (3 + has_parameters)]
    for name, row in rows.items():
        share = 100 * row[convention] / max(1, report[convention])
        lines.append(f'| {name} | ' + (f'{row["parameters"]:,} | ' if has_parameters else '')
                     + f'{row[convention]:,} | {row[convention] / 1e9:.3f} | {share:.2f} |')
    return '\n'.join(lines)
