"""Print the share of each class in the training labels of a segmenter, and weights for its loss.

A weight is 1 / ln(OFFSET + p) for a class with the share p of the labelled pixels (Paszke et al.,
"ENet", 2016). A smaller offset favours rare classes more: 1.02 gives weights from 1.4 to 50, 1.10
from 1.3 to 10.5. Copy the last line to ``model.decode_head.loss_decode`` of the config.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from mmengine.config import DictAction
from mmengine.registry import DATASETS

from mmrednet.engine import check_data, load_config
from mmrednet.engine.class_check import datasets_of
from mmrednet.engine.label_check import CHECKED

LOADER = 'train_dataloader'


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="path of the config, or a name such as 'mmrednet::...'")
    parser.add_argument('--offset', type=float, default=1.10, help='greater than 1; default: 1.10')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='as in training'
    )
    args = parser.parse_args()
    if not args.offset > 1:
        parser.error(f'--offset must be greater than 1, got {args.offset}')
    return args


def label_dataset(key, config):
    """Build a data set of mmseg that loads its labels and nothing else."""
    loading = [step for step in config.get('pipeline', []) if step['type'] == CHECKED]
    if not loading:
        sys.exit(f'{key}.pipeline must have LoadAnnotations, which loads the labels')
    with DATASETS.switch_scope_and_registry('mmseg') as registry:
        return registry.build(dict(config, pipeline=loading[:1]))


def pixel_counts(dataset):
    """Return the number of pixels of each class of a data set. Ignored pixels do not count."""
    num_classes = len(dataset.metainfo['classes'])
    counts = np.zeros(num_classes, np.int64)
    for index in range(len(dataset)):
        labels = dataset[index]['gt_seg_map'].ravel()
        counts += np.bincount(labels, minlength=256)[:num_classes]
    return counts


def main():
    args = parse_args()
    cfg = load_config(args.config, options=args.cfg_options)
    if cfg.get('default_scope') != 'mmseg':
        sys.exit(f'{args.config} must be the config of a segmenter, with default_scope mmseg')
    check_data(cfg, loaders=(LOADER,))
    datasets = [label_dataset(*item) for item in datasets_of(cfg[LOADER], LOADER)]
    counts = sum(map(pixel_counts, datasets))
    shares = counts / counts.sum()
    weights = [1 / math.log(args.offset + share) for share in shares]
    for name, share, weight in zip(datasets[0].metainfo['classes'], shares, weights, strict=True):
        print(f'{name:20s} {share:8.4f} {weight:8.3f}')
    print(f'class_weight = [{", ".join(f"{weight:.3f}" for weight in weights)}]')


if __name__ == '__main__':
    main()
