"""The name that a user may have meant by a misspelt one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable

# arguments of stock ResNets, and why they have no meaning for other backbones
RESNET_ARGUMENTS = {
    'depth': 'the size is chosen by arch',
    'num_stages': 'the number of stages is fixed',
    'strides': 'the strides of the stages are fixed',
    'dilations': 'the stages have no dilation',
    'style': 'there are no bottlenecks whose stride could move',
    'contract_dilation': 'the stages have no dilation',
    'dcn': 'there is no 3x3 convolution that could deform; give spatial_cfg',
    'stage_with_dcn': 'there is no 3x3 convolution that could deform; give spatial_cfg',
    'plugins': 'there are no bottlenecks for plugins',
    'deep_stem': 'the stem is the published one',
    'avg_down': 'there are no bottlenecks with a shortcut of their own',
    'conv_cfg': 'the convolutions are the published ones',
    'zero_init_residual': 'there are no bottlenecks whose last norm could start at zero',
    'multi_grid': 'the stages have no dilation',
}


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like another one; None if no name is like it."""
    lower = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[matches[0]] if matches else None


def unknown_argument(owner: type, name: str) -> TypeError:
    """Return the error for an argument that a class does not have.

    Args:
        owner: Class that the user wrote.
        name: Name of the argument.
    """
    names: set[str] = set()
    for base in owner.__mro__:
        if '__init__' in vars(base) and base is not object:
            names.update(inspect.signature(vars(base)['__init__']).parameters)
    names -= {'self', 'args', 'kwargs', 'unknown'}
    match = nearest(name, names)
    message = f'{owner.__name__} has no argument {name!r}'
    if name in RESNET_ARGUMENTS:
        message += f', which is for ResNets alone: here {RESNET_ARGUMENTS[name]}. Leave it out by '
        message += '_delete_=True in the backbone'
    elif match:
        message += f'; did you mean {match!r}?'
    else:
        message += f'; it has {", ".join(sorted(names))}.'
    return TypeError(message)
