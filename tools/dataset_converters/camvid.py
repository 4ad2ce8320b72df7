"""Convert CamVid, as the SegNet tutorial distributes it, to the folders that configs/camvid read.

The source has the folders train, val and test beside trainannot, valannot and testannot, or the
same splits below images and annotations. The label of void changes from 11 to 255.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# label of void in the distribution, and the one that mmseg ignores
VOID, IGNORED = 11, 255
SPLITS = ('train', 'val', 'test')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='folder of the distribution')
    parser.add_argument('--out-dir', type=Path, default=Path('data/camvid'), help='where to write')
    return parser.parse_args()


def folders(source, split):
    """Return the folders of images and labels of a split, or None."""
    for images, labels in (
        (source / split, source / f'{split}annot'),
        (source / 'images' / split, source / 'annotations' / split),
    ):
        if images.is_dir() and labels.is_dir():
            return images, labels
    return None


def convert(image_path, label_path, out_dir, split):
    """Write an image and its labels as PNG; an error names the file."""
    if not label_path.is_file():
        raise ValueError(f'every image must have labels, got {image_path} without {label_path}')
    image, labels = Image.open(image_path).convert('RGB'), np.array(Image.open(label_path))
    if labels.ndim != 2 or labels.max() > VOID or labels.shape != image.size[::-1]:
        raise ValueError(
            f'labels must be (H, W) indices up to {VOID} of the size of the image, '
            f'{image.size[::-1]}, got {labels.shape} up to {labels.max()} in {label_path}'
        )
    labels = np.where(labels == VOID, IGNORED, labels).astype(np.uint8)
    for folder, content in (('images', image), ('annotations', Image.fromarray(labels))):
        path = out_dir / folder / split / f'{image_path.stem}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path)


def main():
    args = parse_args()
    splits = {}
    for split in SPLITS:
        pair = folders(args.source, split)
        if pair:
            splits[split] = pair
    if not splits:
        sys.exit(
            'source must have folders such as train and trainannot, or images/train and '
            f'annotations/train, got {args.source}'
        )
    for split, (images, labels) in splits.items():
        paths = sorted(path for path in images.iterdir() if path.suffix.lower() in ('.png', '.jpg'))
        for path in paths:
            convert(path, labels / f'{path.stem}.png', args.out_dir, split)
        print(f'{args.out_dir}, {split}: {len(paths)} images')


if __name__ == '__main__':
    main()
