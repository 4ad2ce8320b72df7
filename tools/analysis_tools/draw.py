"""Draw predictions of a detector, a segmenter or a panoptic detector beside the ground truth, and
the kernels of its involutions.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
from mmengine.config import DictAction

from mmrednet import safe_loading
from mmrednet.analysis import (
    draw_detections,
    draw_kernel_maps,
    draw_panoptics,
    draw_segmentations,
    kernel_maps,
)
from mmrednet.engine import check_fit, load_config, scope_of
from mmrednet.layers import Involution


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--out-dir', type=Path, default=Path('outputs'), help='folder for the pictures'
    )
    parser.add_argument(
        '--images',
        type=int,
        nargs='+',
        default=[0, 1, 2, 3, 4, 5],
        help='indices into the test set',
    )
    parser.add_argument('--scale', type=int, default=3, help='how much to enlarge the images')
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override parts of the config',
    )
    return parser.parse_args()


def last_involution_of_each_stage(model):
    """Return the name of the last involution of the backbone's stem and of each of its stages."""
    stages = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Involution) and name.startswith('backbone.'):
            stages[name.split('.')[1]] = name
    return stages


def open_detector(cfg, args):
    from mmdet.apis import init_detector
    from mmdet.registry import DATASETS

    model = init_detector(cfg, args.checkpoint, device=args.device)
    return model, DATASETS.build(cfg.test_dataloader.dataset)


def open_segmenter(cfg, args):
    from mmseg.apis import init_model
    from mmseg.registry import DATASETS

    model = init_model(cfg, args.checkpoint, device=args.device)
    return model, DATASETS.build(cfg.test_dataloader.dataset)


# task: function that opens a model, function that draws its predictions, name of the picture
TASKS = {
    'mmdet': (open_detector, draw_detections, 'detections.png'),
    'mmseg': (open_segmenter, draw_segmentations, 'segmentations.png'),
    'panoptic': (open_detector, draw_panoptics, 'panoptics.png'),
}


def task_of(cfg):
    """Return the task of a config: 'panoptic', or the name of its framework."""
    steps = cfg.test_dataloader.dataset.get('pipeline') or []
    if any(str(step['type']).endswith('PackPanopticInputs') for step in steps):
        return 'panoptic'
    return scope_of(cfg)


def write(path, image):
    cv2.imwrite(str(path), image)
    print(path)


def draw_kernels(model, item):
    """Return a picture of the kernels of an image of the data set, or None without involution."""
    stages = last_involution_of_each_stage(model)
    if not stages:
        return None
    sample = item['data_samples']
    batch = model.data_preprocessor(dict(inputs=[item['inputs']], data_samples=[sample]))
    maps = kernel_maps(model.backbone, batch['inputs'])
    panels = {stage: maps[name.removeprefix('backbone.')] for stage, name in stages.items()}
    return draw_kernel_maps(cv2.imread(sample.img_path), panels)


@safe_loading()
def main():
    args = parse_args()
    cfg = load_config(args.config, options=args.cfg_options)
    open_model, draw, name = TASKS[task_of(cfg)]
    model, dataset = open_model(cfg, args)
    check_fit(model, args.checkpoint)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    picture = draw(model, dataset, args.images, scale=args.scale)
    # OpenCV writes BGR
    write(args.out_dir / name, picture[..., ::-1])
    kernels = draw_kernels(model, dataset[args.images[0]])
    if kernels is not None:
        write(args.out_dir / 'kernels.png', kernels)


if __name__ == '__main__':
    main()
