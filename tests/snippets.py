"""Python that pages of the documentation show."""

import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def snippets(page):
    """Return the Python blocks of a page, by its path in the repository."""
    return re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def import_snippet(page, index, name):
    """Return a block of a page as an imported module, so that its classes can be pickled."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(snippets(page)[index], module.__dict__)
    return module
