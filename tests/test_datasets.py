"""The shapes data set: the same seed gives the same bytes, and annotations are exact where objects
are hidden.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from synthetic import CLASSES, annotate_mask, make_scene, scene_generator, write_coco
from synthetic.shapes import MIN_VISIBLE_FRACTION

SCRIPT = Path(__file__).parents[1] / 'tools/synthetic/generate.py'


@settings(max_examples=300, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_annotations_of_any_mask_are_exact(mask):
    annotation = annotate_mask(mask)
    # a JSON file holds no bytes
    encoded = json.loads(json.dumps(annotation))['segmentation']
    assert np.array_equal(pycocotools.mask.decode(encoded), mask)
    assert annotation['area'] == mask.sum()


@pytest.fixture(scope='module')
def scenes():
    return [make_scene(scene_generator(0, 'train', index)) for index in range(200)]


@pytest.fixture(scope='module')
def folder(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_coco(folder, 'train', scenes, CLASSES)
    return folder


def test_annotations_are_what_is_visible(folder, scenes):
    coco = COCO(folder / 'annotations/instances_train.json')
    for image_id, scene in enumerate(scenes):
        annotations = coco.imgToAnns[image_id]
        assert len(annotations) == len(scene.classes) == scene.instances.max()
        for index, annotation in enumerate(annotations, start=1):
            mask = scene.instances == index
            rows, columns = np.nonzero(mask)
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert annotation['area'] == mask.sum()
            assert annotation['bbox'] == [
                columns.min(),
                rows.min(),
                np.ptp(columns) + 1,
                np.ptp(rows) + 1,
            ]
            assert coco.cats[annotation['category_id']]['name'] == CLASSES[scene.classes[index - 1]]


def test_mmdet_loads_the_masks_that_were_drawn(folder, scenes):
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    dataset = CocoDataset(
        data_root=str(folder),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        metainfo=dict(classes=CLASSES),
        pipeline=[],
        serialize_data=False,
    )
    load_image, load_annotations = LoadImageFromFile(), LoadAnnotations(with_mask=True)
    for index in range(0, 200, 10):
        item = load_annotations(load_image(dataset.get_data_info(index)))
        masks, scene = item['gt_masks'].masks, scenes[index]
        assert np.array_equal(item['img'], scene.image[..., ::-1])
        drawn = np.stack([scene.instances == number for number in range(1, len(masks) + 1)])
        assert len(masks) == len(scene.classes)
        assert np.array_equal(masks.astype(bool), drawn)


def test_scenes_are_hard_enough(scenes):
    hidden = [fraction for scene in scenes for fraction in scene.hidden]
    assert max(hidden) <= 1 - MIN_VISIBLE_FRACTION
    # at least three scenes in ten have an object of which a tenth or more is hidden
    assert np.mean([max(scene.hidden) > 0.1 for scene in scenes]) >= 0.3
    assert set(CLASSES) == {CLASSES[index] for scene in scenes for index in scene.classes}
    extents = [
        np.ptp(np.nonzero(scene.instances == index)[1]) + 1
        for scene in scenes
        for index in range(1, len(scene.classes) + 1)
        if scene.hidden[index - 1] < 0.01
    ]
    assert max(extents) > 8 * min(extents)
    assert min(scene.image.std() for scene in scenes) > 10


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def run(out_dir, *options):
    return subprocess.run(
        [sys.executable, SCRIPT, '--out-dir', out_dir, '--size', '64', '64', *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, options in (
        ('a', (3, 2, 7)),
        ('b', (3, 2, 7)),
        ('longer', (5, 2, 7)),
        ('other', (3, 2, 8)),
    ):
        train, val, seed = options
        assert run(tmp_path / name, '--train', train, '--val', val, '--seed', seed).returncode == 0
    a, b, longer, other = (digest(tmp_path / name) for name in ('a', 'b', 'longer', 'other'))
    assert a == b
    assert len(a) == 7
    assert all(
        longer[f'train/{index:06d}.png'] == a[f'train/{index:06d}.png'] for index in range(3)
    )
    assert not set(a.values()) & set(other.values())
    assert len(set(a.values())) == 7
    contents = json.loads((tmp_path / 'a/annotations/instances_val.json').read_text())
    assert [category['name'] for category in contents['categories']] == list(CLASSES)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--train', 0), '--train and --val must be at least 1'),
        (('--seed', -1), '--seed at least 0'),
    ],
)
def test_bad_options(tmp_path, options, message):
    result = run(tmp_path / 'out', *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / 'out').exists()


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / 'mine').write_text('')
    result = run(tmp_path, '--train', 1, '--val', 1)
    assert result.returncode == 2
    assert '--out-dir must be empty or --force given' in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(size=(32, 64)), r'size must be at least 48 x 48, got size=\(32, 64\)'),
        (dict(objects=(3, 2)), r'objects must be \(least, greatest\) .* got objects=\(3, 2\)'),
    ],
)
def test_bad_scenes(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scene(np.random.default_rng(0), **arguments)
