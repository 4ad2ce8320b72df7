"""Pictures of panoptic maps: colours of instances, contours, void and the legend."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from PIL import Image

from mmrednet.analysis import draw_panoptics
from mmrednet.analysis.panoptic_drawing import (
    HATCHING,
    paint_segments,
    panoptic_legend,
    segment_colours,
)
from mmrednet.analysis.panoptic_visualizer import PanopticVisualizer

META = dict(
    classes=('road', 'tree', 'car'),
    thing_classes=('car',),
    palette=[(128, 64, 128), (20, 140, 30), (0, 0, 142)],
)
SEGMENTS = [dict(id=7, category=0), dict(id=9, category=2), dict(id=10, category=2)]


def ids():
    """Return a map with void above, two cars and the road."""
    values = np.zeros((32, 48), np.int64)
    values[8:] = 7
    values[12:20, 4:20], values[12:20, 28:44] = 9, 10
    return values


def sample_of(folder, name='a.png', truth=True, stated=True):
    from mmdet.structures import DetDataSample

    Image.fromarray(np.full((32, 48, 3), 100, np.uint8)).save(folder / name)
    sample = DetDataSample(metainfo=dict(img_path=str(folder / name)))
    if truth:
        sample.gt_panoptic_seg = PixelData(sem_seg=torch.from_numpy(ids())[None])
        sample.set_metainfo(dict(segments_info=SEGMENTS))
    prediction = np.select([ids() == 7, ids() == 9, ids() == 10], [0, 1002, 2002], 3)
    sample.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(prediction)[None])
    if stated:
        segments = [dict(id=0, category=0), dict(id=1002, category=2), dict(id=2002, category=2)]
        sample.set_metainfo(dict(pred_segments_info=segments))
    return sample


def model_of():
    return SimpleNamespace(dataset_meta=META, test_step=lambda batch: batch['data_samples'])


class TestColours:
    def test_instances_differ_and_stuff_does_not(self):
        segments = [dict(category=2)] * 12 + [dict(category=0)] * 2
        colours = segment_colours(segments, META['palette'], frozenset([2]))
        assert len(set(colours[:12])) == 12
        assert colours[12] == colours[13] == META['palette'][0]
        # blue stays the strongest channel
        assert all(max(colour) == colour[2] for colour in colours[:12])

    def test_contours_and_void(self):
        colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
        painted = paint_segments(np.full((32, 48, 3), 100, np.uint8), ids(), SEGMENTS, colours)
        assert painted[25, 30].tolist() == [165, 35, 35]
        assert painted[15, 10].tolist() == [35, 165, 35]
        assert painted[15, 35].tolist() == [35, 35, 165]
        # between road and car, and between void and road
        assert painted[11, 10].tolist() == painted[7, 30].tolist() == [0, 0, 0]
        greys = {tuple(pixel) for pixel in painted[:7].reshape(-1, 3).tolist()}
        assert greys == set(HATCHING)

    def test_the_legend_names_what_occurs(self):
        strip = panoptic_legend({0, -1}, META, 200)
        colours = {tuple(pixel) for pixel in strip.reshape(-1, 3).tolist()}
        assert {META['palette'][0], HATCHING[0]} <= colours
        assert META['palette'][1] not in colours
        # a square before each of two names, of which the second is void
        squares = (strip[10] == HATCHING[0]).all(1).sum()
        assert squares >= 14
        assert (panoptic_legend({0}, META, 200)[10] == HATCHING[0]).all(1).sum() < 14


class TestPictures:
    def test_image_truth_and_prediction(self, tmp_path):
        samples = [sample_of(tmp_path), sample_of(tmp_path, 'b.png', stated=False)]
        items = [dict(inputs=None, data_samples=sample) for sample in samples]
        picture = draw_panoptics(model_of(), items, [0, 1], scale=3)
        assert picture.shape[1] == 3 * 3 * 48
        assert 2 * 96 < picture.shape[0] < 2 * 96 + 80
        for top in (0, 96):
            truth = picture[top : top + 96, 144:288]
            prediction = picture[top : top + 96, 288:432]
            # below the title
            assert np.array_equal(truth[30:], prediction[30:])
            # two cars
            assert not np.array_equal(truth[45, 30], truth[45, 100])

    def test_without_truth(self, tmp_path):
        items = [dict(inputs=None, data_samples=sample_of(tmp_path, truth=False))]
        assert draw_panoptics(model_of(), items, [0], scale=3).shape[1] == 2 * 144

    def test_no_images(self):
        with pytest.raises(ValueError, match='indices must name at least one image'):
            draw_panoptics(model_of(), [], [])


class TestVisualizer:
    def picture(self, tmp_path, **kwargs):
        visualizer = PanopticVisualizer()
        visualizer.dataset_meta = META
        image = np.full((32, 48, 3), 100, np.uint8)
        path = tmp_path / 'out/picture.png'
        visualizer.add_datasample('a', image, sample_of(tmp_path), out_file=str(path), **kwargs)
        return np.asarray(Image.open(path))

    def test_three_panels(self, tmp_path):
        # the image is five times as large
        picture = self.picture(tmp_path)
        assert picture.shape[1] == 3 * 240
        assert picture.shape[0] > 160
        assert np.array_equal(picture[40:150, 240:480], picture[40:150, 480:])

    def test_prediction_alone(self, tmp_path):
        assert self.picture(tmp_path, draw_gt=False).shape[1] == 2 * 240

    def test_the_registry_has_it(self):
        from mmdet.registry import VISUALIZERS
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        visualizer = VISUALIZERS.build(dict(type='mmrednet.PanopticVisualizer', name='here'))
        assert type(visualizer) is PanopticVisualizer
