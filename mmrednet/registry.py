"""The registries of the package, children of mmengine's, so that ``type='mmrednet.X'`` works in any
config.
"""

from importlib import import_module
from typing import Any

from .packages import require

require('mmrednet.registry', 'mmengine', 'mmcv')

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIMIZERS as ROOT_OPTIMIZERS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import VISUALIZERS as ROOT_VISUALIZERS
from mmengine.registry import DefaultScope, Registry

# tells mmengine how to count our operators
from . import flop_handles  # noqa: F401
from .spelling import nearest


class NamingRegistry(Registry):
    """A registry whose errors name the nearest registered name.

    A module that needs a package which is not there is left out. Its names are missing, those of
    the other modules are not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.import_errors: list[ImportError] = []
        self._imported: bool = False

    def import_from_location(self) -> None:
        """Import the modules that register names, and keep the errors of those that cannot be."""
        if self._imported:
            return
        for location in self._locations:
            try:
                import_module(location)
            except ImportError as error:
                self.import_errors.append(error)
        self._imported = True

    def get(self, key: str) -> Any:
        """Get what is registered under a name.

        Raises:
            ImportError: The module of the name needs a package that is not there.
            KeyError: ``mmrednet.<name>`` is not registered.
        """
        try:
            entry = self._get_from_framework(key) or super().get(key)
        except RuntimeError:
            entry = None
        # names without a scope may be those of parents or of a module path
        if entry is None and ('.' not in key or key.startswith('mmrednet.')):
            self._raise_missing(key.rpartition('.')[2])
        return entry

    def _get_from_framework(self, key: str) -> Any:
        """Get a name of the framework that a config is for, or None.

        mmengine gives all parts of a base named 'mmrednet::...' our scope, also the framework's.
        """
        self.import_from_location()
        scopes = [scope.scope_name for scope in DefaultScope._instance_dict.values()]
        if '.' in key or key in self.module_dict or scopes[-1:] != ['mmrednet']:
            return None
        outer = next((scope for scope in reversed(scopes) if scope != 'mmrednet'), None)
        framework = self._get_root_registry().children.get(outer)
        return framework.get(key) if framework else None

    def _raise_missing(self, name: str) -> None:
        for error in self.import_errors:
            if name in str(error):
                raise error
        names = set(self.module_dict)
        if self.parent is not None:
            names |= set(self.parent.module_dict)
        match = nearest(name, names)
        hint = f'did you mean {match!r}?' if match else 'docs/operators.md lists the names.'
        errors = ''.join(f' Not imported: {error}' for error in self.import_errors)
        raise KeyError(f'{name!r} is no registered {self.name} of mmrednet; {hint}{errors}')


MODELS = NamingRegistry(
    'model',
    parent=ROOT_MODELS,
    scope='mmrednet',
    locations=[
        'mmrednet.layers',
        'mmrednet.backbones',
        'mmrednet.necks',
        'mmrednet.heads',
        'mmrednet.panoptic',
        'mmrednet.pretraining',
    ],
)
DATASETS = NamingRegistry(
    'dataset',
    parent=ROOT_DATASETS,
    scope='mmrednet',
    locations=[
        'mmrednet.datasets.camvid',
        'mmrednet.datasets.panoptic_dataset',
        'mmrednet.datasets.cityscapes_panoptic',
        'mmrednet.datasets.mapillary_panoptic',
        'mmrednet.pretraining',
    ],
)
METRICS = NamingRegistry(
    'metric',
    parent=ROOT_METRICS,
    scope='mmrednet',
    locations=['mmrednet.evaluation.panoptic_metric', 'mmrednet.pretraining'],
)
TRANSFORMS = NamingRegistry(
    'transform',
    parent=ROOT_TRANSFORMS,
    scope='mmrednet',
    locations=[
        'mmrednet.datasets.checked_loading',
        'mmrednet.datasets.panoptic_transforms',
        'mmrednet.pretraining',
    ],
)
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope='mmrednet',
    locations=['mmrednet.engine.checkpoint_hook', 'mmrednet.analysis.attention_hook'],
)
VISUALIZERS = NamingRegistry(
    'visualizer',
    parent=ROOT_VISUALIZERS,
    scope='mmrednet',
    locations=['mmrednet.analysis.panoptic_visualizer'],
)
OPTIMIZERS = NamingRegistry(
    'optimizer', parent=ROOT_OPTIMIZERS, scope='mmrednet', locations=['mmrednet.engine.lookahead']
)
