"""Write the shapes data set: scenes made from a seed, in COCO format."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmrednet.datasets import CLASSES, make_scene, scene_generator, write_coco


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out-dir', type=Path, default=Path('data/shapes'), help='where to write')
    parser.add_argument('--train', type=int, default=600, help='number of training images')
    parser.add_argument('--val', type=int, default=100, help='number of validation images')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 128), metavar=('H', 'W'), help='of the images')
    parser.add_argument('--objects', type=int, nargs=2, default=(2, 5), metavar=('LEAST', 'GREATEST'), help='per scene')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same bytes')
    parser.add_argument('--force', action='store_true', help='write over an existing data set')
    args = parser.parse_args()
    if args.train < 1 or args.val < 1 or args.seed < 0:
        parser.error(f'--train and --val must be at least 1 and --seed at least 0, got {args}')
    if args.out_dir.exists() and any(args.out_dir.iterdir()) and not args.force:
        parser.error(f'--out-dir must be empty or --force given, got {args.out_dir}')
    return args


def main():
    args = parse_args()
    for split, count in (('train', args.train), ('val', args.val)):
        scenes = (make_scene(scene_generator(args.seed, split, index), tuple(args.size), objects=tuple(args.objects))
                  for index in range(count))
        write_coco(args.out_dir, split, scenes, CLASSES)
        print(f'{args.out_dir / split}: {count} images of {args.size[0]} x {args.size[1]}')


if __name__ == '__main__':
    main()
