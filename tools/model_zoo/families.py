"""A README.md and a metafile.yml of each folder of configs, and the index of the metafiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .rows import Row

# names of mim for what is measured, by the metrics of docs/model_zoo.yml
TASKS = {
    'top-1': ('Image Classification', 'Top 1 Accuracy'),
    'box AP': ('Object Detection', 'box AP'),
    'mask AP': ('Instance Segmentation', 'mask AP'),
    'mIoU': ('Semantic Segmentation', 'mIoU'),
    'PQ': ('Panoptic Segmentation', 'PQ'),
}
PUBLISHED = (
    'Accuracies are quoted from the publication. **We did not reproduce them.** Parameters and '
    'multiply-adds are counted here, see [the model zoo](../../docs/model_zoo.md).'
)


def family_files(
    families: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], counts: Mapping[str, Any]
) -> dict[str, str]:
    """Return the contents of the files, by their paths from the root.

    Args:
        families: Content of ``docs/families.yml``.
        rows: Rows of the networks.
        counts: Result of :meth:`Row.count` by the keys of the rows.

    Raises:
        KeyError: A folder of configs is missing in ``families``.
    """
    files = {}
    for folder in sorted({row.config.partition('/')[0] for row in rows if row.config}):
        if folder not in families:
            raise KeyError(f'docs/families.yml must have an entry for the folder configs/{folder}')
        own = [row for row in rows if row.config.startswith(f'{folder}/')]
        metafile = _metafile(families[folder], own, counts)
        files[f'configs/{folder}/metafile.yml'] = _dump(metafile)
        files[f'configs/{folder}/README.md'] = _readme(families[folder], own, counts)
    imports = [name for name in files if name.endswith('.yml')]
    files['model-index.yml'] = _dump(dict(Import=imports))
    return files


def _dump(content: Any) -> str:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return '# written by tools/model_zoo/generate.py\n' + text


def _scores(row: Row) -> list[tuple[str, str]]:
    """Return name and published value of each accuracy."""
    values = row.score.split(' / ') if row.score else []
    # a detector without masks has the first alone
    return list(zip(row.metrics.split(' / '), values, strict=False))


def _results(row: Row) -> list[dict[str, Any]]:
    """Return the published accuracies in the form of mim: a task and a figure for each."""
    results = []
    for name, value in _scores(row):
        if name in TASKS:
            task, metric = TASKS[name]
            results.append(dict(Task=task, Dataset=row.task, Metrics={metric: float(value)}))
    return results


def _metafile(
    family: Mapping[str, Any], rows: Sequence[Row], counts: Mapping[str, Any]
) -> dict[str, Any]:
    collection: dict[str, Any] = dict(Name=family['title'])
    if 'paper' in family:
        collection['Paper'] = dict(Title=family['paper'], URL=family['url'])
    collection['README'] = f'configs/{rows[0].config.partition("/")[0]}/README.md'
    models = []
    for row in rows:
        entry: dict[str, Any] = {
            'Name': row.config.partition('/')[2],
            'In Collection': family['title'],
            'Config': f'configs/{row.config}.py',
            'Metadata': {'Parameters': counts[row.key][row.parameters]},
        }
        results = _results(row)
        if results:
            entry['Results'] = results
        models.append(entry)
    return dict(Collections=[collection], Models=models)


def _readme(family: Mapping[str, Any], rows: Sequence[Row], counts: Mapping[str, Any]) -> str:
    title = family['title']
    lines = [f'# {title}', '']
    if 'paper' in family:
        lines += [f'> [{family["paper"]}]({family["url"]}), {family["year"]}', '']
    lines += [family['abstract'], '']
    has_published = any(row.score for row in rows)
    if has_published:
        lines += [PUBLISHED, '']
    lines += ['| config | data | parameters, 10^6 | accuracy, published |', '|---|---|---:|---|']
    for row in rows:
        name = row.config.partition('/')[2]
        parameters = counts[row.key][row.parameters] / 1e6
        scores = ', '.join(f'{value} {metric}' for metric, value in _scores(row))
        cells = [f'[{name}]({name}.py)', row.task or '-', f'{parameters:.2f}', scores or '-']
        lines.append(f'| {" | ".join(cells)} |')
    example = rows[0].config
    program = 'pretrain' if example.endswith(('imagenet', 'single-shapes')) else 'train'
    lines += ['', f'    python tools/{program}.py configs/{example}.py', '']
    return '\n'.join(lines)


def read_families(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``docs/families.yml``."""
    return yaml.safe_load(path.read_text())
