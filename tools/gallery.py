"""Make the pictures of docs/gallery.md: train one small segmenter for each operator and draw what
it attends to.

All segmenters have the same width, schedule, data and seed; only the operator differs. Every step
is a command that a user could give, and is printed.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SEGMENTER = 'configs/streets/_base_/fcn-narrow_streets.py'
DETECTOR = 'configs/shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
MAX_BYTES = 200_000
# shorter than in `make demo`
DETECTOR_OPTIONS = (
    'train_cfg.max_iters=250',
    'train_cfg.val_interval=250',
    'default_hooks.checkpoint.interval=250',
)
STREET = 'data/streets/leftImg8bit/val/elsewhere/elsewhere_000000_000013_leftImg8bit.png'
SHAPES = 'data/shapes/val/000003.png'


def spatial(name, **options):
    return dict(spatial_cfg=dict(type=name, **options))


def plugin(name):
    return dict(plugins=[dict(cfg=dict(type=f'mmrednet.{name}'), position='after_conv3')])


AXIAL = dict(num_heads=4, table_size=64)
# name of a segmenter: arguments of its backbone that name the operator
NETWORKS = {
    'involution': spatial('Involution'),
    'sasa': spatial('StandAloneSelfAttention', num_heads=4),
    'lrnet': spatial('LocalRelation'),
    'san-pairwise': spatial('SANPairwise', relation_channels=4),
    'san-patchwise': spatial('SANPatchwise', relation_channels=4),
    'axial': spatial('AxialAttention', **AXIAL),
    'axial-span': spatial('AxialAttention', **AXIAL, span=15),
    'lka': spatial('LargeKernelAttention'),
    'msca': spatial('MultiScaleConvAttention'),
    'se': plugin('SE'),
    'cbam': plugin('CBAM'),
    # its kernel for CPUs takes ten times as long as the others
    'dcn': dict(spatial_cfg=[dict(type='DCNv2'), None]),
}
# a pedestrian of the street
AT = '--at 178 87'
# name of a picture: network, and options of tools/analysis_tools/draw.py
PICTURES = {
    'involution': ('involution', '--view kernel-sum'),
    'sasa': ('sasa', '--view entropy'),
    'lrnet': ('lrnet', '--view entropy'),
    'san-pairwise': ('san-pairwise', '--view distance'),
    'san-patchwise': ('san-patchwise', '--view kernel-sum'),
    'axial': ('axial', f"--layers '*.conv2' --view query {AT}"),
    'axial-span': ('axial-span', f"--layers '*.conv2' --view query {AT}"),
    'lka': ('lka', '--view gate'),
    'msca': ('msca', '--view gate'),
    'se': ('se', '--view gate'),
    'cbam': ('cbam', '--view gate'),
    'dcn': ('dcn', f'--view points {AT}'),
    'segmenter-grad-cam': ('involution', '--view grad-cam --target 13'),
    'detector-grad-cam': (
        'detector',
        '--layers backbone.layer2 backbone.layer3 backbone --view grad-cam',
    ),
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', help=f'default: all of {", ".join(PICTURES)}')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/gallery'))
    parser.add_argument('--out-dir', type=Path, default=Path('docs/images/gallery'))
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(PICTURES))
    if unknown:
        parser.error(f'names must be some of {", ".join(PICTURES)}, got {", ".join(unknown)}')
    args.names = args.names or list(PICTURES)
    return args


def step(*command):
    """Print and run a command of the project."""
    command = list(map(str, command))
    print(shlex.join(['python', *command]), flush=True)
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def write_config(args, network):
    """Write a config that differs from ``SEGMENTER`` in its operator alone, and return its path."""
    path = args.work_dir / f'{network}.py'
    text = f'_base_ = {str(ROOT / SEGMENTER)!r}\nmodel = dict(backbone={NETWORKS[network]!r})\n'
    (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
    (ROOT / path).write_text(text)
    return path


def generate(folder, *options):
    if not (ROOT / folder).exists():
        step('tools/synthetic/generate.py', *options)


def train(config, work_dir, *options):
    """Train a network unless it was trained before, and return its checkpoint."""
    last = ROOT / work_dir / 'last_checkpoint'
    if not last.exists():
        step('tools/train.py', config, '--work-dir', work_dir, *options)
    return last.read_text()


def train_network(args, network):
    """Return config, checkpoint and photograph of a network."""
    work_dir = args.work_dir / network
    if network == 'detector':
        generate('data/shapes', '--train', 400, '--val', 20)
        checkpoint = train(DETECTOR, work_dir, '--cfg-options', *DETECTOR_OPTIONS)
        return DETECTOR, checkpoint, SHAPES
    generate('data/streets', '--format', 'cityscapes', '--train', 400, '--val', 20)
    config = write_config(args, network)
    return config, train(config, work_dir), STREET


def shrink(path):
    """Write a large picture again with 256 colours, chosen so that colour bars keep theirs."""
    if path.stat().st_size <= MAX_BYTES:
        return
    with Image.open(path) as picture:
        picture.quantize(256, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def main():
    args = parse_args()
    (ROOT / args.out_dir).mkdir(parents=True, exist_ok=True)
    for name in args.names:
        network, options = PICTURES[name]
        config, checkpoint, photo = train_network(args, network)
        path = args.out_dir / f'{name}.png'
        options = [*shlex.split(options), '--columns', 2, '--out', path]
        step('tools/analysis_tools/draw.py', config, checkpoint, photo, *options)
        shrink(ROOT / path)


if __name__ == '__main__':
    main()
