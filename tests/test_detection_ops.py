"""Suppression and RoIAlign of exported detectors, compared with mmcv's operators."""

import pytest
import torch
from mmcv import ops

from mmrednet.export import detection_ops  # noqa: F401
from mmrednet.ops import _native

pytestmark = pytest.mark.skipif(bool(_native.MISSING), reason=str(_native.MISSING))
nms, roi_align = torch.ops.mmrednet.nms, torch.ops.mmrednet.roi_align


def random_boxes(count, extent, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent
    size = torch.rand(count, 2, generator=generator) ** 2 * extent
    return torch.cat([corner, corner + size], 1)


@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize('count', [1, 2, 37, 500])
def test_suppression_is_that_of_mmcv(count, threshold):
    boxes = random_boxes(count, 40, seed=count)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(1))
    expected = ops.nms(boxes, scores, threshold)[1]
    assert nms(boxes, scores, threshold, count).equal(expected)
    # only the best ones
    assert nms(boxes, scores, threshold, 5).equal(expected[:5])
    assert nms(boxes, scores, threshold, 0).shape == (0,)


def test_suppression_of_equal_scores_and_overlaps():
    # whole numbers: many boxes overlap by exactly a half, many are equal, and some are empty
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 4, (300, 2), generator=generator)
    size = torch.randint(0, 3, (300, 2), generator=generator)
    boxes = torch.cat([corner, corner + size], 1).float()
    scores = torch.randint(0, 5, (300,), generator=generator).float()
    for threshold in (0.25, 0.5, 1 / 3):
        expected = ops.nms(boxes, scores, threshold)[1]
        assert nms(boxes, scores, threshold, 300).equal(expected)


def test_suppression_of_a_part_of_a_tensor():
    table = torch.cat([random_boxes(50, 20), torch.rand(50, 3)], 1)
    boxes, scores = table[:, :4], table[:, 5]
    expected = ops.nms(boxes.contiguous(), scores.contiguous(), 0.5)[1]
    assert nms(boxes, scores, 0.5, 50).equal(expected)


def test_no_boxes():
    empty = torch.zeros(0, 4)
    indices = nms(empty, torch.zeros(0), 0.5, 10)
    assert indices.shape == (0,)
    assert indices.dtype == torch.int64
    assert roi_align(torch.randn(1, 3, 5, 7), empty, 4, 1.0, 0, True).shape == (0, 3, 4, 4)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('samples', [0, 1, 3])
@pytest.mark.parametrize(
    ('channels', 'height', 'width', 'size'), [(1, 1, 1, 1), (16, 13, 9, 7), (35, 25, 38, 5)]
)
def test_roi_align_is_that_of_mmcv(channels, height, width, size, samples, aligned):
    torch.manual_seed(0)
    features = torch.randn(1, channels, height, width)
    # half of them reach beyond the map, which is a quarter of the image
    boxes = random_boxes(60, 4 * max(height, width)) - 8
    rois = torch.nn.functional.pad(boxes, (1, 0))
    expected = ops.roi_align(features, rois, size, 0.25, samples, 'avg', aligned)
    for layout in (torch.contiguous_format, torch.channels_last):
        result = roi_align(features.to(memory_format=layout), boxes, size, 0.25, samples, aligned)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_roi_align_of_unusual_boxes():
    features = torch.arange(30.0).view(1, 1, 5, 6)
    # the whole map; no area; outside; beyond the border by less and by more than one element
    boxes = torch.tensor(
        [[0, 0, 6, 5], [2, 3, 2, 3], [40, 40, 50, 60], [-1.4, -1.4, 0.5, 0.5], [4, 3, 9, 8]]
    )
    rois = torch.nn.functional.pad(boxes, (1, 0))
    expected = ops.roi_align(features, rois, 2, 1.0, 0, 'avg', True)
    result = roi_align(features, boxes, 2, 1.0, 0, True)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    # 6 y + x at y = 7 / 9 and 29 / 9, and x = 1 and 4, the means of three samples each
    whole = torch.tensor([[51.0, 78.0], [183.0, 210.0]]) / 9
    torch.testing.assert_close(result[0, 0], whole)
    assert result[1:3].count_nonzero() == 0


@pytest.mark.parametrize(
    ('box', 'message'),
    [
        ([3.0, 0.0, 1.0, 2.0], r'x1 <= x2, .* got \(3, 0, 1, 2\) at 1'),
        ([0.0, 0.0, float('nan'), 2.0], 'finite sizes'),
        ([0.0, 0.0, 1e30, 2.0], 'finite sizes'),
    ],
)
def test_wrong_boxes(box, message):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], box])
    with pytest.raises(ValueError, match=message):
        roi_align(torch.zeros(1, 1, 4, 4), boxes, 2, 1.0, 0, True)


def test_wrong_arguments():
    features, boxes, scores = torch.zeros(1, 1, 4, 4), torch.zeros(2, 4), torch.zeros(2)
    with pytest.raises(ValueError, match=r'features must be \(1, C, H, W\) .* got \[2, 1, 4, 4\]'):
        roi_align(features.expand(2, -1, -1, -1), boxes, 2, 1.0, 0, True)
    with pytest.raises(ValueError, match='size must be positive, got 0'):
        roi_align(features, boxes, 0, 1.0, 0, True)
    with pytest.raises(TypeError, match='must be float32, got Double and Float'):
        roi_align(features.double(), boxes, 2, 1.0, 0, True)
    with pytest.raises(ValueError, match=r'boxes must have sizes \[2, 4\], got \[2, 3\]'):
        nms(boxes[:, :3], scores, 0.5, 2)
    with pytest.raises(ValueError, match=r'scores must have sizes \[2\], got \[1\]'):
        nms(boxes, scores[:1], 0.5, 2)
    with pytest.raises(ValueError, match='threshold must not be negative, got -1'):
        nms(boxes, scores, -1.0, 2)


@pytest.mark.parametrize('threads', [1, 2])
def test_roi_align_by_several_threads(threads):
    before = torch.get_num_threads()
    features, boxes = torch.randn(1, 32, 20, 30), random_boxes(40, 20)
    expected = torch.cat([roi_align(features, box[None], 7, 1.0, 0, True) for box in boxes])
    try:
        torch.set_num_threads(threads)
        assert roi_align(features, boxes, 7, 1.0, 0, True).equal(expected)
    finally:
        torch.set_num_threads(before)
