"""Docstrings for the site: our formulas and references are reStructuredText, the site Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

# a directive, and its block up to a blank line
MATH = re.compile(r'^( *)\.\. math::\s*((?:.*\S.*\n?)+)', re.MULTILINE)
INLINE_MATH = re.compile(r':math:`([^`]+)`')
# a word that the converter takes apart
UPRIGHT = re.compile(r'(?:<mi mathvariant="normal">\w</mi>)+')
ROLE = re.compile(r':(?:func|class|mod|meth|data):`~?([\w.]+)`')


class MarkdownDocstrings(griffe.Extension):
    """Turn the docstring of each object into Markdown."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring is None:
            return
        text = to_markdown(obj.docstring.value)
        if obj.is_class and any(str(base) == 'NamedTuple' for base in obj.bases):
            # its fields have types, its constructor is not in the source
            text = text.replace('Args:\n', 'Attributes:\n')
        obj.docstring.value = text


def to_markdown(text: str) -> str:
    """Return a docstring with MathML formulas, and with links in place of roles."""
    text = MATH.sub(_formula, text)
    text = INLINE_MATH.sub(lambda match: _mathml(match[1], 'inline'), text)
    text = ROLE.sub(_reference, text)
    # a paragraph before a block of code
    return re.sub(r'::$', ':', text, flags=re.MULTILINE)


def _formula(match: re.Match) -> str:
    """Return a formula that browsers draw without a script."""
    latex = match[2]
    if '&' in latex:
        latex = rf'\begin{{align*}}{latex}\end{{align*}}'
    return f'{match[1]}<div class="formula">{_mathml(latex, "block")}</div>\n'


def _mathml(latex: str, display: str) -> str:
    def joined(match: re.Match) -> str:
        word = re.sub('<.*?>', '', match[0])
        return f'<mi mathvariant="normal">{word}</mi>'

    return UPRIGHT.sub(joined, convert(' '.join(latex.split()), display=display))


def _reference(match: re.Match) -> str:
    """Return a link where the site has the object, else its name."""
    name = match[1]
    if not name.startswith('mmrednet.'):
        return f'`{name}`'
    text = name.rpartition('.')[2]
    return f'<autoref identifier="{name}" optional><code>{text}</code></autoref>'
