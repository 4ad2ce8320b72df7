"""The ``mmrednet`` command: the table of its subcommands, and what they have in common.

Each subcommand is a module with two functions: ``make_parser()`` returns its argument parser, and
``main(argv=None)`` runs it and may return an exit status. Modules are imported when they are
called, so that ``mmrednet --help`` loads neither torch nor the OpenMMLab stack.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, TracebackType

from . import __version__
from .spelling import nearest

# set to 1 to see where an error was raised
TRACEBACK = 'MMREDNET_TRACEBACK'
# modules whose errors say what is wrong in the user's terms
EXPLAINING = (
    'mmrednet.checkpoints',
    'mmrednet.commands',
    'mmrednet.config_names',
    'mmrednet.convert',
    'mmrednet.engine',
    'mmrednet.export',
    'mmrednet.packages',
    'mmrednet.pretraining',
    'mmrednet.registry',
    'mmrednet.shipped',
)


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Args:
        module: Module with ``make_parser()`` and ``main(argv=None)``.
        help: Line of ``mmrednet --help``.
        example: A call, shown by ``--help``.
    """

    module: str
    help: str
    example: str


DETECTOR = 'mmrednet::shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
COMMANDS = {
    'demo': Command(
        'mmrednet.commands.demo',
        'write synthetic data, train a small network on it, draw and evaluate',
        'mmrednet demo',
    ),
    'train': Command(
        'mmrednet.commands.train',
        'train the model of a config',
        f'mmrednet train {DETECTOR} --work-dir runs/shapes',
    ),
    'test': Command(
        'mmrednet.commands.test',
        'evaluate a checkpoint with the metric of its config',
        f'mmrednet test {DETECTOR} runs/shapes/iter_1700.pth',
    ),
    'pretrain': Command(
        'mmrednet.commands.pretrain',
        'train or evaluate a classifier on images in one folder per class',
        'mmrednet pretrain mmrednet::rednet/rednet50_64xb32-130e_imagenet.py --data data/imagenet',
    ),
    'infer': Command(
        'mmrednet.commands.infer',
        'draw the predictions of a checkpoint on images',
        f'mmrednet infer photo.jpg {DETECTOR} runs/shapes/iter_1700.pth --out-dir pictures',
    ),
    'export': Command(
        'mmrednet.commands.export',
        'write a model as ONNX, OpenVINO, AOTInductor package or exported program, and check it',
        f'mmrednet export {DETECTOR} runs/shapes/iter_1700.pth --to onnx',
    ),
    'draw': Command(
        'mmrednet.commands.draw',
        'draw predictions beside the ground truth, or what operators apply to a photograph',
        f'mmrednet draw {DETECTOR} runs/shapes/iter_1700.pth photo.jpg --layers "backbone.*"',
    ),
    'flops': Command(
        'mmrednet.commands.flops',
        'count parameters and multiply-adds',
        'mmrednet flops mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py --by stage',
    ),
    'convert': Command(
        'mmrednet.commands.convert',
        'convert a published checkpoint to our keys, or back',
        'mmrednet convert rednet50.pth rednet50.safetensors',
    ),
    'configs': Command(
        'mmrednet.commands.configs',
        'list, search or copy the configs of the package',
        'mmrednet configs copy mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py --flat',
    ),
    'tool': Command(
        'mmrednet.commands.tool',
        'run a script of mmdet, mmseg or mmrednet, such as browse_dataset',
        f'mmrednet tool browse_dataset {DETECTOR} --output-dir pictures --not-show',
    ),
    'doctor': Command(
        'mmrednet.commands.doctor',
        'report versions and kernels, run every operator, and say how to mend what fails',
        'mmrednet doctor',
    ),
    'completion': Command(
        'mmrednet.commands.completion',
        'print the completion for bash or zsh',
        'eval "$(mmrednet completion bash)"',
    ),
}


def load(name: str) -> ModuleType:
    """Import the module of a subcommand."""
    return import_module(COMMANDS[name].module)


def overview() -> str:
    """Return the text of ``mmrednet --help``."""
    width = max(map(len, COMMANDS))
    rows = [f'  {name:<{width}}  {command.help}' for name, command in COMMANDS.items()]
    examples = [f'  {command.example}' for command in COMMANDS.values()]
    return '\n'.join(
        [
            'usage: mmrednet COMMAND [options]',
            '',
            'Attention-like operators for detectors and segmenters of the OpenMMLab stack.',
            '',
            'commands:',
            *rows,
            '',
            'examples:',
            *examples,
            '',
            '`mmrednet COMMAND --help` lists the options of a command.',
            f'{TRACEBACK}=1 shows where an error was raised.',
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status.

    Args:
        argv: Arguments, without the name of the program. Default: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else None
    if name in (None, '-h', '--help'):
        print(overview(), file=sys.stderr if name is None else sys.stdout)
        return 2 if name is None else 0
    if name == '--version':
        print(f'mmrednet {__version__}')
        return 0
    if name not in COMMANDS:
        match = nearest(name, COMMANDS)
        hint = f'did you mean {match!r}?' if match else f'there are {", ".join(COMMANDS)}.'
        print(f'mmrednet: error: {name!r} is no command; {hint}', file=sys.stderr)
        return 2
    return _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    """Run a subcommand. An error that explains itself is one line, others have a traceback."""
    try:
        return load(name).main(arguments) or 0
    except BrokenPipeError:
        # `mmrednet configs list | head`; Python would fail again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        # str() puts the text of a KeyError in quotation marks
        message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        is_sentence = ' ' in message and _origin(error.__traceback__).startswith(EXPLAINING)
        if os.environ.get(TRACEBACK) == '1' or not is_sentence:
            raise
        print(f'mmrednet {name}: error: {message}', file=sys.stderr)
        return 1


def _origin(traceback: TracebackType | None) -> str:
    """Return the name of the module that raised an error."""
    module = ''
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get('__name__', '')
        traceback = traceback.tb_next
    return module
