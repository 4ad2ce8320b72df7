"""Check the top-level keys of a config for misspelt ones, which would be ignored."""

from __future__ import annotations

import inspect

from mmengine.config import Config
from mmengine.runner import Runner

# keys that mmengine, mmdet, mmseg and our scripts read beside the runner's arguments
OTHER_KEYS = (
    'auto_scale_lr',
    'custom_imports',
    'data_preprocessor',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)
# shorter keys are too easily a name of the user's own
SHORTEST = 7


def check_keys(cfg: Config) -> None:
    """Check that no section of a config has nearly the name of one that is read.

    Args:
        cfg: Config. Its other keys are variables and may have any name.

    Raises:
        ValueError: A key differs from a known one by a letter or two.
    """
    names = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    names.update(OTHER_KEYS)
    for key, value in cfg.items():
        if key in names or len(key) < SHORTEST or not isinstance(value, dict | list):
            continue
        for name in names:
            if _letters_apart(key, name) <= 2:
                raise ValueError(
                    f'{key!r} is no section of a config and would be ignored; did you mean '
                    f'{name!r}? Rename it if it is a variable of your own.'
                )


def _letters_apart(left: str, right: str) -> int:
    """Return how many letters to insert, delete or replace to get from one word to another."""
    if abs(len(left) - len(right)) > 2:
        return abs(len(left) - len(right))
    row = list(range(len(right) + 1))
    for index, letter in enumerate(left, 1):
        previous, row = row, [index]
        for column, other in enumerate(right, 1):
            replaced = previous[column - 1] + (letter != other)
            row.append(min(replaced, previous[column] + 1, row[-1] + 1))
    return row[-1]
