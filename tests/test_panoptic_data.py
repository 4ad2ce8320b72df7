"""Panoptic data: id maps, the data sets that read them, and what augmentation does to them."""

import json
from types import SimpleNamespace

import golden
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
    write_cityscapes_panoptic,
    write_coco_panoptic,
)

from mmrednet.datasets.cityscapes_panoptic import CityscapesPanopticDataset
from mmrednet.datasets.id_map import decode_id_map, encode_id_map, present_ids
from mmrednet.datasets.mapillary_panoptic import MapillaryVistasPanopticDataset
from mmrednet.datasets.panoptic_dataset import PanopticMapDataset
from mmrednet.datasets.panoptic_transforms import LoadPanopticMap, PackPanopticInputs

LANDSCAPE = dict(
    classes=(*CLASSES, *STUFF),
    thing_classes=CLASSES,
    stuff_classes=STUFF,
    palette=[(20 * index, 0, 0) for index in range(9)],
)


@pytest.fixture(scope='module')
def landscapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('landscapes')
    scenes = [make_panoptic_scene(scene_generator(0, 'train', index)) for index in range(12)]
    write_coco_panoptic(folder, 'train', scenes, CLASSES)
    return SimpleNamespace(folder=folder, scenes=scenes)


@pytest.fixture(scope='module')
def streets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('streets')
    generators = [scene_generator(0, 'val', index) for index in range(12)]
    streets = [make_street(rng, (64, 128), groups=True) for rng in generators]
    for start, city in ((0, 'aachen'), (6, 'bochum')):
        write_cityscapes(folder, 'val', streets[start : start + 6], city=city)
    write_cityscapes_panoptic(folder, 'val')
    return folder


def load(item, **kwargs):
    image = np.asarray(Image.open(item['img_path']).convert('RGB'))
    item = dict(item, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
    return LoadPanopticMap(**kwargs)(item)


def landscape_items(data, **kwargs):
    from mmdet.datasets import CocoPanopticDataset

    dataset = CocoPanopticDataset(
        data_root=str(data.folder),
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
        metainfo=LANDSCAPE,
        pipeline=[],
        **kwargs,
    )
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def cityscapes(folder, **kwargs):
    options = dict(data_prefix=dict(img='leftImg8bit/val', seg='gtFine/val'))
    options.update(kwargs)
    dataset = CityscapesPanopticDataset(data_root=str(folder), pipeline=[], **options)
    return [dataset.get_data_info(index) for index in range(len(dataset))]


class TestIdMaps:
    def test_colours_are_numbers(self, tmp_path):
        ids = np.array([[0, 7, 26001], [65536, 2**24 - 1, 300]], np.int32)
        path = tmp_path / 'map.png'
        Image.fromarray(encode_id_map(ids)).save(path)
        decoded = decode_id_map(path.read_bytes(), str(path))
        assert decoded.dtype == np.int32
        assert np.array_equal(decoded, ids)
        assert present_ids(decoded) == [7, 300, 26001, 65536, 2**24 - 1]

    @pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
    def test_one_channel(self, tmp_path, dtype):
        ids = np.array([[0, 7], [255, 3]], dtype)
        Image.fromarray(ids).save(tmp_path / 'map.png')
        assert np.array_equal(decode_id_map((tmp_path / 'map.png').read_bytes(), 'x'), ids)

    def test_a_palette_does_not_change_the_numbers(self, tmp_path):
        image = Image.fromarray(np.array([[1, 2]], np.uint8)).convert('P')
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
        image.save(tmp_path / 'map.png')
        decoded = decode_id_map((tmp_path / 'map.png').read_bytes(), 'x')
        assert np.array_equal(decoded, np.asarray(image))

    def test_other_files(self, tmp_path):
        with pytest.raises(ValueError, match=r'must be a readable image, got a\.png'):
            decode_id_map(b'text', 'a.png')
        Image.new('RGBA', (2, 2)).save(tmp_path / 'map.png')
        with pytest.raises(ValueError, match=r"got mode 'RGBA' in a\.png"):
            decode_id_map((tmp_path / 'map.png').read_bytes(), 'a.png')


class TestCityscapes:
    def test_the_official_conversion(self, tmp_path):
        case, arrays = golden.load('cityscapes_panoptic')
        for number, file in enumerate(case['files']):
            for kind in ('leftImg8bit', 'gtFine'):
                (tmp_path / kind / 'val' / file['city']).mkdir(parents=True)
            ids = arrays[f'{number}.instanceIds'].numpy().astype(np.uint16)
            name = f'val/{file["city"]}/{file["image_id"]}'
            Image.fromarray(ids).save(tmp_path / f'gtFine/{name}_gtFine_instanceIds.png')
            Image.new('RGB', ids.shape[::-1]).save(tmp_path / f'leftImg8bit/{name}_leftImg8bit.png')
        items = cityscapes(tmp_path)
        dataset = CityscapesPanopticDataset(lazy_init=True)
        category_ids = dataset.metainfo['category_ids']
        assert [item['img_id'] for item in items] == [file['image_id'] for file in case['files']]
        for number, item in enumerate(items):
            loaded = load(item)
            assert np.array_equal(loaded['gt_seg_map'], arrays[f'{number}.panoptic'].numpy())
            for key, numbers in (('id', category_ids), ('trainId', range(19))):
                expected = case['result'][key]['annotations'][number]['segments_info']
                assert [
                    (segment['id'], numbers[segment['category']], segment['iscrowd'])
                    for segment in loaded['segments_info']
                ] == [(entry['id'], entry['category_id'], entry['iscrowd']) for entry in expected]

    def test_the_table_is_the_official_one(self):
        from cityscapesscripts.helpers.labels import labels

        meta = CityscapesPanopticDataset(lazy_init=True).metainfo
        evaluated = [label for label in labels if not label.ignoreInEval]
        assert meta['classes'] == tuple(label.name for label in evaluated)
        assert meta['category_ids'] == tuple(label.id for label in evaluated)
        assert meta['palette'] == [label.color for label in evaluated]
        things = tuple(label.name for label in evaluated if label.hasInstances)
        assert meta['thing_classes'] == things
        assert set(meta['stuff_classes']) == set(meta['classes']) - set(things)

    def test_both_forms_of_the_truth(self, streets):
        by_ids = cityscapes(streets)
        by_json = cityscapes(
            streets,
            ann_file='gtFine/cityscapes_panoptic_val.json',
            data_prefix=dict(img='leftImg8bit/val', seg='gtFine/cityscapes_panoptic_val'),
        )
        assert len(by_ids) == len(by_json) == 12
        crowds = voids = 0
        for one, other in zip(by_ids, by_json, strict=True):
            assert one['img_path'] == other['img_path']
            assert one['img_id'] == other['img_id']
            first, second = load(one), load(other)
            assert np.array_equal(first['gt_seg_map'], second['gt_seg_map'])
            assert first['segments_info'] == second['segments_info']
            crowds += sum(segment['iscrowd'] for segment in first['segments_info'])
            voids += (first['gt_seg_map'] == 0).any()
        assert crowds
        assert voids

    def test_test_images_need_no_truth(self, streets, tmp_path):
        content = json.loads((streets / 'gtFine/cityscapes_panoptic_val.json').read_text())
        del content['annotations']
        (tmp_path / 'test.json').write_text(json.dumps(content))
        item = cityscapes(streets, ann_file=str(tmp_path / 'test.json'))[0]
        assert 'seg_map_path' not in item
        assert 'gt_seg_map' not in load(item)


class TestOtherSets:
    def test_coco_by_mmdet(self, landscapes):
        items = landscape_items(landscapes)
        assert len(items) == 12
        for item, scene in zip(items, landscapes.scenes, strict=True):
            loaded = load(item, num_things=len(CLASSES))
            assert np.array_equal(loaded['gt_seg_map'], 0x010101 * scene.positions)
            # sorted by id, which is the order of the scene
            segments = sorted(loaded['segments_info'], key=lambda segment: segment['id'])
            for segment, drawn in zip(segments, scene.segments, strict=True):
                first = 0 if drawn.is_thing else len(CLASSES)
                assert segment['category'] == first + drawn.class_index
                assert segment['iscrowd'] == drawn.is_crowd
        crowds = [segment.is_crowd for scene in landscapes.scenes for segment in scene.segments]
        assert any(crowds)
        assert any((scene.positions == 0).any() for scene in landscapes.scenes)

    def test_mmdet_items_do_not_tell_crowds(self, landscapes):
        with pytest.raises(ValueError, match='num_things of LoadPanopticMap must be the number'):
            load(landscape_items(landscapes)[0])

    def test_mapillary(self, tmp_path):
        for folder in ('images', 'panoptic'):
            (tmp_path / folder).mkdir()
        Image.new('RGB', (6, 4)).save(tmp_path / 'images/abc.jpg')
        ids = np.full((4, 6), 500, np.int32)
        ids[0] = 0
        Image.fromarray(encode_id_map(ids)).save(tmp_path / 'panoptic/abc.png')
        segment = dict(id=500, category_id=56, iscrowd=0, area=18, bbox=[0, 1, 6, 3])
        content = dict(
            images=[dict(id='abc', file_name='abc.jpg', height=4, width=6)],
            annotations=[dict(image_id='abc', file_name='abc.png', segments_info=[segment])],
            categories=[dict(id=56, name='Car', isthing=1)],
        )
        (tmp_path / 'panoptic/panoptic_2018.json').write_text(json.dumps(content))
        dataset = MapillaryVistasPanopticDataset(
            data_root=str(tmp_path),
            ann_file='panoptic/panoptic_2018.json',
            data_prefix=dict(img='images', seg='panoptic'),
            pipeline=[],
        )
        meta = dataset.metainfo
        assert (len(meta['classes']), len(meta['thing_classes'])) == (65, 37)
        loaded = load(dataset.get_data_info(0))
        assert loaded['segments_info'] == [dict(id=500, category=55, iscrowd=0)]
        assert meta['classes'][55] == 'Car'
        assert np.array_equal(loaded['gt_seg_map'], ids)

    def own_data(self, folder, ids, **kwargs):
        for name in ('images', 'maps'):
            (folder / name).mkdir(exist_ok=True)
        Image.new('RGB', ids.shape[::-1]).save(folder / 'images/a.png')
        Image.fromarray(ids).save(folder / 'maps/a.png')
        options = dict(metainfo=dict(classes=('floor', 'ball', 'box'), thing_classes=('ball',)))
        options.update(kwargs)
        return PanopticMapDataset(
            data_root=str(folder),
            data_prefix=dict(img='images', seg='maps'),
            pipeline=[],
            **options,
        )

    def test_own_id_maps(self, tmp_path):
        ids = np.array([[0, 1, 2001], [2002, 2, 3]], np.uint16)
        dataset = self.own_data(tmp_path, ids)
        loaded = load(dataset.get_data_info(0))
        assert loaded['segments_info'] == [
            dict(id=1, category=0, iscrowd=0),
            # balls that are not told apart
            dict(id=2, category=1, iscrowd=1),
            dict(id=3, category=2, iscrowd=0),
            dict(id=2001, category=1, iscrowd=0),
            dict(id=2002, category=1, iscrowd=0),
        ]
        assert dataset.metainfo['stuff_classes'] == ('floor', 'box')
        assert len(set(dataset.metainfo['palette'])) == 3

    def test_ignored_categories(self, tmp_path):
        ids = np.array([[255, 1]], np.uint8)
        dataset = self.own_data(tmp_path, ids, ignored_ids=(0, 255))
        assert load(dataset.get_data_info(0))['gt_seg_map'].tolist() == [[0, 1]]
        with pytest.raises(ValueError, match=r'got \[255\] in .*maps/a\.png'):
            load(self.own_data(tmp_path, ids).get_data_info(0))

    def test_classes_must_be_named(self, tmp_path):
        ids = np.zeros((1, 2), np.uint8)
        wrong = {
            r'metainfo\.thing_classes .* sequence of names, got None': dict(classes=('a',)),
            r'part of classes .* got \[.b.\]': dict(classes=('a',), thing_classes=('b',)),
            r'palette must have one entry': dict(
                classes=('a',), thing_classes=(), palette=[(0, 0, 0)] * 2
            ),
        }
        for message, metainfo in wrong.items():
            with pytest.raises(ValueError, match=message):
                self.own_data(tmp_path, ids, metainfo=metainfo)


class TestLoading:
    def item(self, tmp_path, ids, segments, size=(4, 6)):
        path = tmp_path / 'map.png'
        Image.fromarray(encode_id_map(ids)).save(path)
        entries = [dict(id=value, category=0, iscrowd=0) for value in segments]
        return dict(seg_map_path=str(path), segments_info=entries, ori_shape=size)

    @pytest.mark.parametrize(
        ('segments', 'size', 'message'),
        [
            ([1], (4, 6), 'got 1 without in .*map.png, such as 2'),
            ([1, 2, 9], (4, 6), 'segments must have pixels, got 1 without in .*map.png, such as 9'),
            ([1, 2], (4, 5), r'size of its image, got \(4, 6\) in .*map.png and \(4, 5\)'),
        ],
    )
    def test_wrong_maps(self, tmp_path, segments, size, message):
        ids = np.ones((4, 6), np.int32)
        ids[0], ids[1] = 0, 2
        with pytest.raises(ValueError, match=message):
            LoadPanopticMap()(self.item(tmp_path, ids, segments, size))
        assert LoadPanopticMap()(self.item(tmp_path, ids, [1, 2]))['gt_seg_map'][1, 0] == 2

    def test_augmentation_keeps_ids(self, landscapes):
        """Scale, crop, flip and pad move the ids with the pixels, and pads are void."""
        from mmcv.transforms import Compose
        from mmdet.registry import TRANSFORMS
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        steps = [
            dict(type='Resize', scale_factor=1.7),
            dict(type='RandomCrop', crop_size=(150, 230)),
            dict(type='RandomFlip', prob=1.0),
            dict(type='Pad', size=(160, 240), pad_val=dict(img=(1, 2, 3), seg=0)),
            dict(type='mmrednet.PackPanopticInputs'),
        ]
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        # the image holds the ids, but for what bilinear interpolation blurs
        scene = landscapes.scenes[0]
        for item in landscape_items(landscapes)[:1]:
            loaded = load(item, num_things=len(CLASSES))
            loaded['img'] = np.repeat(scene.positions[..., None].astype(np.uint8), 3, 2)
            packed = pipeline(loaded)
        truth = packed['data_samples'].gt_panoptic_seg.sem_seg
        assert truth.dtype.is_signed
        assert truth.shape == (1, 240, 160)
        image = packed['inputs'][0].long() * 0x010101
        assert (truth[0, :217, :150] == image[:217, :150]).float().mean() > 0.93
        assert not truth[0, 218:].any()
        assert not truth[0, :, 150:].any()
        assert packed['inputs'][:, 230, 155].tolist() == [1, 2, 3]
        ids = set(truth.unique().tolist()) - {0}
        assert ids <= {segment['id'] for segment in packed['data_samples'].segments_info}

    def test_packing(self, landscapes):
        loaded = load(landscape_items(landscapes)[0], num_things=len(CLASSES))
        sample = PackPanopticInputs()(loaded)['data_samples']
        assert str(sample.gt_panoptic_seg.sem_seg.dtype) == 'torch.int64'
        assert np.array_equal(sample.gt_panoptic_seg.sem_seg[0].numpy(), loaded['gt_seg_map'])
        assert sample.segments_info == loaded['segments_info']
        assert 'gt_sem_seg' not in sample
        # the item itself is not changed
        assert 'gt_seg_map' in loaded
        del loaded['gt_seg_map'], loaded['segments_info']
        assert 'gt_panoptic_seg' not in PackPanopticInputs()(loaded)['data_samples']


class TestScenes:
    def test_every_pixel_is_in_the_json(self, landscapes):
        path = landscapes.folder / 'annotations/panoptic_train2017.json'
        content = json.loads(path.read_text())
        assert [category['isthing'] for category in content['categories']] == [1] * 5 + [0] * 4
        for annotation in content['annotations']:
            image = landscapes.folder / 'annotations/panoptic_train2017' / annotation['file_name']
            ids = decode_id_map(image.read_bytes(), str(image))
            areas = {entry['id']: entry['area'] for entry in annotation['segments_info']}
            assert sum(areas.values()) == (ids > 0).sum()
            for entry in annotation['segments_info']:
                rows, columns = np.nonzero(ids == entry['id'])
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert entry['bbox'] == box
                assert entry['area'] == len(rows)

    def test_the_same_seed_gives_the_same_scene(self):
        first, second = (make_panoptic_scene(scene_generator(3, 'val', 1)) for _ in range(2))
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.positions, second.positions)
        assert first.segments == second.segments

    def test_all_classes_occur(self):
        scenes = [make_panoptic_scene(scene_generator(0, 'train', index)) for index in range(30)]
        segments = [segment for scene in scenes for segment in scene.segments]
        for is_thing, names in ((True, CLASSES), (False, STUFF)):
            indices = {entry.class_index for entry in segments if entry.is_thing == is_thing}
            assert indices == set(range(len(names)))

    def test_streets_without_groups_are_as_before(self):
        """Groups draw no random number where they are not asked for."""
        street = make_street(scene_generator(0, 'val', 0), (64, 128))
        assert not any(item.label == 'persongroup' for item in street.objects)
        grouped = [
            make_street(scene_generator(0, 'val', index), (64, 128), groups=True)
            for index in range(10)
        ]
        assert any(item.label == 'persongroup' for entry in grouped for item in entry.objects)
