"""Wrong panoptic data stops a run before it trains, with the file's name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import (
    CLASSES,
    make_panoptic_scene,
    make_street,
    scene_generator,
    write_cityscapes,
    write_coco_panoptic,
)

from mmrednet.engine import check_data, load_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/shapes/panoptic-deeplab_axial26-narrow_shapes.py'
NAME = '000000000001'


@pytest.fixture
def data(tmp_path):
    for split in ('train', 'val'):
        generators = (scene_generator(0, split, index) for index in range(3))
        scenes = (make_panoptic_scene(rng, (64, 64)) for rng in generators)
        write_coco_panoptic(tmp_path, split, scenes, CLASSES)
    return tmp_path


def shapes_config(folder, **options):
    for name in ('train', 'val', 'test'):
        options[f'{name}_dataloader.dataset.data_root'] = str(folder)
    return load_config(str(CONFIG), options=options)


def check(folder, **options):
    check_data(shapes_config(folder, **options))


def change_json(folder, change):
    path = folder / 'annotations/panoptic_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def map_path(folder):
    return folder / f'annotations/panoptic_train2017/{NAME}.png'


def test_right_data(data):
    check(data)


class TestJson:
    def test_unknown_category(self, data):
        def change(content):
            content['annotations'][0]['segments_info'][0]['category_id'] = 77

        change_json(data, change)
        message = r'panoptic_train2017\.json: 1 maps have segments of a category_id not in '
        with pytest.raises(ValueError, match=rf'{message}.*of {NAME}\.png has 77'):
            check(data)

    def test_ids_given_twice(self, data):
        def change(content):
            segments = content['annotations'][0]['segments_info']
            segments[1]['id'] = segments[0]['id']

        change_json(data, change)
        with pytest.raises(ValueError, match=rf'1 maps have ids .* given twice .*of {NAME}\.png'):
            check(data)

    def test_missing_keys_and_images(self, data):
        def change(content):
            del content['annotations'][0]['segments_info'][0]['id']
            content['annotations'][1]['image_id'] = 99

        change_json(data, change)
        with pytest.raises(ValueError, match='the data does not fit') as error:
            check(data)
        assert "segments without id or category_id: {'area'" in str(error.value)
        assert 'annotations have no file_name or an unknown image_id' in str(error.value)

    def test_a_segment_without_pixels(self, data):
        def change(content):
            segments = content['annotations'][0]['segments_info']
            segments.append(dict(segments[0], id=12345))

        change_json(data, change)
        message = rf'segments must have pixels, got 1 without in .*{NAME}\.png, such as 12345'
        with pytest.raises(ValueError, match=message):
            check(data)

    def test_an_id_without_a_segment(self, data):
        change_json(data, lambda content: content['annotations'][0]['segments_info'].pop())
        message = rf'must have an entry in segments_info, or be 0, got 1 without in .*{NAME}\.png'
        with pytest.raises(ValueError, match=message):
            check(data)


class TestMaps:
    def test_another_size(self, data):
        Image.new('RGB', (60, 64)).save(map_path(data))
        message = rf'size of its image, got \(64, 60\) in .*{NAME}\.png and \(64, 64\)'
        with pytest.raises(ValueError, match=message):
            check(data)

    def test_missing(self, data):
        map_path(data).unlink()
        with pytest.raises(ValueError, match=rf'1 files of seg_map_path do not exist: .*{NAME}'):
            check(data)

    def test_only_a_sample_unless_all_are_asked_for(self, data, monkeypatch):
        from mmrednet.engine import panoptic_check

        monkeypatch.setattr(panoptic_check, 'SAMPLE', 1)
        last = map_path(data).with_name('000000000003.png')
        Image.new('RGB', (60, 64)).save(last)
        check(data)
        with pytest.raises(ValueError, match='size of its image'):
            check_data(shapes_config(data), check_images=True)


class TestModel:
    def test_number_of_classes(self, data):
        with pytest.raises(ValueError, match=r'model\.num_classes must be 9, .* got 8'):
            check(data, **{'model.num_classes': 8})

    def test_thing_classes(self, data):
        with pytest.raises(
            ValueError, match=r'thing_classes must be \[0, 1, 2, 3, 4\], .*\[0, 1\]'
        ):
            check(data, **{'model.thing_classes': [0, 1]})


class TestCityscapes:
    def config(self, folder):
        base = ROOT / 'configs/_base_/panoptic/datasets/cityscapes.py'
        text = (
            f'_base_ = [{str(base)!r}, "mmdet::_base_/default_runtime.py"]\n'
            f'train_dataloader = dict(dataset=dict(data_root={str(folder)!r}))\n'
            'model = dict(type="X", num_classes=19, thing_classes=list(range(11, 19)))\n'
        )
        (folder / 'config.py').write_text(text)
        return load_config(str(folder / 'config.py'))

    def test_ids_of_instances(self, tmp_path):
        street = make_street(scene_generator(0, 'train', 0), (64, 128))
        write_cityscapes(tmp_path, 'train', [street], city='aachen')
        cfg = self.config(tmp_path)
        check_data(cfg, loaders=['train_dataloader'])
        (path,) = tmp_path.rglob('*_instanceIds.png')
        ids = np.asarray(Image.open(path)).astype(np.uint16)
        ids[0, 0] = 40001
        Image.fromarray(ids).save(path)
        with pytest.raises(ValueError, match=r'got \[40001\] in .*aachen_.*_instanceIds\.png'):
            check_data(cfg, loaders=['train_dataloader'])

    def test_no_images(self, tmp_path):
        for name in ('leftImg8bit/train', 'gtFine/train'):
            (tmp_path / name).mkdir(parents=True)
        with pytest.raises(
            ValueError, match='there are no images that end in _left.* in .*leftImg8bit/train'
        ):
            check_data(self.config(tmp_path), loaders=['train_dataloader'])
