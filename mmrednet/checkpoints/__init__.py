"""Checkpoint files: read safely, told apart by their keys, converted, and compared with a network.

* ``reading``: file to tensors, by libraries that execute nothing; hashes; checks of values
* ``pickle_guard``: what is checked before torch unpickles a file
* ``formats``: table of published formats, detection, conversion of state dicts
* ``matching``: what of a state dict fits a network
* ``writing``: tensors to file

This package knows no model. ``mmrednet.backbones`` registers the formats of its models here, fills
networks (``load_pretrained``) and downloads files. ``mmrednet.convert`` converts whole files.
"""

from .formats import (
    FORMATS,
    Converted,
    Family,
    Format,
    Layout,
    choose_format,
    detect,
    register_family,
    to_mmrednet,
    to_published,
)
from .matching import Match, match, match_state, shapes_of
from .reading import Checkpoint, CheckpointError, read_checkpoint, sha256_of
from .writing import write_checkpoint

__all__ = [
    'FORMATS',
    'Checkpoint',
    'CheckpointError',
    'Converted',
    'Family',
    'Format',
    'Layout',
    'Match',
    'choose_format',
    'detect',
    'match',
    'match_state',
    'read_checkpoint',
    'register_family',
    'sha256_of',
    'shapes_of',
    'to_mmrednet',
    'to_published',
    'write_checkpoint',
]
