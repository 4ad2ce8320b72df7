"""Published files of weights: read safely, told apart by their names, and brought into ours."""

from .conversion import Converted, choose, detect, to_ours, to_theirs
from .errors import CheckpointError
from .files import Reversal, convert_file, reverse_file
from .formats import FORMATS, Format
from .inference import backbone_config, build_backbone, shapes_of
from .matching import Match, match
from .pretrained import load_pretrained
from .reading import Checkpoint, read_checkpoint, sha256_of
from .writing import write_checkpoint

__all__ = [
    'FORMATS',
    'Checkpoint',
    'CheckpointError',
    'Converted',
    'Format',
    'Match',
    'Reversal',
    'backbone_config',
    'build_backbone',
    'choose',
    'convert_file',
    'detect',
    'load_pretrained',
    'match',
    'read_checkpoint',
    'reverse_file',
    'sha256_of',
    'shapes_of',
    'to_ours',
    'to_theirs',
    'write_checkpoint',
]
