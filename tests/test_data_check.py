"""What is checked of a config's data before training and before testing."""

import json
import logging
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image

from mmrednet.engine import check_classes, check_data, check_labels_when_loaded
from mmrednet.engine.key_check import check_keys

CAT, DOG = dict(id=1, name='cat'), dict(id=2, name='dog')
LOADING = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]


@pytest.fixture(scope='module', autouse=True)
def _frameworks():
    from mmdet.utils import register_all_modules as register_mmdet
    from mmseg.utils import register_all_modules as register_mmseg

    register_mmseg(init_default_scope=False)
    register_mmdet(init_default_scope=True)


@pytest.fixture
def warnings(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    logger.removeHandler(caplog.handler)


def annotation(number, **changes):
    entry = dict(
        id=number, image_id=1, category_id=1, bbox=[8, 8, 20, 20], area=400, iscrowd=0, **changes
    )
    return {key: value for key, value in entry.items() if value != 'missing'}


def entries(**changes):
    """Return the content of a file with one image and two annotations."""
    content = dict(
        images=[dict(id=1, file_name='a.png', width=64, height=48)],
        categories=[CAT, DOG],
        annotations=[annotation(1), annotation(2) | dict(category_id=2)],
    )
    return content | changes


def detection(folder, content=None, *, name='train.json', loader='train_dataloader', **dataset):
    """Write a data set and return its config."""
    text = content if isinstance(content, str) else json.dumps(content or entries())
    (folder / name).write_text(text)
    if not (folder / 'a.png').exists():
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(folder / 'a.png')
    options = dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file=name,
        data_prefix=dict(img=''),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=LOADING,
    )
    return Config({'default_scope': 'mmdet', loader: dict(dataset=options | dataset)})


def with_box(box, area=400):
    return entries(annotations=[annotation(1), annotation(2) | dict(bbox=box, area=area)])


def test_good_data_passes_in_silence(tmp_path, warnings):
    check_data(detection(tmp_path), strict=True, check_images=True)
    assert not warnings()


class TestErrors:
    @pytest.mark.parametrize(
        ('content', 'match'),
        [
            (
                entries(categories=[DOG, CAT]),
                r'classes must stand in the order of the categories in .*train.json',
            ),
            (
                entries(categories=[dict(id=0, name='cat'), CAT, DOG]),
                r"train.json: 2 categories have the name 'cat'",
            ),
            (
                entries(categories=[CAT, dict(id=1, name='dog')]),
                r'train.json: 2 categories have the id 1',
            ),
            (
                entries(categories=[CAT, dict(id=2)]),
                r"train.json: 1 entries of categories .*'name'",
            ),
            (
                entries(annotations=[annotation(7), annotation(7)]),
                r'train.json: 1 ids of annotations are given twice: 7',
            ),
            (
                entries(images=2 * entries()['images']),
                r'train.json: 1 ids of images are given twice: 1',
            ),
            (
                entries(images=[dict(id=1, file_name='a.png', height=48)]),
                r"train.json: 1 entries of images have no 'width'",
            ),
            (
                entries(images=[dict(id=1, file_name='a.png', width=0, height=48)]),
                r'train.json: 1 images have no positive width and height: a.png is 0 x 48',
            ),
            (
                entries(annotations=[{'id': 3, 'image_id': 1, 'category_id': 1, 'area': 1}]),
                r"train.json: 1 entries of annotations have no 'bbox': \{'id': 3",
            ),
            (with_box([8, 8, float('nan'), 5]), r'1 annotations .* four finite numbers: id 2 on'),
            (with_box([8, 8, float('inf'), 5]), r'1 annotations .* four finite numbers: id 2 on'),
            (with_box([8, 8, 5]), r'1 annotations .* four finite numbers: id 2 on image 1'),
            (with_box(['8', 8, 5, 5]), r'1 annotations .* four finite numbers: id 2 on image 1'),
            (
                entries(annotations=[annotation(1) | dict(category_id=9)]),
                r'train.json: none of its 1 annotations can be used',
            ),
            ('{"images": [', r'ann_file must be valid JSON, .*train.json is broken: Expecting'),
            (
                entries(images=[dict(id=1, file_name='b.png', width=64, height=48)]),
                r'train.json: 1 images do not exist: .*b.png',
            ),
            (
                entries(images=[dict(id=1, file_name='a.png', width=48, height=64)]),
                r'a.png has 64 x 48 when it is loaded, stated is 48 x 64$',
            ),
        ],
    )
    def test_wrong_beyond_repair(self, tmp_path, content, match):
        for loader in ('train_dataloader', 'test_dataloader'):
            with pytest.raises(ValueError, match=match):
                check_data(detection(tmp_path, content, loader=loader), loaders=[loader])

    def test_a_missing_folder(self, tmp_path):
        cfg = detection(tmp_path, data_prefix=dict(img='images'))
        with pytest.raises(
            FileNotFoundError, match=r'dataset.data_prefix.img must be an existing .*/images'
        ):
            check_data(cfg)

    def test_only_the_loaders_of_a_script(self, tmp_path):
        cfg = detection(tmp_path, entries(categories=[DOG, CAT]))
        check_data(cfg, loaders=['test_dataloader'])

    @pytest.mark.parametrize('loader', ['val_dataloader', 'test_dataloader'])
    def test_the_file_of_an_evaluator(self, tmp_path, loader):
        cfg = detection(tmp_path, loader=loader)
        (tmp_path / 'b.json').write_text(json.dumps(entries(categories=[DOG, CAT])))
        name = loader.replace('dataloader', 'evaluator')
        cfg[name] = [dict(type='CocoMetric', ann_file=str(tmp_path / 'b.json'))]
        with pytest.raises(ValueError, match='must stand in the order of the categories in .*b.js'):
            check_data(cfg)
        (tmp_path / 'b.json').write_text(json.dumps(entries(images=[])))
        with pytest.raises(ValueError, match=f'{name}.ann_file must have all images .* lacks 1'):
            check_data(cfg)
        (tmp_path / 'b.json').write_text(json.dumps(entries()))
        check_data(cfg)

    def test_a_photo_turned_by_its_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        photo = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
        photo.save(tmp_path / 'a.jpg', exif=exif.tobytes())
        content = entries(images=[dict(id=1, file_name='a.jpg', width=64, height=48)])
        with pytest.raises(ValueError, match=r'has 48 x 64 when it is loaded.*EXIF orientation 6'):
            check_data(detection(tmp_path, content))
        stored = [dict(type='LoadImageFromFile', color_type='color_ignore_orientation')]
        check_data(detection(tmp_path, content, pipeline=stored))

    def test_objects365_is_sorted_as_mmdet_does(self, tmp_path):
        content = entries(categories=[DOG, CAT])
        check_classes(detection(tmp_path, content, type='Objects365V1Dataset'))


class TestWarnings:
    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            (
                with_box([8, 8, 0, 5]),
                r'1 annotations have a box or an area that is empty or negative and are dropped: '
                'id 2 on image 1: bbox [8, 8, 0, 5], area 400',
            ),
            (with_box([8, 8, -3, 5]), 'empty or negative and are dropped: id 2'),
            (with_box([8, 8, 9, 9], area=0), 'empty or negative and are dropped: id 2'),
            (with_box([70, 8, 9, 9]), '1 annotations have a box outside its image and are dropped'),
            (
                with_box([30, 30, 60, 45]),
                '1 annotations have a box that sticks out of its image (bbox is x, y, width, '
                'height; these may be two corners): id 2',
            ),
            (
                entries(annotations=[annotation(1), annotation(2) | dict(category_id=9)]),
                'have an unknown category_id and are dropped: id 2 with category_id 9',
            ),
            (
                entries(annotations=[annotation(1), annotation(2) | dict(image_id=9)]),
                '1 annotations have an unknown image_id and are dropped: id 2 with image_id 9',
            ),
        ],
    )
    def test_what_is_dropped_is_counted(self, tmp_path, warnings, content, message):
        cfg = detection(tmp_path, content)
        check_data(cfg)
        assert [message in text for text in warnings()] == [True]
        with pytest.raises(ValueError, match='annotations have'):
            check_data(cfg, strict=True)

    def test_a_box_at_the_border_is_fine(self, tmp_path, warnings):
        check_data(detection(tmp_path, with_box([-0.5, 0, 65, 48.9])))
        assert not warnings()


def test_cut_images_are_found_when_all_are_decoded(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a.png')
    (tmp_path / 'a.png').write_bytes((tmp_path / 'a.png').read_bytes()[:3000])
    cfg = detection(tmp_path)
    check_data(cfg)
    with pytest.raises(ValueError, match='a.png: cannot be read as an image'):
        check_data(cfg, check_images=True)


def test_many_annotations_take_seconds(tmp_path):
    images = [dict(id=i, file_name='a.png', width=64, height=48) for i in range(10000)]
    annotations = [annotation(i) | dict(image_id=i % 10000) for i in range(100000)]
    cfg = detection(tmp_path, entries(images=images, annotations=annotations))
    start = time.process_time()
    check_data(cfg)
    assert time.process_time() - start < 10


class TestKeys:
    @pytest.mark.parametrize(
        ('wrong', 'right'),
        [
            ('train_dataloder', 'train_dataloader'),
            ('val_evaluater', 'val_evaluator'),
            ('optim_wraper', 'optim_wrapper'),
            ('default_hook', 'default_hooks'),
            ('trian_cfg', 'train_cfg'),
            ('evn_cfg', 'env_cfg'),
        ],
    )
    def test_a_misspelt_section(self, wrong, right):
        with pytest.raises(ValueError, match=f"'{wrong}' is no section .* did you mean '{right}'"):
            check_data(Config({'default_scope': 'mmdet', wrong: dict(batch_size=2)}))

    def test_variables_may_have_any_name(self):
        names = ('train_pipeline', 'test_pipeline', 'train_dataset', 'val_dataset', 'albu_train')
        check_data(Config(dict.fromkeys(names, dict()) | {'default_scope': 'mmdet'}))

    @pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
    def test_stock_configs_raise_no_alarm(self, scope):
        folder = Path(find_spec(scope).origin).parent / '.mim/configs'
        paths = sorted(path for path in folder.rglob('*.py') if '_base_' not in path.parts)
        # these have a variable that is much like a section
        lookalikes = [path for path in paths if 'gn-ws-all' in path.name][:1]
        sample = [*paths[::60], *lookalikes]
        assert len(sample) > 10
        for path in sample:
            check_keys(Config.fromfile(path))


class TestPickles:
    @pytest.mark.parametrize('name', ['ann_file', 'proposal_file'])
    @pytest.mark.parametrize('loader', ['train_dataloader', 'test_dataloader'])
    def test_data_sets(self, tmp_path, name, loader):
        cfg = detection(tmp_path, loader=loader, **{name: 'a.pkl'})
        with pytest.raises(ValueError, match=f"^{loader}.dataset.{name} must be no pickle.*'a.pkl"):
            check_data(cfg)

    def test_evaluators(self, tmp_path):
        cfg = detection(tmp_path, loader='val_dataloader')
        cfg.val_evaluator = dict(type='CocoMetric', ann_file='a.pickle')
        with pytest.raises(ValueError, match='^val_evaluator.ann_file must be no pickle'):
            check_data(cfg)


def segmentation(folder, *masks, classes=('background', 'object'), loader='train_dataloader'):
    """Write images and label images, and return the config of the data set."""
    for name in ('img', 'ann'):
        (folder / name).mkdir(exist_ok=True)
    for index, mask in enumerate(masks):
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(folder / f'img/{index}.png')
        Image.fromarray(mask).save(folder / f'ann/{index}.png')
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=classes, palette=[[0, 0, 0]] * len(classes)),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )
    return Config({'default_scope': 'mmseg', loader: dict(dataset=dataset)})


def square(value, size=16):
    mask = np.zeros((32, 32), np.uint8)
    mask[:size, :size] = value
    return mask


class TestLabels:
    @pytest.mark.parametrize('loader', ['train_dataloader', 'test_dataloader'])
    def test_masks_of_a_painting_program(self, tmp_path, loader):
        cfg = segmentation(tmp_path, square(255), square(255), loader=loader)
        with pytest.raises(ValueError, match=r"no pixel of \['object'\], and 25 % .* are 255"):
            check_data(cfg, loaders=[loader])

    def test_good_masks_pass(self, tmp_path, warnings):
        # one image without an object, one with a void border
        check_data(segmentation(tmp_path, square(1), square(0), square(255, 4)), strict=True)
        assert not warnings()

    def test_rare_classes_are_looked_for_in_more_images(self, tmp_path, warnings):
        masks = [square(0) for _ in range(60)]
        masks[1] = square(1)
        check_data(segmentation(tmp_path, *masks), strict=True)
        assert not warnings()

    def test_a_class_that_never_occurs_is_a_warning(self, tmp_path, warnings):
        mask = square(1)
        mask[16:, 16:] = 255
        cfg = segmentation(tmp_path, mask, classes=('background', 'cat', 'dog'))
        check_data(cfg)
        assert ["no pixel of ['dog']" in text for text in warnings()] == [True]
        with pytest.raises(ValueError, match='dog'):
            check_data(cfg, strict=True)

    def test_labels_that_are_no_classes(self, tmp_path):
        with pytest.raises(ValueError, match=r'labels must be from 0 to 1.*got \[7\] in .*0.png'):
            check_labels_when_loaded(segmentation(tmp_path, square(7)))

    def test_images_without_labels(self, tmp_path):
        cfg = segmentation(tmp_path, square(1), square(1))
        (tmp_path / 'ann/1.png').unlink()
        with pytest.raises(ValueError, match=r'1 files of seg_map_path do not exist: .*ann/1.png'):
            check_data(cfg)

    def test_a_missing_folder(self, tmp_path):
        cfg = segmentation(tmp_path, square(1))
        cfg.train_dataloader.dataset.data_prefix.seg_map_path = 'labels'
        with pytest.raises(FileNotFoundError, match=r'data_prefix.seg_map_path must be .*labels'):
            check_data(cfg)
