"""Time backbones against stock mmdet ResNet-50 in the same process, as ratios from one run.

Each contestant runs in both layouts, contiguous and channels-last, and in two forms: plain, and
folded by mmrednet.fuse, which for mmdet's and mmseg's networks is mmcv's fuse_conv_bn.
"""

import argparse
import copy
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import torch
from mmengine.registry import MODELS

from benchmarks.timing import medians
from mmrednet import fuse
from mmrednet.ops import active_kernels

BASELINE = 'mmdet ResNet-50'
BACKBONES = {
    BASELINE: dict(type='mmdet.ResNet', depth=50),
    # the same network in our code
    'SpatialResNet-50': dict(type='mmrednet.SpatialResNet', depth=50),
    'RedNet-50': dict(type='mmrednet.RedNet', depth=50),
    'SASA-50, conv stem': dict(type='mmrednet.SASAResNet', depth=50),
    'VAN-b1': dict(type='mmrednet.VAN', arch='b1'),
    'mmseg MSCAN-small': dict(
        type='mmseg.MSCAN',
        embed_dims=[64, 128, 320, 512],
        mlp_ratios=[8, 8, 4, 4],
        depths=[2, 2, 4, 2],
        drop_path_rate=0.1,
        norm_cfg=dict(type='BN'),
    ),
    'MSCAN-small': dict(type='mmrednet.MSCAN', arch='small'),
    'mmseg MSCAN-tiny': dict(
        type='mmseg.MSCAN',
        embed_dims=[32, 64, 160, 256],
        mlp_ratios=[8, 8, 4, 4],
        depths=[3, 3, 5, 2],
        drop_path_rate=0.1,
        norm_cfg=dict(type='BN'),
    ),
    'MSCAN-tiny': dict(type='mmrednet.MSCAN', arch='tiny'),
    # without its strips, to see what they cost
    'MSCAN-tiny, strips of 1': dict(
        type='mmrednet.MSCAN',
        arch='tiny',
        spatial_cfg=dict(type='MultiScaleConvAttention', strip_sizes=(1,)),
    ),
}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--backbones',
        nargs='+',
        choices=list(BACKBONES),
        default=[BASELINE, 'SpatialResNet-50', 'RedNet-50'],
        help='backbones to time; the others are compared with the first',
    )
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--in-channels', type=int, default=3, help='channels of the image')
    parser.add_argument(
        '--train', action='store_true', help='forward and backward in training mode, not inference'
    )
    parser.add_argument(
        '--fuse-conv-bn', action='store_true', help='time the folded networks alone'
    )
    parser.add_argument('--rounds', type=int, default=9)
    args = parser.parse_args()
    if args.train and args.fuse_conv_bn:
        parser.error('--fuse-conv-bn is for inference, it cannot be given with --train')
    return args


def build(cfg):
    from mmdet.utils import register_all_modules as register_mmdet
    from mmseg.utils import register_all_modules as register_mmseg

    register_mmdet(init_default_scope=False)
    register_mmseg(init_default_scope=False)
    scope = cfg['type'].split('.')[0]
    with MODELS.switch_scope_and_registry('mmdet' if scope == 'mmrednet' else scope) as registry:
        return registry.build(dict(cfg, init_cfg=None) if scope != 'mmseg' else cfg)


def forms_of(model, args):
    """Return the forms of a network to time, by their names in the table."""
    forms = {}
    if not args.fuse_conv_bn:
        forms['plain'] = model
    if not args.train:
        forms['folded'] = fuse(copy.deepcopy(model))
    return forms


def step(model, x, train):
    def run():
        if train:
            model.zero_grad()
            sum(output.mean() for output in model(x)).backward()
        else:
            with torch.inference_mode():
                model(x)

    return run


def contestants(args):
    """Return what to time: (backbone, folded, layout) to a function."""
    result = {}
    for name in args.backbones:
        model = build(dict(BACKBONES[name], in_channels=args.in_channels))
        model.train(args.train)
        for form, network in forms_of(model, args).items():
            for layout, memory_format in LAYOUTS.items():
                image = torch.randn(args.batch, args.in_channels, *args.shape).contiguous(
                    memory_format=memory_format
                )
                moved = copy.deepcopy(network).to(memory_format=memory_format)
                result[name, form, layout] = step(moved, image, args.train)
    return result


def main():
    args = parse_args()
    torch.manual_seed(0)
    seconds = medians(contestants(args), args.rounds)
    mode = 'training step' if args.train else 'inference'
    print(
        f'{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, '
        f'float32, batch {args.batch}, {args.shape[0]} x {args.shape[1]}, {mode}; '
        f'{active_kernels()["cpu"]}\n'
    )
    print(
        '| backbone | batch norms | contiguous, ms | channels-last, ms | better / better of '
        f'{args.backbones[0]} |\n'
        '|---|---|---|---|---|'
    )
    forms = dict.fromkeys(form for _, form, _ in seconds)
    for form in forms:
        best = {
            name: min(seconds[name, form, layout] for layout in LAYOUTS) for name in args.backbones
        }
        for name in args.backbones:
            times = ' | '.join(f'{1e3 * seconds[name, form, layout]:.1f}' for layout in LAYOUTS)
            print(f'| {name} | {form} | {times} | {best[name] / best[args.backbones[0]]:.2f} |')


if __name__ == '__main__':
    main()
