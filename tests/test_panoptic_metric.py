"""PQ, AP and mIoU against the reference numbers, the official script, and mmdet's pitfalls."""

import contextlib
import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from PIL import Image
from running import start_processes
from synthetic import CLASSES, STUFF, make_panoptic_scene, scene_generator, write_coco_panoptic
from torch import distributed as dist

from mmrednet.evaluation.mask_precision import average_precision, encode_instances
from mmrednet.evaluation.panoptic_metric import PanopticMetric, mean_iou, quality_table
from mmrednet.evaluation.panoptic_quality import (
    PQStat,
    average_quality,
    count_pairs,
    match_segments,
    segment_positions,
)

KEYS = ('tp', 'fp', 'fn')
META = dict(classes=('road', 'car', 'tree'), thing_classes=('car',), category_ids=(7, 26, 21))


def golden_pairs():
    case, arrays = golden.load('pdl_pq')
    for pair in case['pairs']:
        truths, predictions = [], []
        for entry in pair['gt_segments_info']:
            category, crowd = entry['category_id'], entry['iscrowd']
            truths.append(dict(id=entry['id'], category=category, iscrowd=crowd))
        for entry in pair['pred_segments_info']:
            predictions.append(dict(id=entry['id'], category=entry['category_id']))
        maps = [
            arrays[f'{pair["name"]}.{kind}'].numpy().astype(np.int64) for kind in ('gt', 'pred')
        ]
        yield pair, maps, truths, predictions


def statistics_of(maps, truths, predictions):
    true_positions = segment_positions(maps[0], truths, 0)
    positions = segment_positions(maps[1], predictions, 0)
    shape = (len(truths) + 1, len(predictions) + 1)
    return match_segments(count_pairs(true_positions, positions, shape), truths, predictions)


def assert_averages(averages, expected, names):
    for key in ('All', 'Things', 'Stuff'):
        figures = averages[key.lower()]
        if isinstance(expected[key], str):
            # the official code divides by zero
            assert np.isnan(list(figures.values())).all()
            continue
        for name in ('pq', 'sq', 'rq'):
            assert abs(figures[name] / 100 - expected[key][name]) < 1e-12
    for index, name in enumerate(names):
        counts = expected['counts'][str(index)]
        if not sum(counts[key] for key in KEYS):
            assert np.isnan(averages[f'class {name}']['pq'])
            continue
        for key, value in expected['per_class'][str(index)].items():
            assert abs(averages[f'class {name}'][key] / 100 - value) < 1e-12


def test_golden_counts_and_averages():
    case, _ = golden.load('pdl_pq')
    names = [category['name'] for category in case['categories']]
    things = [category['name'] for category in case['categories'] if category['isthing']]
    total = PQStat()
    for pair, maps, truths, predictions in golden_pairs():
        statistics = statistics_of(maps, truths, predictions)
        for index, expected in pair['result']['counts'].items():
            entry = statistics[int(index)]
            assert [getattr(entry, key) for key in KEYS] == [expected[key] for key in KEYS], pair
            assert abs(entry.iou - expected['iou']) < 1e-12
        assert_averages(average_quality(statistics, names, things), pair['result'], names)
        total += statistics
    assert_averages(average_quality(total, names, things), case['all_pairs'], names)


def sample_of(truth, segments, prediction, *, predicted=None, path='a.png', **fields):
    """Return the data sample of a pair of maps as the evaluator passes it on."""
    from mmdet.structures import DetDataSample

    metainfo = dict(img_path=path, img_id=Path(path).stem, segments_info=segments)
    if predicted is not None:
        metainfo['pred_segments_info'] = predicted
    sample = DetDataSample(metainfo=metainfo)
    sample.gt_panoptic_seg = PixelData(sem_seg=torch.as_tensor(truth)[None])
    sample.pred_panoptic_seg = PixelData(sem_seg=torch.as_tensor(prediction)[None])
    for name, labels in fields.items():
        setattr(sample, name, PixelData(sem_seg=torch.as_tensor(labels)[None]))
    return sample.to_dict()


def evaluate(samples, meta=META, **kwargs):
    metric = PanopticMetric(**kwargs)
    metric.dataset_meta = meta
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def half_maps():
    """Return a truth of road, void and a car, and a prediction that agrees with it."""
    truth = np.zeros((8, 12), np.int64)
    truth[:4], truth[4:, 6:] = 7, 26001
    segments = [dict(id=7, category=0, iscrowd=0), dict(id=26001, category=1, iscrowd=0)]
    prediction = np.full((8, 12), 3)
    prediction[:4], prediction[4:, 6:] = 0, 1001
    return truth, segments, prediction


class TestMetric:
    def test_a_first_class_of_stuff_beside_void(self):
        """mmdet counts the road as wrong here, because its id is that of void."""
        results = evaluate([sample_of(*half_maps())], classwise=True)
        assert results['panoptic/PQ'] == results['panoptic/PQ_road'] == 100
        assert results['panoptic/mIoU'] == 100
        # no tree occurs
        assert np.isnan(results['panoptic/PQ_tree'])

    def test_void_is_no_stuff(self):
        truth, segments, prediction = half_maps()
        prediction[prediction == 1001] = 3
        results = evaluate([sample_of(truth, segments, prediction)], classwise=True)
        assert results['panoptic/PQ_road'] == 100
        assert results['panoptic/PQ_car'] == 0

    def test_a_split_without_things(self):
        truth, _, prediction = half_maps()
        truth[truth == 26001], prediction[prediction == 1001] = 0, 3
        sample = sample_of(
            truth,
            [dict(id=7, category=0, iscrowd=0)],
            prediction,
            predicted=[dict(id=0, category=0, score=1.0)],
        )
        results = evaluate([sample])
        assert results['panoptic/PQ'] == results['panoptic/PQ_st'] == 100
        assert np.isnan(results['panoptic/PQ_th'])
        assert np.isnan(results['panoptic/AP'])

    def test_scores_rank_the_instances(self):
        truth, segments, prediction = half_maps()
        prediction[4:, :2] = 2001
        false, true = dict(id=2001, category=1), dict(id=1001, category=1)
        road = dict(id=0, category=0, score=1.0)
        for score, expected in ((0.9, 50), (0.1, 100)):
            predicted = [road, dict(false, score=score), dict(true, score=0.5)]
            results = evaluate([sample_of(truth, segments, prediction, predicted=predicted)])
            assert results['panoptic/AP'] == pytest.approx(expected, abs=0.1)

    def test_no_scores_no_precision(self):
        assert 'panoptic/AP' not in evaluate([sample_of(*half_maps())])

    def test_a_semantic_map_gives_the_miou(self):
        truth, segments, prediction = half_maps()
        labels = np.zeros((8, 12), np.int64)
        labels[4:, 9:] = 1
        results = evaluate([sample_of(truth, segments, prediction, pred_sem_seg=labels)])
        # road: 48 of 60 pixels, car: 12 of 24
        assert results['panoptic/mIoU'] == pytest.approx(100 * (48 / 60 + 0.5) / 2)
        assert results['panoptic/PQ'] == 100

    def test_what_is_wrong_names_the_image(self):
        truth, segments, prediction = half_maps()
        with pytest.raises(ValueError, match=r'a\.png: truth and prediction must have one size'):
            evaluate([sample_of(truth[:4], segments, prediction)])
        with pytest.raises(ValueError, match=r'a\.png: .* got \[26001\]'):
            evaluate([sample_of(truth, segments[:1], prediction)])
        predicted = [dict(id=0, category=0), dict(id=1001, category=1), dict(id=5, category=1)]
        with pytest.raises(ValueError, match=r'a\.png: segments must have pixels, got .*\[5\]'):
            evaluate([sample_of(truth, segments, prediction, predicted=predicted)])
        sample = sample_of(truth, segments, prediction)
        del sample['gt_panoptic_seg']
        with pytest.raises(ValueError, match='PanopticMetric needs gt_panoptic_seg'):
            evaluate([sample])
        with pytest.raises(ValueError, match='format_only needs outfile_prefix'):
            PanopticMetric(format_only=True)
        with pytest.raises(ValueError, match='figures must be some of'):
            PanopticMetric(figures=('PC',))

    def test_written_without_truth(self, tmp_path):
        sample = sample_of(*half_maps(), path='city/b.jpg')
        del sample['gt_panoptic_seg']
        prefix = str(tmp_path / 'out/val')
        assert evaluate([sample], format_only=True, outfile_prefix=prefix) == {}
        (entry,) = json.loads((tmp_path / 'out/val.panoptic.json').read_text())['annotations']
        assert (entry['image_id'], entry['file_name']) == ('b', 'b.png')
        assert [(segment['id'], segment['category_id']) for segment in entry['segments_info']] == [
            (1, 7),
            (1002, 26),
        ]
        colours = np.asarray(Image.open(tmp_path / 'out/val.panoptic/b.png')).astype(int)
        ids = colours @ [1, 256, 65536]
        assert np.unique(ids).tolist() == [0, 1, 1002]

    def test_categories_of_a_file(self, tmp_path):
        categories = [dict(id=5 + index, name=name) for index, name in enumerate(META['classes'])]
        (tmp_path / 'truth.json').write_text(json.dumps(dict(categories=categories)))
        options = dict(outfile_prefix=str(tmp_path / 'val'), format_only=True)
        evaluate([sample_of(*half_maps())], ann_file=str(tmp_path / 'truth.json'), **options)
        (entry,) = json.loads((tmp_path / 'val.panoptic.json').read_text())['annotations']
        assert [segment['category_id'] for segment in entry['segments_info']] == [5, 6]


def noisy_prediction(rng, scene):
    """Return a map of mmdet's ids near the truth: shifted, with wrong classes and new segments."""
    classes = [
        entry.class_index if entry.is_thing else len(CLASSES) + entry.class_index
        for entry in scene.segments
    ]
    void = len(CLASSES) + len(STUFF)
    ids = [void]
    for number, category in enumerate(classes, start=1):
        if rng.random() < 0.2:
            category = int(rng.integers(len(CLASSES)))
        ids.append(category if category >= len(CLASSES) else 1000 * number + category)
        if rng.random() < 0.1:
            ids[-1] = void
    prediction = np.array(ids)[np.roll(scene.positions, rng.integers(-6, 7, 2), (0, 1))]
    for number in (50, 51):
        top, left = rng.integers(0, 100, 2)
        prediction[top : top + 20, left : left + 20] = 1000 * number + rng.integers(len(CLASSES))
    return prediction.astype(np.int64)


def test_the_official_script_on_written_files(tmp_path):
    """The script of cityscapesscripts, run on the files, gives the same figures."""
    rng = np.random.default_rng(0)
    scenes = [make_panoptic_scene(scene_generator(1, 'val', index)) for index in range(12)]
    write_coco_panoptic(tmp_path, 'val', scenes, CLASSES)
    classes = (*CLASSES, *STUFF)
    samples = []
    for image_id, scene in enumerate(scenes, start=1):
        segments = []
        for number, entry in enumerate(scene.segments, start=1):
            category = entry.class_index + (0 if entry.is_thing else len(CLASSES))
            segments.append(dict(id=number, category=category, iscrowd=int(entry.is_crowd)))
        sample = sample_of(
            scene.positions.astype(np.int64),
            segments,
            noisy_prediction(rng, scene),
            path=f'val2017/{image_id:012d}.jpg',
        )
        samples.append(dict(sample, img_id=image_id))
    truth = tmp_path / 'annotations/panoptic_val2017.json'
    meta = dict(classes=classes, thing_classes=CLASSES)
    results = evaluate(
        samples, meta, ann_file=str(truth), outfile_prefix=str(tmp_path / 'pred'), classwise=True
    )
    script = 'cityscapesscripts.evaluation.evalPanopticSemanticLabeling'
    subprocess.run(
        [
            *(sys.executable, '-m', script, '--gt-json-file', truth),
            *('--prediction-json-file', tmp_path / 'pred.panoptic.json'),
            *('--prediction-folder', tmp_path / 'pred.panoptic'),
            *('--results_file', tmp_path / 'results.json'),
        ],
        check=True,
        capture_output=True,
    )
    expected = json.loads((tmp_path / 'results.json').read_text())
    for key, suffix in (('All', ''), ('Things', '_th'), ('Stuff', '_st')):
        for name in ('pq', 'sq', 'rq'):
            value = results[f'panoptic/{name.upper()}{suffix}']
            assert value == pytest.approx(100 * expected[key][name], rel=1e-12)
    # neither perfect nor all wrong
    assert 20 < results['panoptic/PQ_th'] < 90
    for index, name in enumerate(classes):
        category = str(index + 1 if index < len(CLASSES) else 101 + index - len(CLASSES))
        figure = results[f'panoptic/PQ_{name}']
        assert figure == pytest.approx(100 * expected['per_class'][category]['pq'], rel=1e-12)


def right_and_wrong():
    """Return a right prediction, and one of the same image without the car."""
    truth, segments, prediction = half_maps()
    wrong = np.where(prediction == 1001, 3, prediction)
    predicted = [dict(id=0, category=0, score=1.0), dict(id=1001, category=1, score=0.5)]
    return [
        sample_of(truth, segments, prediction, predicted=predicted),
        sample_of(truth, segments, wrong, predicted=predicted[:1], path='b.png'),
    ]


def evaluate_in_process(rank, port, folder):
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    metric = PanopticMetric(outfile_prefix=f'{folder}/val')
    metric.dataset_meta = META
    metric.process({}, [right_and_wrong()[rank]])
    torch.save(metric.evaluate(2), f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    assert start_processes(evaluate_in_process, (port, str(tmp_path)), 2) == [0, 0]
    expected = evaluate(right_and_wrong())
    assert expected['panoptic/PQ_th'] == pytest.approx(200 / 3)
    assert expected['panoptic/AP'] == pytest.approx(50.5, abs=0.1)
    for rank in range(2):
        results = torch.load(tmp_path / f'{rank}.pth', weights_only=False)
        assert results == pytest.approx(expected)
    # the JSON file has the images of both
    entries = json.loads((tmp_path / 'val.panoptic.json').read_text())['annotations']
    assert [entry['image_id'] for entry in entries] == ['a', 'b']


class TestParts:
    @pytest.mark.parametrize(('column', 'false_positives'), [(0, 1), (4, 0)])
    def test_the_last_crowd_of_a_class_counts(self, column, false_positives):
        truth = np.repeat([[1, 1, 1, 1, 2, 2, 2, 2]], 4, 0)
        truths = [dict(id=number, category=1, iscrowd=1) for number in (1, 2)]
        prediction = np.zeros((4, 8), np.int64)
        prediction[:, column : column + 4] = 5
        statistics = statistics_of([truth, prediction], truths, [dict(id=5, category=1)])
        entry = statistics[1]
        assert (entry.tp, entry.fp, entry.fn) == (0, false_positives, 0)

    def test_instances_are_the_masks(self):
        from pycocotools import mask as coco_mask

        positions = np.array([[0, 1, 1, 2], [3, 3, 1, 2]])
        segments = [dict(category=1, score=0.5), dict(category=0), dict(category=1, iscrowd=1)]
        instances = encode_instances(positions, segments, frozenset([1]))
        assert [entry['area'] for entry in instances] == [3, 2]
        assert [entry['iscrowd'] for entry in instances] == [0, 1]
        assert [entry['score'] for entry in instances] == [0.5, 1.0]
        assert instances[0]['bbox'] == [1, 0, 2, 2]
        for entry, position in zip(instances, (1, 3), strict=True):
            assert np.array_equal(coco_mask.decode(entry['segmentation']), positions == position)

    def test_precision_is_quiet(self):
        positions = np.ones((20, 20), int)
        instances = encode_instances(positions, [dict(category=1, score=0.5)], frozenset([1]))
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            figures = average_precision([(instances, instances), (instances, [])], [1])
        assert text.getvalue() == ''
        assert figures['AP'] == pytest.approx(50.5, abs=0.1)
        assert average_precision([(instances, [])], [1]) == dict(AP=0, AP50=0)

    def test_miou_of_images_together(self):
        areas = np.array([[[4, 0], [8, 0], [6, 0]], [[1, 0], [1, 0], [5, 0]]])
        assert mean_iou(areas) == pytest.approx(100 * 5 / 15)
        assert np.isnan(mean_iou(np.zeros((1, 3, 2), int)))

    def test_the_table_has_every_class(self):
        averages = average_quality(PQStat(), META['classes'], META['thing_classes'])
        rows = quality_table(averages).splitlines()
        assert [row.split()[0] for row in rows[1:]] == [
            'road',
            'car',
            'tree',
            'all',
            'things',
            'stuff',
        ]
