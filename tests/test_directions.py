"""Imports between the parts of the package run downward, in the order of its layers.

Every import counts, at the top of a file or inside a function, and so does
``importlib.import_module`` of a constant name. What mmengine's registries import when a name is
looked up does not count: they know every model.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mmrednet'
# A part may import parts of earlier rows, and itself. Parts of one row do not import each other.
ORDER = (
    ('packages', 'spelling', 'memory', 'shipped'),
    ('config_names',),
    ('ops', 'checkpoints'),
    ('flop_handles',),
    ('registry',),
    ('layers',),
    ('diagnosis',),
    ('backbones', 'necks'),
    ('fusion',),
    ('heads',),
    ('panoptic',),
    ('datasets', 'pretraining'),
    ('evaluation',),
    ('engine',),
    ('analysis', 'utils'),
    ('export',),
    ('convert',),
    # the package itself offers functions of any part that is no command
    ('mmrednet',),
    ('cli',),
    ('commands',),
    ('__main__',),
)
RANKS = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
FRAMEWORKS = ('mmdet', 'mmseg')
# the parts that may import a framework
HOSTS = ('heads', 'panoptic', 'datasets', 'evaluation', 'engine', 'commands')


def modules_of(package):
    """Return the files of a package by the names of their modules."""
    modules = {}
    for path in sorted(package.rglob('*.py')):
        parts = path.relative_to(package.parent).with_suffix('').parts
        if '.mim' in parts:
            # copies of the tools
            continue
        if parts[-1] == '__init__':
            parts = parts[:-1]
        modules['.'.join(parts)] = path
    return modules


def resolve(name, level, parents):
    """Return the absolute form of a name with this many leading dots."""
    base = parents[: len(parents) - level + 1] if level else []
    return '.'.join([*base, *([name] if name else [])])


def imports_of(path, package):
    """Return (line, name) for each import of a file.

    ``from a import b`` gives ``a.b``, which is a module or a name in the module ``a``.
    """
    parents = list(path.relative_to(package.parent).parts[:-1])
    imports = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imports += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve(node.module, node.level, parents)
            # the version of the package is no part of it
            names = [alias.name for alias in node.names if alias.name != '__version__']
            imports += [(node.lineno, f'{module}.{name}') for name in names]
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func).rpartition('.')[2]
            name = getattr(node.args[0], 'value', None)
            if function in ('import_module', '__import__') and isinstance(name, str):
                stripped = name.lstrip('.')
                level = len(name) - len(stripped)
                imports.append((node.lineno, resolve(stripped, level, parents)))
    return imports


def edges_of(package):
    """Return (module, line, module or name outside) for each import in a package."""
    modules = modules_of(package)
    edges = []
    for module, path in modules.items():
        for line, name in imports_of(path, package):
            target = name
            while target.startswith(f'{package.name}.') and target not in modules:
                target = target.rpartition('.')[0]
            edges.append((module, line, target))
    return edges


def part_of(module):
    """Return the part that a module belongs to: the package, or a child of it."""
    return module.split('.')[:2][-1]


def upward_imports(package):
    lines = []
    for module, line, target in edges_of(package):
        part, other = part_of(module), part_of(target)
        is_ours = target.split('.')[0] == package.name
        # a part without a rank may import nothing
        if is_ours and other != part and RANKS.get(other, len(ORDER)) >= RANKS.get(part, -1):
            lines.append(f'{module}, line {line}: {target}')
    return lines


def framework_imports(package):
    lines = []
    for module, line, target in edges_of(package):
        if target.split('.')[0] in FRAMEWORKS and part_of(module) not in HOSTS:
            lines.append(f'{module}, line {line}: {target}')
    return lines


def cycle(package):
    """Return modules that import each other in a circle, the first again at the end."""
    graph = {module: set() for module in modules_of(package)}
    for module, _, target in edges_of(package):
        if target in graph and target != module:
            graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_part_has_a_rank():
    parts = {part_of(module) for module in modules_of(PACKAGE)}
    assert parts <= set(RANKS), 'add new parts to ORDER, above what they import'


def test_imports_run_downward():
    upward = upward_imports(PACKAGE)
    assert not upward, '\n'.join(['imports that run upward:', *upward])


def test_few_parts_import_the_frameworks():
    imports = framework_imports(PACKAGE)
    assert not imports, '\n'.join(['imports of mmdet or mmseg:', *imports])


def test_no_modules_import_each_other_in_a_circle():
    modules = cycle(PACKAGE)
    assert not modules, ' -> '.join(modules)


@pytest.fixture
def package(tmp_path):
    """Return a function that writes a package of these files."""

    def write(**files):
        root = tmp_path / 'mmrednet'
        for name, text in {'__init__': '', **files}.items():
            path = root / f'{name.replace("__in__", "/")}.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


@pytest.mark.parametrize(
    'text',
    [
        'import mmrednet.engine',
        'from mmrednet import engine',
        'from mmrednet.engine import load_config',
        'from ..engine import load_config',
        'from .. import engine',
        'def build():\n    from ..engine import load_config',
        "import importlib\nimportlib.import_module('mmrednet.engine')",
        "from importlib import import_module\nimport_module('..engine', __name__)",
        'from .. import *',
    ],
)
def test_an_upward_import_is_found(package, text):
    root = package(engine='', layers__in__sasa=text)
    assert [line.split(',')[0] for line in upward_imports(root)] == ['mmrednet.layers.sasa']


def test_downward_imports_are_none(package):
    root = package(
        ops__in__local='import torch',
        layers__in__sasa='from ..ops import local\nfrom . import san',
        layers__in__san='from ..ops.local import aggregate',
        engine='from .layers.sasa import SASA\nfrom mmdet.models import RetinaHead',
    )
    assert upward_imports(root) == framework_imports(root) == cycle(root) == []


def test_siblings_do_not_import_each_other(package):
    root = package(backbones='from .necks import FPN', necks='')
    assert upward_imports(root) == ['mmrednet.backbones, line 1: mmrednet.necks']


def test_an_import_of_a_framework_is_found(package):
    root = package(layers='def build():\n    from mmdet.models import RetinaHead')
    assert framework_imports(root) == ['mmrednet.layers, line 2: mmdet.models.RetinaHead']


def test_a_circle_is_found(package):
    root = package(
        layers__in__san='from .sasa import SASA',
        layers__in__sasa='def build():\n    from .gates import SE',
        layers__in__gates='from . import san',
    )
    circle = cycle(root)
    assert len(circle) == 4
    assert {module.rpartition('.')[2] for module in circle} == {'san', 'sasa', 'gates'}
