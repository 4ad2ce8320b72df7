"""The hooks of the documentation site, for links, notebooks and docstrings."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tools/docs_site'))

from docstrings import to_markdown  # noqa: E402
from hooks import notebook_to_markdown, rewrite_links  # noqa: E402


def test_links_lead_to_pages_of_the_site():
    text = '[a](../CONTRIBUTING.md#rules) [b](kernels.md) ![](images/demo.png) [c](https://x.org)'
    expected = '[a](contributing.md#rules) [b](kernels.md) ![](images/demo.png) [c](https://x.org)'
    assert rewrite_links(text, 'docs/index.md', 'index.md') == expected
    # of a page that lies in a folder, from a file outside of docs
    text = '[zoo](../../docs/model_zoo.md), [own](#below)'
    rewritten = rewrite_links(text, 'configs/rednet/README.md', 'configs/rednet.md')
    assert rewritten == '[zoo](../model_zoo.md), [own](#below)'
    assert rewrite_links('[x](docs/api/ops.md)', 'CONTRIBUTING.md', 'a.md') == '[x](api/ops.md)'


def test_a_link_to_a_file_that_the_site_lacks_is_its_name():
    text = 'see [`config`](van-b0.py) and [the file](../../Makefile)'
    rewritten = rewrite_links(text, 'configs/van/README.md', 'configs/van.md')
    assert rewritten == 'see `config` and `the file`'


def test_a_notebook_is_linked_as_its_page_except_by_itself():
    link = '[notebook](notebooks/a.ipynb)'
    assert rewrite_links(link, 'docs/index.md', 'index.md') == '[notebook](notebooks/a.md)'
    own = ('[Download](a.ipynb)', 'docs/notebooks/a.md', 'notebooks/a.md')
    assert rewrite_links(*own) == '[Download](a.ipynb)'


def test_notebooks_become_markdown():
    cells = [
        dict(cell_type='markdown', source=['# Title\n', 'Text']),
        dict(cell_type='code', source=['print(1)'], outputs=[dict(text=['1\n'])]),
    ]
    assert notebook_to_markdown(dict(cells=cells), 'a.ipynb') == (
        '# Title\nText\n\n[Download the notebook](a.ipynb)\n\n'
        '```python\nprint(1)\n```\n\n```text\n1\n```\n'
    )


def test_docstrings_become_markdown():
    text = to_markdown(
        'Attend.\n\n.. math:: y = \\mathrm{max}_j\n          x_j\n\n(equation 1). See '
        ':class:`Window` and :func:`mmrednet.fuse`; :math:`\\alpha` as in::\n\n    code'
    )
    assert text.startswith('Attend.\n\n<div class="formula"><math')
    assert '<mi mathvariant="normal">max</mi>' in text
    # the block has ended, and its second line is part of the formula
    assert '</math></div>\n\n(equation 1). See `Window` and <autoref ' in text
    assert 'identifier="mmrednet.fuse" optional><code>fuse</code>' in text
    assert '<mi>&#x003B1;</mi>' in text
    assert text.endswith('as in:\n\n    code')


def test_lines_of_a_formula_are_aligned():
    text = to_markdown('Two.\n\n    .. math::\n        a &= b \\\\\n        c &= d\n\nEnd.')
    assert '<mtable' in text
    assert text.endswith('</div>\n\nEnd.')
