"""From a config and command-line options to a runner, for mmdet and for mmseg."""

from ..packages import require

require('mmrednet.engine', 'mmengine')

from .checkpoint_hook import ResumableCheckpointHook
from .class_check import check_classes
from .data_check import add_check_options, check_data
from .fit_check import FitHook, check_fit
from .hosts import HOSTS, allow_checkpoint_globals, build_runner, load_config, read_config, scope_of
from .kept_memory import keep_memory_on_cpu
from .label_check import check_labels_when_loaded
from .name_hints import named_types
from .options import (
    add_config_options,
    add_launcher_options,
    add_train_options,
    apply_test_options,
    apply_train_options,
)
from .pretrained_check import check_pretrained

__all__ = [
    'HOSTS',
    'FitHook',
    'ResumableCheckpointHook',
    'add_check_options',
    'add_config_options',
    'add_launcher_options',
    'add_train_options',
    'allow_checkpoint_globals',
    'apply_test_options',
    'apply_train_options',
    'build_runner',
    'check_classes',
    'check_data',
    'check_fit',
    'check_labels_when_loaded',
    'check_pretrained',
    'keep_memory_on_cpu',
    'load_config',
    'named_types',
    'read_config',
    'scope_of',
]
