"""The hamburger head, streets in Cityscapes format, label checks, and one small segmenter through
the scripts.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from running import run_warm
from synthetic import LABELS, label_maps, make_street, scene_generator, write_cityscapes

from mmrednet.analysis.panels import GAP
from mmrednet.layers.hamburger import NMF2D, Hamburger

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/segnext/segnext_mscan-t_4xb2-160k_cityscapes-1024x1024.py'
HEAD = dict(
    in_channels=[8, 16],
    in_index=[0, 1],
    channels=8,
    ham_channels=8,
    num_classes=5,
    dropout_ratio=0,
    norm_cfg=dict(type='GN', num_groups=2),
    align_corners=False,
)


def maps(batch=2):
    return [torch.randn(batch, 8, 12, 10), torch.randn(batch, 16, 6, 5)]


def ours(**kwargs):
    from mmrednet.heads import LightHamHead

    return LightHamHead(**HEAD, **kwargs).eval()


class TestHead:
    def test_the_same_twice_where_the_stock_head_differs(self):
        from mmseg.models.decode_heads import LightHamHead

        inputs, head = maps(), ours(ham_kwargs=dict(MD_R=4))
        stock = LightHamHead(**HEAD, ham_kwargs=dict(MD_R=4)).eval()
        # the stock head's names are ours; its bases are in no file
        head.load_state_dict(stock.state_dict(), strict=True)
        with torch.no_grad():
            assert torch.equal(head(inputs), head(inputs))
            assert not torch.equal(stock(inputs), stock(inputs))
            # from the same bases both decompose alike
            stock.hamburger.ham._build_bases = lambda batch, *_, **__: (
                head.hamburger.ham.bases.repeat(batch, 1, 1)
            )
            torch.testing.assert_close(head(inputs), stock(inputs))
            head.train(), stock.train()
            torch.testing.assert_close(head(inputs), stock(inputs))

    def test_two_builds_agree_and_seeds_matter(self):
        first, second, other = (NMF2D(8, MD_R=4, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.bases, second.bases)
        assert not torch.equal(first.bases, other.bases)
        assert 'bases' in first.state_dict()
        assert first.bases.norm(dim=1).tolist() == [pytest.approx([1.0] * 4)]

    def test_an_image_does_not_see_its_batch(self):
        head, inputs = ours().double(), [x.double() for x in maps(3)]
        with torch.no_grad():
            together = head(inputs)
            for index in range(3):
                alone = head([x[index : index + 1] for x in inputs])
                torch.testing.assert_close(
                    alone, together[index : index + 1], rtol=1e-10, atol=1e-12
                )

    def test_bases_are_redrawn_when_asked(self):
        head, inputs = ours(ham_kwargs=dict(rand_init=True)), maps()
        assert not any('bases' in key for key in head.state_dict())
        with torch.no_grad():
            assert not torch.equal(head(inputs), head(inputs))

    def test_kept_bases_are_loaded(self):
        first, second = NMF2D(8, MD_R=4, seed=1), NMF2D(8, MD_R=4, seed=2)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.bases, second.bases)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_finite_under_autocast(self, dtype):
        burger = Hamburger(16, norm_cfg=dict(type='GN', num_groups=2), ham_kwargs=dict(MD_R=4))
        for seed in range(25):
            generator = torch.Generator().manual_seed(seed)
            # from dead maps to ones whose products leave the range of float16
            x = torch.randn(1, 16, 7, 6, generator=generator) * 10.0 ** (seed % 5 - 2)
            with torch.autocast('cpu', dtype):
                y = burger(x.requires_grad_())
            assert y.isfinite().all(), seed
            (gradient,) = torch.autograd.grad(y.float().sum(), x)
            assert gradient.isfinite().all(), seed

    def test_parts_are_decomposed_separately(self):
        ham, x = (
            NMF2D(8, MD_S=2, MD_R=3).double().eval(),
            torch.rand(2, 8, 5, 4, dtype=torch.float64),
        )
        parts = []
        for index in range(2):
            single = NMF2D(4, MD_R=3).double().eval()
            single.bases.copy_(ham.bases[index : index + 1])
            parts.append(single(x[:, 4 * index : 4 * index + 4]))
        torch.testing.assert_close(ham(x), torch.cat(parts, 1))

    def test_more_steps_come_closer(self):
        x = torch.rand(1, 8, 6, 6, dtype=torch.float64)
        errors = [
            golden.relative_error(NMF2D(8, MD_R=4, eval_steps=steps).double().eval()(x), x)
            for steps in (1, 10, 100)
        ]
        assert errors[0] > errors[1] > errors[2]

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match='MD_S must divide channels, got channels=8, MD_S=3'):
            NMF2D(8, MD_S=3)


@pytest.fixture(scope='session')
def streets():
    return [make_street(scene_generator(0, 'train', index), (64, 128)) for index in range(12)]


@pytest.fixture(scope='session')
def data(tmp_path_factory, streets):
    folder = tmp_path_factory.mktemp('streets')
    write_cityscapes(folder, 'train', streets[:4])
    write_cityscapes(folder, 'val', streets[4:6])
    return folder


class TestStreets:
    def test_official_tools_draw_the_same(self, data):
        from cityscapesscripts.helpers.annotation import Annotation
        from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
        from cityscapesscripts.preparation.json2labelImg import createLabelImage

        files = sorted(data.glob('gtFine/train/*/*_polygons.json'))
        assert len(files) == 4
        for path in files:
            annotation = Annotation()
            annotation.fromJsonFile(str(path))
            stem = str(path).removesuffix('polygons.json')
            for suffix, draw in (
                ('labelIds', lambda a: createLabelImage(a, 'ids')),
                ('labelTrainIds', lambda a: createLabelImage(a, 'trainIds')),
                ('instanceIds', lambda a: createInstanceImage(a, 'ids')),
            ):
                labels = np.array(Image.open(f'{stem}{suffix}.png')).astype(int)
                assert np.array_equal(labels, np.array(draw(annotation)).astype(int)), (
                    path,
                    suffix,
                )

    def test_labels_are_the_official_ones(self):
        from cityscapesscripts.helpers.labels import name2label

        for name, label in LABELS.items():
            # groups have the labels of their members
            official = name2label[name.removesuffix('group')]
            assert (label.id, label.train_id) == (official.id, official.trainId), name
            assert label.has_instances == (official.hasInstances and not name.endswith('group'))

    def test_every_class_appears_and_hides_others(self, streets):
        ids = {
            value
            for street in streets
            for value in np.unique(label_maps(street)['labelIds']).tolist()
        }
        assert ids == {label.id for label in LABELS.values()}
        assert all(street.image.std() > 15 for street in streets)

    def test_the_same_seed_gives_the_same_bytes(self, tmp_path):
        digests = []
        for name, seed in (('a', 1), ('b', 1), ('c', 2)):
            command = [
                sys.executable,
                ROOT / 'tools/synthetic/generate.py',
                '--format',
                'cityscapes',
                '--train',
                '1',
                '--val',
                '1',
                '--size',
                '64',
                '96',
                '--seed',
                str(seed),
                '--out-dir',
                tmp_path / name,
            ]
            subprocess.run(command, check=True, capture_output=True)
            digests.append(
                {
                    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                    for path in (tmp_path / name).rglob('*')
                    if path.is_file() and 'train' in path.parts
                }
            )
        assert digests[0] == digests[1]
        assert sorted(name.split('_')[-1] for name in digests[0]) == [
            'instanceIds.png',
            'labelIds.png',
            'labelTrainIds.png',
            'leftImg8bit.png',
            'polygons.json',
        ]
        assert not set(digests[0].values()) & set(digests[2].values())

    def test_bad_size(self):
        with pytest.raises(ValueError, match='size must be at least 64 x 64, got'):
            make_street(np.random.default_rng(0), (32, 128))


def loading(image, labels, num_classes=5, **kwargs):
    from mmengine.registry import TRANSFORMS

    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='mmrednet.LoadCheckedAnnotations', num_classes=num_classes, **kwargs),
    ]
    results = dict(
        img_path=str(image),
        seg_map_path=str(labels),
        seg_fields=[],
        reduce_zero_label=False,
        label_map=None,
    )
    with TRANSFORMS.switch_scope_and_registry('mmseg') as registry:
        for step in steps:
            results = registry.build(step)(results)
    return results['gt_seg_map']


class TestLabels:
    @pytest.fixture
    def image(self, tmp_path):
        path = tmp_path / 'image.png'
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
        return path

    def write(self, folder, values):
        Image.fromarray(values).save(folder / 'labels.png')
        return folder / 'labels.png'

    def test_good_labels_pass(self, image, tmp_path):
        values = np.random.default_rng(0).choice([0, 1, 4, 255], (6, 8)).astype(np.uint8)
        assert np.array_equal(loading(image, self.write(tmp_path, values)), values)

    @pytest.mark.parametrize(
        ('values', 'message'),
        [
            (
                np.full((6, 8), 5, np.uint8),
                r'labels must be from 0 to 4, or 255 .* got \[5\] in .*labels.png',
            ),
            (
                np.zeros((8, 6), np.uint8),
                r'size of its image, got \(8, 6\) in .*labels.png and \(6, 8\) in .*image.png',
            ),
            (
                np.zeros((6, 8, 3), np.uint8),
                "one channel of 8 bits, got mode 'RGB' in .*labels.png",
            ),
            (
                np.full((6, 8), 300, np.uint16),
                "one channel of 8 bits, got mode 'I;16' in .*labels.png",
            ),
        ],
    )
    def test_bad_labels(self, image, tmp_path, values, message):
        with pytest.raises(ValueError, match=message):
            loading(image, self.write(tmp_path, values))

    @pytest.mark.parametrize('cut', [0, 20, 60])
    def test_broken_files(self, image, tmp_path, cut):
        path = self.write(
            tmp_path, np.random.default_rng(0).integers(0, 4, (6, 8)).astype(np.uint8)
        )
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match='label image must be readable, got .*labels.png'):
            loading(image, path)
        with pytest.raises(FileNotFoundError, match='none.png'):
            loading(image, tmp_path / 'none.png')

    def test_an_unreadable_image_is_named(self, image, tmp_path):
        labels = self.write(tmp_path, np.zeros((6, 8), np.uint8))
        image.write_bytes(b'no image')
        with pytest.raises(AssertionError, match='failed to load image: .*image.png'):
            loading(image, labels)

    def test_every_pipeline_of_a_config_is_checked(self):
        from mmrednet.engine import check_labels_when_loaded, load_config

        cfg = load_config(str(CONFIG))
        check_labels_when_loaded(cfg)
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            steps = [step for step in loader.dataset.pipeline if 'Annotations' in step.type]
            assert [(step.type, step.num_classes) for step in steps] == [
                ('mmrednet.LoadCheckedAnnotations', 19)
            ]

    def test_classes_of_the_head_are_checked(self):
        from mmrednet.engine import check_classes, load_config

        cfg = load_config(str(CONFIG), options={'model.decode_head.num_classes': 18})
        with pytest.raises(ValueError, match='model.decode_head.num_classes must be 19, .* got 18'):
            check_classes(cfg)


def test_camvid(tmp_path):
    script = ROOT / 'tools/dataset_converters/camvid.py'
    rng = np.random.default_rng(0)
    values = rng.integers(0, 12, (2, 12, 16)).astype(np.uint8)
    for index in range(2):
        for folder, content in (
            ('train', rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)),
            ('trainannot', values[index]),
        ):
            (tmp_path / 'source' / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(tmp_path / 'source' / folder / f'{index}.png')
    command = [sys.executable, script, tmp_path / 'source', '--out-dir', tmp_path / 'out']
    assert (
        'train: 2 images'
        in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    from mmseg.registry import DATASETS

    dataset = DATASETS.build(
        dict(
            type='mmrednet.CamVidDataset',
            data_root=str(tmp_path / 'out'),
            data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        )
    )
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
    for index in range(2):
        assert np.array_equal(
            dataset[index]['gt_seg_map'], np.where(values[index] == 11, 255, values[index])
        )
    Image.fromarray(np.full((12, 16), 12, np.uint8)).save(tmp_path / 'source/trainannot/1.png')
    assert (
        'up to 12 in' in subprocess.run(command, check=False, capture_output=True, text=True).stderr
    )
    empty = subprocess.run(
        [sys.executable, script, tmp_path / 'out/images'],
        check=False,
        capture_output=True,
        text=True,
    )
    assert 'source must have folders such as' in empty.stderr


def run(script, *arguments):
    result = run_warm(ROOT / 'tools' / script, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope='session')
def options(data):
    """Return what turns SegNeXt on Cityscapes into a training of two iterations on our streets."""
    loaders = [
        f'{loader}_dataloader.{key}={value}'
        for loader in ('train', 'val', 'test')
        for key, value in (
            ('dataset.data_root', f'{data}/'),
            ('num_workers', 0),
            ('persistent_workers', False),
        )
    ]
    return [
        '--cfg-options',
        *loaders,
        'train_dataloader.dataset.pipeline.2.scale=(128,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'model.data_preprocessor.size=(64,64)',
        'test_pipeline.1.scale=(128,64)',
        'test_dataloader.dataset.pipeline.1.scale=(128,64)',
        'val_dataloader.dataset.pipeline.1.scale=(128,64)',
        'model.test_cfg.crop_size=(64,64)',
        'model.test_cfg.stride=(48,48)',
        'model.backbone.init_cfg=None',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.logger.interval=1',
        'param_scheduler.0.start_factor=1.0',
        'default_hooks.checkpoint.interval=2',
        'randomness.seed=0',
    ]


@pytest.fixture(scope='session')
def trained(tmp_path_factory, options):
    work_dir = tmp_path_factory.mktemp('seg')
    # as a user does: this process imports what it needs
    result = subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', CONFIG, '--work-dir', work_dir, *options],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return work_dir


class TestScripts:
    def test_training(self, trained):
        lines = next(trained.glob('*/vis_data/scalars.json')).read_text().split('\n')
        losses = [json.loads(line)['loss'] for line in lines if '"loss"' in line]
        assert len(losses) == 2
        assert all(0 < loss < 100 for loss in losses)

    def test_the_official_evaluation_agrees(self, trained, options, tmp_path):
        config = tmp_path / 'two_metrics.py'
        metrics = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='CityscapesMetric')]
        config.write_text(f"_base_ = '{CONFIG}'\ntest_evaluator = {metrics}\n")
        files = ['--work-dir', tmp_path / 'a', '--out', tmp_path / 'labels']
        run('test.py', config, trained / 'iter_2.pth', *files, *options)
        results = json.loads(next((tmp_path / 'a').glob('*/*.json')).read_text())
        assert len(list((tmp_path / 'labels').glob('*.png'))) == 2
        assert 0 <= results['averageScoreCategories'] <= 1
        assert 0 <= results['mIoU'] <= 100

    def test_pictures(self, trained, options, data, tmp_path):
        image = next(data.glob('leftImg8bit/val/*/*.png'))
        run(
            'image_demo.py',
            image,
            CONFIG,
            trained / 'iter_2.pth',
            '--out-dir',
            tmp_path / 'a',
            *options,
        )
        assert (tmp_path / 'a' / image.name).is_file()
        run(
            'analysis_tools/draw.py',
            CONFIG,
            trained / 'iter_2.pth',
            '--out-dir',
            tmp_path / 'b',
            '--images',
            0,
            1,
            '--scale',
            1,
            *options,
        )
        # two rows of three panels, with captions above and a legend below
        width, height = Image.open(tmp_path / 'b/segmentations.png').size
        assert width == 3 * 128 + 2 * GAP
        assert height > 2 * 64

    def test_a_wrong_label_stops_with_its_file(self, data, options, tmp_path):
        import shutil

        shutil.copytree(data, tmp_path / 'data')
        path = next((tmp_path / 'data').glob('gtFine/train/*/*_labelTrainIds.png'))
        Image.fromarray(np.full((64, 128), 19, np.uint8)).save(path)
        moved = [option.replace(str(data), str(tmp_path / 'data')) for option in options]
        result = run_warm(ROOT / 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'work', *moved)
        assert result.returncode != 0
        assert f'got [19] in {path}' in result.stderr
