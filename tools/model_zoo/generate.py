"""Write docs/model_zoo.md and its plots: published figures of every network beside ours.

Counts every network of docs/model_zoo.yml (about ten minutes on one core), or those that --only
names, and keeps what was counted in docs/model_zoo.json. --check compares instead of writing,
--measure times the classifiers.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from model_zoo.plots import draw, pictures
from model_zoo.rows import page, read_rows
from model_zoo.times import measure

DOCS = ROOT / 'docs'


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only',
        metavar='REGEX',
        help='count or time only networks whose names have this, and keep '
        'what is known of the others; "^$" counts nothing',
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
    parser.add_argument('--device', default='cpu', help='of --measure')
    return parser.parse_args()


def write(path, known):
    """Write what is known, a network to a line."""
    parts = []
    for name, entries in known.items():
        lines = ',\n'.join(
            f'  {json.dumps(key)}: {json.dumps(entry)}' for key, entry in entries.items()
        )
        parts.append(f' {json.dumps(name)}: {{\n{lines}\n }}')
    path.write_text('{\n' + ',\n'.join(parts) + '\n}\n')


def main():
    args = parse_args()
    rows, path = read_rows(DOCS / 'model_zoo.yml'), DOCS / 'model_zoo.json'
    known = json.loads(path.read_text()) if path.is_file() else dict(counts={}, times={})
    wanted = [row for row in rows if re.search(args.only or '', row.key)]
    if args.measure:
        known['times'][args.device] = measure(
            wanted, ROOT, args.device, known['times'].get(args.device)
        )
    stale = []
    for row in [] if args.measure else wanted:
        count = row.count(ROOT)
        same = count == known['counts'].get(row.key)
        stale += [] if same else [row.key]
        print(f'{row.key}: {"as before" if same else "new"}', flush=True)
        if not args.check:
            # row by row: the largest take a minute each
            known['counts'][row.key] = count
            write(path, known)
    if args.check:
        text = (DOCS / 'model_zoo.md').read_text()
        stale += (
            []
            if text == page(rows, known['counts'], pictures(known['times']))
            else ['docs/model_zoo.md']
        )
        print(
            f'Stale: {", ".join(stale)}.'
            if stale
            else f'{len(wanted)} networks and the page are as counted.'
        )
        return len(stale) > 0
    known['counts'] = {
        row.key: known['counts'][row.key] for row in rows if row.key in known['counts']
    }
    write(path, known)
    counted = [row for row in rows if row.key in known['counts']]
    draw(counted, known, DOCS / 'images')
    (DOCS / 'model_zoo.md').write_text(page(counted, known['counts'], pictures(known['times'])))
    return 0


if __name__ == '__main__':
    sys.exit(main())
