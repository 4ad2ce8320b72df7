"""The operators that the package registers, in the small configurations that they state."""

import sys
from importlib import import_module

from snippets import import_snippet

from mmrednet.layers import OPERATORS

# operators of 16 channels, as a config names them; tests may register others for themselves
EXAMPLES = {
    name: dict(type=name, **layer.example)
    for name, layer in OPERATORS.items()
    if layer.__module__.startswith('mmrednet.')
}
# likewise, what `pytest --operator FILE` registers
USERS = {}


def register_file(path):
    """Import a file, and enter the operators that it registers in ``USERS``."""
    before = set(OPERATORS)
    # other modules may import it by name
    sys.path.insert(0, str(path.resolve().parent))
    import_module(path.stem)
    for name in set(OPERATORS) - before:
        USERS[name] = dict(type=name, **OPERATORS[name].example)


def dynamic_conv():
    """Return the operator of docs/your_operator.md, which ``--operator`` may have registered."""
    if 'DynamicConv' not in OPERATORS:
        import_snippet('docs/your_operator.md', 0, 'dynamic_conv')
    return OPERATORS['DynamicConv']
