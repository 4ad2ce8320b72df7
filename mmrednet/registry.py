"""The registries of the package, children of mmengine's, so that ``type='mmrednet.X'`` works in any
config.
"""

from typing import Any

from .packages import require

require('mmrednet.registry', 'mmengine', 'mmcv')

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry

# tells mmengine how to count our operators
from . import flop_handles  # noqa: F401
from .spelling import nearest


class NamingRegistry(Registry):
    """A registry whose errors name the nearest registered name."""

    def get(self, key: str) -> Any:
        """Return what is registered under a name.

        Raises:
            KeyError: ``mmrednet.<name>`` is not registered.
        """
        try:
            entry = super().get(key)
        except RuntimeError:
            entry = None
        # names without a scope may be those of parents or of a module path
        if entry is None and ('.' not in key or key.startswith('mmrednet.')):
            names = set(self.module_dict)
            if self.parent is not None:
                names |= set(self.parent.module_dict)
            name = key.rpartition('.')[2]
            match = nearest(name, names)
            hint = f'did you mean {match!r}?' if match else 'docs/operators.md lists the names.'
            raise KeyError(f'{name!r} is no registered {self.name} of mmrednet; {hint}')
        return entry


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
    locations=['mmrednet.datasets.camvid', 'mmrednet.pretraining'],
)
METRICS = NamingRegistry(
    'metric', parent=ROOT_METRICS, scope='mmrednet', locations=['mmrednet.pretraining']
)
TRANSFORMS = NamingRegistry(
    'transform',
    parent=ROOT_TRANSFORMS,
    scope='mmrednet',
    locations=['mmrednet.datasets.checked_loading', 'mmrednet.pretraining'],
)
HOOKS = Registry(
    'hook', parent=ROOT_HOOKS, scope='mmrednet', locations=['mmrednet.engine.checkpoint_hook']
)
