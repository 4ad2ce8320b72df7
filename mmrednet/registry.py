"""The registries of the package, children of mmengine's, so that ``type='mmrednet.X'`` works in any
config.
"""

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

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='mmrednet',
    locations=[
        'mmrednet.layers',
        'mmrednet.backbones',
        'mmrednet.necks',
        'mmrednet.heads',
        'mmrednet.pretraining',
    ],
)
DATASETS = Registry(
    'dataset',
    parent=ROOT_DATASETS,
    scope='mmrednet',
    locations=['mmrednet.datasets.camvid', 'mmrednet.pretraining'],
)
METRICS = Registry(
    'metric', parent=ROOT_METRICS, scope='mmrednet', locations=['mmrednet.pretraining']
)
TRANSFORMS = Registry(
    'transform',
    parent=ROOT_TRANSFORMS,
    scope='mmrednet',
    locations=['mmrednet.datasets.checked_loading', 'mmrednet.pretraining'],
)
HOOKS = Registry(
    'hook', parent=ROOT_HOOKS, scope='mmrednet', locations=['mmrednet.engine.checkpoint_hook']
)
