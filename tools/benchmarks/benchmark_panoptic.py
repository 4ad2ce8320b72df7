"""Time the post-processing of Panoptic-DeepLab beside its direct form and beside the network.

The direct form is the published algorithm: the distances of all pixels to all centres in one
tensor, and a pass over the image for each instance and class. Both must give the same map.
"""

import argparse
import platform
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import torch
from torch.nn import functional as F

from benchmarks.timing import medians
from mmrednet.panoptic.merging import INSTANCE_OFFSET, PanopticMerger
from mmrednet.panoptic.targets import gaussians

CLASSES, THINGS = 19, range(11, 19)
SETTINGS = dict(threshold=0.1, nms_kernel=7, top_k=200, stuff_area=2048)
VOID = CLASSES


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--shape', type=int, nargs=2, default=(512, 1024), metavar=('H', 'W'))
    parser.add_argument('--centers', type=int, default=100, help='number of instances')
    parser.add_argument('--things', type=float, default=0.5, help='part of the pixels of things')
    parser.add_argument('--noise', type=float, default=2.0, help='error of the offsets in pixels')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--cpu-time', action='store_true', help='time of the CPU, not of the clock on the wall'
    )
    parser.add_argument('--no-network', action='store_true', help='time the post-processing alone')
    parser.add_argument('--rounds', type=int, default=9)
    return parser.parse_args(arguments)


def draw_scene(shape, count, things, noise):
    """Return probabilities (C, H, W), heat map (H, W) and offsets (2, H, W) of instances."""
    height, width = shape
    columns = round((count * width / height) ** 0.5)
    rows = -(-count // columns)
    cell = torch.tensor([height / rows, width / columns])
    index = torch.arange(count)
    middle = torch.stack([index // columns, index % columns], 1) + 0.5
    centers = ((middle + 0.5 * (torch.rand(count, 2) - 0.5)) * cell).long()
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    owner = (ys / cell[0]).long() * columns + (xs / cell[1]).long()
    owner = owner.clamp(max=count - 1)
    offset = (centers[owner].permute(2, 0, 1) - torch.stack([ys, xs])).float()
    # an instance is a box around the middle of its cell
    inside = (offset.abs() <= 0.5 * things**0.5 * cell[:, None, None]).all(0)
    heat = gaussians(centers, shape, 8.0) + 0.02 * torch.rand(shape)
    semantic = torch.where(inside, 11 + owner % len(THINGS), ys * 4 // height)
    logits = torch.randn(CLASSES, *shape) + 6 * F.one_hot(semantic, CLASSES).permute(2, 0, 1)
    return logits.softmax(0), heat, offset + noise * torch.randn(2, *shape)


def direct_centers(heat):
    kernel = SETTINGS['nms_kernel']
    heat = F.threshold(heat, SETTINGS['threshold'], -1)
    pooled = F.max_pool2d(heat[None, None], kernel, 1, kernel // 2)[0, 0]
    heat = heat.masked_fill(heat != pooled, -1)
    best = heat.flatten().topk(SETTINGS['top_k']).values
    return (heat > best[-1].clamp(min=0)).nonzero()


def direct(probability, heat, offset):
    """Return the ids of the published algorithm, with a tensor of K x H x W distances."""
    semantic = probability.argmax(0)
    centers = direct_centers(heat)
    height, width = heat.shape
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    points = (torch.stack(grid).to(offset) + offset).flatten(1).T
    distance = torch.norm(centers[:, None] - points[None], dim=-1)
    instance = distance.argmin(0).view(height, width) + 1
    is_thing = torch.isin(semantic, torch.tensor(list(THINGS), device=semantic.device))
    instance = instance * is_thing
    ids = torch.full_like(semantic, VOID)
    counts = dict.fromkeys(range(CLASSES), 0)
    for number in instance.unique().tolist():
        if number:
            mask = instance == number
            category = int(semantic[mask].mode().values)
            counts[category] += 1
            ids[mask] = counts[category] * INSTANCE_OFFSET + category
    for category in semantic.unique().tolist():
        mask = (semantic == category) & (instance == 0)
        if category not in THINGS and mask.sum() >= SETTINGS['stuff_area']:
            ids[mask] = category
    # the score of each instance, as detectron2 computes it
    for number in ids.unique().tolist():
        if number == VOID:
            continue
        mask = ids == number
        probability[number % INSTANCE_OFFSET][mask].mean()
    return ids


def build_network(device):
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    model = dict(
        type='mmrednet.PanopticDeepLab',
        backbone=dict(type='mmdet.ResNet', depth=50, strides=(1, 2, 2, 1), out_indices=(0, 1, 3)),
        num_classes=CLASSES,
        thing_classes=list(THINGS),
        decoder=dict(in_channels=[256, 512, 2048], aspp_conv='separable'),
    )
    return MODELS.build(model).eval().to(device)


def contestants(args):
    """Return what to time by name, and the maps."""
    scene = draw_scene(args.shape, args.centers, args.things, args.noise)
    maps = [x.to(args.device) for x in scene]
    merger = PanopticMerger(CLASSES, THINGS, numbering='center', **SETTINGS).to(args.device)
    result = {'mmrednet': lambda: merger(*maps), 'direct': lambda: direct(*maps)}
    if not args.no_network:
        network = build_network(args.device)
        image = torch.randn(1, 3, *args.shape, device=args.device)
        small = network._forward(image)
        result['network'] = lambda: network._forward(image)
        # what makes maps of the outputs, whatever the post-processing is
        result['upsampling and softmax'] = lambda: network.upsample(small, args.shape)[0].softmax(1)
    return result, maps, merger


def synchronised(function, device):
    def run():
        result = function()
        if device != 'cpu':
            torch.cuda.synchronize()
        return result

    return run


def main(arguments=None):
    args = parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        functions, maps, merger = contestants(args)
        result = merger(*maps)
        if not torch.equal(result.ids(VOID), direct(*maps)):
            raise SystemExit('The two forms give different maps, so their times mean nothing.')
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = medians(
            {name: synchronised(function, args.device) for name, function in functions.items()},
            args.rounds,
            clock=time.process_time if args.cpu_time else time.perf_counter,
        )
    count = int((result.number > 0)[result.area > 0].sum())
    print(
        f'{platform.machine()}, {args.device}, {args.threads} threads, torch {torch.__version__}, '
        f'{args.shape[0]} x {args.shape[1]}, {count} instances, peak {before >> 10} MB\n'
    )
    print('| part | ms | / mmrednet | / network |\n|---|---|---|---|')
    network = seconds.get('network')
    for name, value in seconds.items():
        share = '' if network is None else f'{100 * value / network:.1f} %'
        print(f'| {name} | {1e3 * value:.1f} | {value / seconds["mmrednet"]:.2f} | {share} |')


if __name__ == '__main__':
    main()
