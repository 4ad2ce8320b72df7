"""Two iterations and a validation of each panoptic config, with few channels, on synthetic data in
its format.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import (
    CLASSES,
    STUFF,
    make_panoptic_scene,
    make_street,
    scene_generator,
    write_cityscapes,
    write_coco_panoptic,
)

from mmrednet.backbones import AxialResNet
from mmrednet.engine import apply_train_options, build_runner, check_data, load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / 'configs').rglob('*deeplab*.py')
    if '_base_' not in path.parts
)
# networks that differ from this one, of the same data, in their widths alone
NARROWER = {
    path: path.replace(f'axial-deeplab-{arch}_', 'axial-deeplab-s_')
    for path in CONFIGS
    for arch in ('m', 'l', 'xl')
    if f'axial-deeplab-{arch}_' in path and 'mapillary' not in path
}
# networks of one config on the data of another, which are trained: the network, and the data
PARTS = {
    f'configs/axial/{path}.py': [f'configs/axial/{part}.py' for part in parts]
    for path, *parts in (
        (
            'axial-deeplab-s_8xb4-60k_cityscapes-1025x2049',
            'axial-deeplab-s_8xb8-200k_coco-641x641',
            'panoptic-deeplab_r50_8xb4-60k_cityscapes-1025x2049',
        ),
        (
            'axial-deeplab-l_8xb8-150k_mapillary-1025x1025',
            'axial-deeplab-s_8xb8-200k_coco-641x641',
            'panoptic-deeplab_r50_8xb8-150k_mapillary-1025x1025',
        ),
        (
            'panoptic-deeplab_r50_8xb8-200k_coco-641x641',
            'panoptic-deeplab_r50_8xb4-60k_cityscapes-1025x2049',
            'axial-deeplab-s_8xb8-200k_coco-641x641',
        ),
    )
}
TRAINED = [path for path in CONFIGS if path not in NARROWER and path not in PARTS]
# what the data say of a network
OF_DATA = ('num_classes', 'thing_classes', 'test_cfg')
SIZE = (64, 128)
# channels of the decoder's inputs, a narrower backbone, and those of its maps
BACKBONES = {
    'ResNet': ([256, 512, 2048], dict(base_channels=16), [64, 128, 512]),
    'mmrednet.RedNet': (
        [256, 512, 2048],
        dict(depth=26, base_channels=32),
        [128, 256, 1024],
    ),
    'mmrednet.MSCAN': (
        [64, 128, 320, 512],
        dict(arch=dict(embed_dims=(8, 16, 24, 32), depths=(1,) * 4, mlp_ratios=(2,) * 4)),
        [8, 16, 24, 32],
    ),
    'mmrednet.SpatialResNet': ([64, 128, 512], {}, [64, 128, 512]),
}


def category_names(format_name):
    """Return the names of the things and stuff of a published data set."""
    if format_name == 'coco':
        from mmdet.datasets import CocoPanopticDataset as Dataset

        return Dataset.METAINFO
    from mmrednet.datasets.mapillary_panoptic import MapillaryVistasPanopticDataset as Dataset

    return Dataset.METAINFO


def rename_categories(path, meta):
    """Give shapes and stuff of a JSON file the categories of a published data set."""
    classes, things = meta['classes'], meta['thing_classes']
    stuff = [name for name in classes if name not in things]
    ids = {name: index for index, name in enumerate(classes, start=1)}
    names = {index: things[index - 1] for index in range(1, len(CLASSES) + 1)}
    names.update({101 + index: stuff[index] for index in range(len(STUFF))})
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        for segment in annotation['segments_info']:
            segment['category_id'] = ids[names[segment['category_id']]]
    content['categories'] = [
        dict(id=ids[name], name=name, isthing=int(name in things)) for name in classes
    ]
    path.write_text(json.dumps(content))


def write_own_map(folder, name, scene):
    """Write a scene as configs/custom has it: 1 is ground, 2000 + n an object, 2 a crowd."""
    values = [0]
    for number, segment in enumerate(scene.segments, start=1):
        value = 2 if segment.is_crowd else 2000 + number
        values.append(value if segment.is_thing else 1)
    ids = np.array(values, np.uint16)[scene.positions]
    for kind, suffix, array in (('images', 'jpg', scene.image), ('maps', 'png', ids)):
        path = folder / kind / f'{name}.{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Return a folder with all data sets at the places that the configs name."""
    root = tmp_path_factory.mktemp('data')
    for split in ('train', 'val'):
        generators = [scene_generator(0, split, index) for index in range(2)]
        streets = [make_street(rng, SIZE, groups=True) for rng in generators]
        write_cityscapes(root / 'cityscapes', split, streets)
        scenes = [make_panoptic_scene(rng, SIZE) for rng in generators]
        write_coco_panoptic(root / 'panoptic_shapes', split, scenes, CLASSES)
        write_coco_panoptic(root / 'coco', split, scenes, CLASSES)
        annotations = root / 'coco/annotations'
        rename_categories(annotations / f'panoptic_{split}2017.json', category_names('coco'))
        for number, scene in enumerate(scenes):
            write_own_map(root / 'custom_panoptic', f'{split}/{number}', scene)
        # Mapillary Vistas has other folders
        write_coco_panoptic(root / 'other', split, scenes, CLASSES)
        json_path = root / f'other/annotations/panoptic_{split}2017.json'
        rename_categories(json_path, category_names('mapillary'))
        folder = root / 'mapillary' / dict(train='training', val='validation')[split]
        shutil.move(root / f'other/{split}2017', folder / 'images')
        shutil.move(root / f'other/annotations/panoptic_{split}2017', folder / 'panoptic')
        shutil.move(json_path, folder / 'panoptic/panoptic_2018.json')
    return root


def shrink_pipeline(steps, is_landscape):
    """Change the sizes of a pipeline in place, to an eighth or less of the published ones."""
    crop = (129, 65) if is_landscape else (81, 81)
    for step in steps:
        if step.type in ('Resize', 'RandomResize'):
            step.scale = (128, 64) if is_landscape else (81, 81)
        elif step.type == 'RandomCrop':
            step.crop_size = crop
        elif step.type == 'Pad':
            step.size = crop


def axial_maps(arch):
    """Return the channels of the maps of strides 4, 8 and 16 of an AxialResNet."""
    width = int(128 * AxialResNet.archs.get(arch, arch))
    return [2 * width, 4 * width, 16 * width]


def narrow(model):
    """Change a network in place to few channels, after a check that its parts fit together."""
    backbone, decoder = model.backbone, model.decoder
    backbone.init_cfg = None
    if backbone.type == 'mmrednet.AxialResNet':
        expected, maps = axial_maps(backbone.arch), axial_maps(0.25)
        changes = dict(arch=0.25, depth=26, table_size=32)
    else:
        expected, changes, maps = BACKBONES[backbone.type]
    assert decoder.in_channels == expected
    backbone.update(changes)
    decoder.update(in_channels=maps, context_channels=32)
    for name in ('semantic_decoder', 'instance_decoder'):
        model[name] = dict(model.get(name, {}), channels=32)


def shrink(cfg, folder, work_dir):
    """Change a config in place for two iterations on small images."""
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=2, num_workers=0)
        for key in ('persistent_workers', 'prefetch_factor'):
            loader.pop(key, None)
        dataset = loader.dataset
        dataset.data_root = str(folder / dataset.data_root.removeprefix('data/'))
        shrink_pipeline(dataset.pipeline, 'Cityscapes' in dataset.type)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(folder / evaluator.ann_file.removeprefix('data/'))
    narrow(cfg.model)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.update(interval=2, save_best=None)
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(work_dir)
    # visualizers of one name are one object
    cfg.visualizer.name = str(work_dir)


@pytest.mark.parametrize('path', NARROWER)
def test_wider_networks_differ_in_their_widths_alone(path, data, tmp_path):
    wide, small = (load_config(str(ROOT / name)) for name in (path, NARROWER[path]))
    for cfg in (wide, small):
        shrink(cfg, data, tmp_path)
    assert wide.to_dict() == small.to_dict()


def split(path, data, work_dir):
    """Return a config for two iterations as its network and all else."""
    cfg = load_config(str(ROOT / path))
    shrink(cfg, data, work_dir)
    content = cfg.to_dict()
    network = content.pop('model')
    content['of_data'] = {name: network.pop(name) for name in OF_DATA}
    return network, content


@pytest.mark.parametrize('path', PARTS)
def test_networks_and_data_are_those_of_configs_that_are_trained(path, data, tmp_path):
    network_path, data_path = PARTS[path]
    assert {network_path, data_path} <= set(TRAINED)
    network, content = split(path, data, tmp_path)
    assert network == split(network_path, data, tmp_path)[0]
    assert content == split(data_path, data, tmp_path)[1]


@pytest.mark.parametrize('path', TRAINED)
def test_two_iterations(path, data, tmp_path):
    cfg = load_config(str(ROOT / path))
    shrink(cfg, data, tmp_path)
    apply_train_options(cfg)
    check_data(cfg)
    runner = build_runner(cfg)
    runner.train()
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [entry['loss'] for entry in entries if 'loss' in entry]
    assert len(losses) == 2
    assert all(0 < loss < 1e4 for loss in losses)
    (result,) = [entry for entry in entries if 'panoptic/PQ' in entry]
    assert 0 <= result['panoptic/PQ'] <= 100
    assert 0 <= result['panoptic/mIoU'] <= 100
    assert (tmp_path / 'last_checkpoint').is_file()
