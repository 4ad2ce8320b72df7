"""Write docs/model_zoo.md and its plots: published figures of every network beside ours; and the
README.md and metafile.yml of each folder of configs.

Counts every network of docs/model_zoo.yml, which takes about ten minutes on one core, or those that
match --only. The counts are kept in docs/model_zoo.json. --check compares instead of writing,
--measure times the classifiers.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from model_zoo.families import family_files, read_families
from model_zoo.page import page
from model_zoo.plots import draw, pictures
from model_zoo.rows import read_rows
from model_zoo.times import measure

DOCS = ROOT / 'docs'


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only',
        metavar='REGEX',
        default='',
        help='count or time only networks whose names match, and keep the figures of the others; '
        '"^$" counts nothing',
    )
    work = parser.add_mutually_exclusive_group()
    work.add_argument(
        '--check',
        action='store_true',
        help='write nothing; the exit status is 1 if a count or the page is stale',
    )
    work.add_argument(
        '--measure', action='store_true', help='count nothing, and time the classifiers'
    )
    parser.add_argument('--device', default='cpu', help='device of --measure')
    return parser.parse_args()


def read_figures():
    """Return the counts and times of earlier calls."""
    path = DOCS / 'model_zoo.json'
    return json.loads(path.read_text()) if path.is_file() else dict(counts={}, times={})


def write_figures(figures):
    """Write counts and times, a network to a line."""
    parts = []
    for name, entries in figures.items():
        lines = [f'  {json.dumps(key)}: {json.dumps(entry)}' for key, entry in entries.items()]
        content = ',\n'.join(lines)
        parts.append(f' {json.dumps(name)}: {{\n{content}\n }}')
    (DOCS / 'model_zoo.json').write_text('{\n' + ',\n'.join(parts) + '\n}\n')


def count(rows, figures, *, keep):
    """Count networks again and return the names of those whose counts differ.

    Args:
        rows: Rows of the networks.
        figures: Earlier counts and times. New counts replace the earlier ones if they are kept.
        keep: Whether to keep new counts.
    """
    stale = []
    for row in rows:
        counts = row.count(ROOT)
        is_new = counts != figures['counts'].get(row.key)
        print(f'{row.key}: {"new" if is_new else "as before"}', flush=True)
        if is_new:
            stale.append(row.key)
        if keep:
            figures['counts'][row.key] = counts
            # row by row: the largest take a minute each
            write_figures(figures)
    return stale


def check(rows, selected, figures):
    """Print which counts and whether the page are stale, and return the exit status."""
    stale = count(selected, figures, keep=False)
    expected = page(rows, figures['counts'], pictures(figures['times']))
    if (DOCS / 'model_zoo.md').read_text() != expected:
        stale.append('docs/model_zoo.md')
    files = family_files(read_families(DOCS / 'families.yml'), rows, figures['counts'])
    for name, text in files.items():
        path = ROOT / name
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
    if stale:
        print(f'Stale: {", ".join(stale)}.')
        return 1
    print(f'{len(selected)} networks and the page are as counted.')
    return 0


def write_page(rows, figures):
    """Write the page and its plots, of the networks that have been counted."""
    counted = [row for row in rows if row.key in figures['counts']]
    # networks that are no longer in model_zoo.yml go
    figures['counts'] = {row.key: figures['counts'][row.key] for row in counted}
    write_figures(figures)
    draw(counted, figures, DOCS / 'images')
    text = page(counted, figures['counts'], pictures(figures['times']))
    (DOCS / 'model_zoo.md').write_text(text)
    files = family_files(read_families(DOCS / 'families.yml'), counted, figures['counts'])
    for name, content in files.items():
        (ROOT / name).write_text(content)


def main():
    args = parse_args()
    rows = read_rows(DOCS / 'model_zoo.yml')
    figures = read_figures()
    selected = [row for row in rows if re.search(args.only, row.key)]
    if args.check:
        return check(rows, selected, figures)
    if args.measure:
        earlier = figures['times'].get(args.device)
        figures['times'][args.device] = measure(selected, ROOT, args.device, earlier)
    else:
        count(selected, figures, keep=True)
    write_page(rows, figures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
