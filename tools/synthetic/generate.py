"""Write synthetic data from a seed: shapes in COCO format, one shape per image, or streets in
Cityscapes format.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from synthetic import (
    CLASSES,
    make_scene,
    make_street,
    scene_generator,
    write_cityscapes,
    write_coco,
    write_image_folder,
)

# format: default folder and size of the images
DEFAULTS = {
    'coco': (Path('data/shapes'), (128, 128)),
    'cityscapes': (Path('data/streets'), (128, 256)),
    'folder': (Path('data/single_shapes'), (64, 64)),
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--format',
        choices=list(DEFAULTS),
        default='coco',
        help='coco: shapes; cityscapes: streets; folder: one shape per image, a folder per class',
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        help='where to write; by default data/shapes, data/streets or data/single_shapes',
    )
    parser.add_argument('--train', type=int, default=600, help='number of training images')
    parser.add_argument('--val', type=int, default=100, help='number of validation images')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='of the images; by default 128 128 for shapes, 128 256 for streets, '
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


def main():
    args = parse_args()
    for split, count in (('train', args.train), ('val', args.val)):
        generators = (scene_generator(args.seed, split, index) for index in range(count))
        if args.format == 'coco':
            scenes = (make_scene(rng, args.size, objects=tuple(args.objects)) for rng in generators)
            write_coco(args.out_dir, split, scenes, CLASSES)
        elif args.format == 'folder':
            scenes = (make_scene(rng, args.size, objects=(1, 1)) for rng in generators)
            write_image_folder(args.out_dir, split, scenes, CLASSES)
        else:
            write_cityscapes(
                args.out_dir, split, (make_street(rng, args.size) for rng in generators)
            )
        print(f'{args.out_dir}, {split}: {count} images of {args.size[0]} x {args.size[1]}')


if __name__ == '__main__':
    main()
