"""Write synthetic data from a seed: shapes in COCO format, one shape per image, streets in
Cityscapes format, or either with panoptic annotations.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from synthetic import (
    CLASSES,
    make_panoptic_scene,
    make_scene,
    make_street,
    scene_generator,
    write_cityscapes,
    write_cityscapes_panoptic,
    write_coco,
    write_coco_panoptic,
    write_image_folder,
)

# format: default folder and size of the images
DEFAULTS = {
    'coco': (Path('data/shapes'), (128, 128)),
    'cityscapes': (Path('data/streets'), (128, 256)),
    'folder': (Path('data/single_shapes'), (64, 64)),
    'coco-panoptic': (Path('data/panoptic_shapes'), (128, 128)),
    'cityscapes-panoptic': (Path('data/panoptic_streets'), (128, 256)),
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--format',
        choices=list(DEFAULTS),
        default='coco',
        help='coco: shapes; cityscapes: streets; folder: one shape per image, a folder per class; '
        'coco-panoptic: shapes in landscapes; cityscapes-panoptic: streets with groups of persons',
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        help='where to write; by default a folder of data/',
    )
    parser.add_argument('--train', type=int, default=600, help='number of training images')
    parser.add_argument('--val', type=int, default=100, help='number of validation images')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='of the images; by default 128 128 for shapes and landscapes, 128 256 for streets, '
        '64 64 for one shape',
    )
    parser.add_argument(
        '--objects',
        type=int,
        nargs=2,
        default=(2, 5),
        metavar=('LEAST', 'GREATEST'),
        help='number of shapes in a scene',
    )
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same bytes')
    parser.add_argument('--force', action='store_true', help='write over an existing data set')
    args = parser.parse_args()
    args.out_dir = args.out_dir or DEFAULTS[args.format][0]
    args.size = tuple(args.size or DEFAULTS[args.format][1])
    if args.train < 1 or args.val < 1 or args.seed < 0:
        parser.error(f'--train and --val must be at least 1 and --seed at least 0, got {args}')
    if args.out_dir.exists() and any(args.out_dir.iterdir()) and not args.force:
        parser.error(f'--out-dir must be empty or --force given, got {args.out_dir}')
    return args


def write_split(args, split, generators):
    """Write the images and annotations of a split."""
    out_dir, size, objects = args.out_dir, args.size, tuple(args.objects)
    if args.format == 'coco':
        scenes = (make_scene(rng, size, objects=objects) for rng in generators)
        write_coco(out_dir, split, scenes, CLASSES)
    elif args.format == 'folder':
        scenes = (make_scene(rng, size, objects=(1, 1)) for rng in generators)
        write_image_folder(out_dir, split, scenes, CLASSES)
    elif args.format == 'coco-panoptic':
        scenes = (make_panoptic_scene(rng, size, objects=objects) for rng in generators)
        write_coco_panoptic(out_dir, split, scenes, CLASSES)
    elif args.format == 'cityscapes-panoptic':
        streets = (make_street(rng, size, groups=True) for rng in generators)
        write_cityscapes(out_dir, split, streets)
        write_cityscapes_panoptic(out_dir, split)
    else:
        write_cityscapes(out_dir, split, (make_street(rng, size) for rng in generators))


def main():
    args = parse_args()
    for split, count in (('train', args.train), ('val', args.val)):
        generators = (scene_generator(args.seed, split, index) for index in range(count))
        write_split(args, split, generators)
        print(f'{args.out_dir}, {split}: {count} images of {args.size[0]} x {args.size[1]}')


if __name__ == '__main__':
    main()
