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
# conv_cfg, a usual variable, is two letters apart from env_cfg
SHORTEST_WITH_TWO_ERRORS = 10


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
            allowed = 2 if len(name) >= SHORTEST_WITH_TWO_ERRORS else 1
            if _letters_apart(key, name) <= allowed or _is_swapped(key, name):
                raise ValueError(
                    f'{key!r} is no section of a config and would be ignored; did you mean '
                    f'{name!r}? Rename it if it is a variable of your own.'
                )


def _is_swapped(left: str, right: str) -> bool:
    """Return whether two neighbouring letters of one word are swapped in the other."""
    if len(left) != len(right):
        return False
    pairs = list(zip(left, right, strict=True))
    different = [index for index, (one, other) in enumerate(pairs) if one != other]
    if len(different) != 2 or different[1] - different[0] != 1:
        return False
    first, second = different
    return pairs[first] == pairs[second][::-1]


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
