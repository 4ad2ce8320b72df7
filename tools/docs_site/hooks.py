"""Hooks of mkdocs: pages of the site that lie outside docs/, and notebooks as pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
# page of the site: file of the repository that it shows
PAGES = {'contributing.md': 'CONTRIBUTING.md', 'changelog.md': 'CHANGELOG.md'}
for _path in sorted((ROOT / 'configs').glob('*/README.md')):
    PAGES[f'configs/{_path.parent.name}.md'] = _path.relative_to(ROOT).as_posix()
# pages that are a tab of their own, whose tables need the room of the navigation
WIDE = ('index.md', 'benchmarks.md', 'model_zoo.md')
LINK = re.compile(r'(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))')


def on_config(config: Any) -> Any:
    """Name anchors as GitHub names them, so that a link holds in both places."""
    config.mdx_configs['toc']['slugify'] = slugify(case='lower')
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere, and a page for each notebook."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=rewrite_links(text, source, page)))
    for notebook in sorted((ROOT / 'docs').glob('notebooks/*.ipynb')):
        content = notebook_to_markdown(json.loads(notebook.read_text()), notebook.name)
        page = f'notebooks/{notebook.stem}.md'
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links of a page of docs/ to files elsewhere to the pages that show these, and hide the
    navigation of some pages.
    """
    uri = page.file.src_uri
    if uri in WIDE:
        page.meta['hide'] = ['navigation']
    if uri in PAGES:
        return markdown
    return rewrite_links(markdown, f'docs/{uri}', uri)


def rewrite_links(markdown: str, source: str, page: str) -> str:
    """Return Markdown whose relative links fit the site.

    A link to a file that the site does not show becomes plain text.

    Args:
        markdown: Text of the page.
        source: Path of its file in the repository.
        page: Path of the page in the site.
    """
    pages = {file: name for name, file in PAGES.items()}

    def target_of(match: re.Match) -> str | None:
        """Return the link's target in the site, or None if the site has no such page."""
        path = normpath(f'{Path(source).parent.as_posix()}/{match[1]}')
        if path in pages:
            path = pages[path]
        elif path.startswith('docs/'):
            path = path.removeprefix('docs/')
            # the page of a notebook shows it, and its own link downloads it
            path_of_page = path.replace('.ipynb', '.md')
            path = path if path_of_page == page else path_of_page
        else:
            return None
        return relpath(path, Path(page).parent.as_posix()) + (match[2] or '')

    def rewritten(match: re.Match) -> str:
        address = LINK.search(match[0])
        if address is None or '://' in address[1]:
            return match[0]
        target = target_of(address)
        text = match[1]
        return f'`{text.strip("`")}`' if target is None else f'[{text}]({target})'

    # pictures have a text that may be empty
    return re.sub(r'(?<!!)\[([^\]]*)\]\([^)\s]+\)', rewritten, markdown)


def notebook_to_markdown(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown: text, code and the output that is text.

    Args:
        notebook: Content of the file.
        name: Name of the file, which the page links.
    """
    parts = []
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
            continue
        parts.append(f'```python\n{source}\n```')
        for output in cell['outputs']:
            text = ''.join(output.get('text', []))
            if text:
                parts.append(f'```text\n{text.rstrip()}\n```')
    # below the title
    parts.insert(1, f'[Download the notebook]({name})')
    return '\n\n'.join(parts) + '\n'
