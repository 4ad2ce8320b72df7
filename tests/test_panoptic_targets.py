"""Targets of Panoptic-DeepLab agree with the published implementations."""

import golden
import pytest
import torch

from mmrednet.panoptic.targets import IGNORE_LABEL, PanopticTargets, gaussians, segment_index
from mmrednet.panoptic.variants import arguments

THINGS = range(11, 19)
MAPS = ('a_sigma8', 'a_sigma10', 'a_options', 'b_sigma10', 'crowd_only', 'stuff_only')
FIELDS = dict(
    semantic='sem_seg',
    heat='center',
    offset='offset',
    semantic_weight='sem_seg_weights',
    heat_weight='center_weights',
    offset_weight='offset_weights',
)


def generator(variant, settings):
    options = dict(
        sigma=settings['sigma'],
        small_area=settings['small_instance_area'],
        small_weight=settings['small_instance_weight'],
    )
    if variant != 'deeplab2':
        options.update(
            stuff_offsets=not settings['ignore_stuff_in_offset'],
            ignore_crowd=settings['ignore_crowd_in_semantic'],
        )
    return PanopticTargets(THINGS, **arguments(variant, targets=options)['targets'])


def segments_info(case):
    return [
        dict(id=entry['id'], category=entry['category_id'], iscrowd=entry['iscrowd'])
        for entry in case['segments_info']
    ]


def targets_of(variant, name):
    case, arrays = golden.load(f'panoptic/{name}')
    make = generator(variant, case['settings'])
    return make(arrays['panoptic'].long(), segments_info(case)), arrays


@pytest.mark.parametrize(
    ('variant', 'name'),
    [
        *(
            (variant, f'pdl_targets_{name}')
            for variant in ('detectron2', 'bowenc0221')
            for name in MAPS
        ),
        ('deeplab2', 'pdl_dl2_targets_a_sigma8'),
        ('deeplab2', 'pdl_dl2_targets_b_sigma10'),
    ],
)
def test_targets(variant, name):
    targets, arrays = targets_of(variant, name)
    for field, published in FIELDS.items():
        got = getattr(targets, field)
        expected = arrays[f'{variant}.{published}'].to(got.dtype)
        assert got.shape == expected.shape, field
        assert (got - expected).abs().max() < 1e-6, field


def test_the_variants_differ_in_their_centers():
    """Otherwise the comparison above would show nothing."""
    heats = [
        targets_of(variant, name)[0].heat
        for variant, name in (
            ('detectron2', 'pdl_targets_a_sigma8'),
            ('bowenc0221', 'pdl_targets_a_sigma8'),
            ('deeplab2', 'pdl_dl2_targets_a_sigma8'),
        )
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (heats[first] - heats[second]).abs().max() > 0.01


def test_by_hand():
    ids = torch.tensor([[0, 9, 9, 9, 4], [0, 9, 9, 9, 77]])
    info = [dict(id=4, category=0, iscrowd=0), dict(id=9, category=1, iscrowd=0)]
    targets = PanopticTargets([1], sigma=1, small_area=7)(ids, info)
    # an area at the limit is not small
    assert PanopticTargets([1], small_area=6)(ids, info).semantic_weight.max() == 1
    ignored = IGNORE_LABEL
    # an id that is not listed is void
    assert targets.semantic.tolist() == [[ignored, 1, 1, 1, 0], [ignored, 1, 1, 1, ignored]]
    # the mean (0.5, 2) rounds to the even (0, 2)
    assert targets.offset[0].tolist() == [[0, 0, 0, 0, 0], [0, -1, -1, -1, 0]]
    assert targets.offset[1].tolist() == [[0, 1, 0, -1, 0]] * 2
    expected = torch.exp(-torch.tensor([2.5, 1.0, 0.5, 1.0, 2.5]))
    assert torch.allclose(targets.heat[1], expected)
    assert targets.semantic_weight.tolist() == [[1, 3, 3, 3, 1]] * 2
    assert targets.heat_weight.tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]
    assert targets.offset_weight.tolist() == [[0, 1, 1, 1, 0]] * 2


def test_no_segments():
    targets = PanopticTargets([1])(torch.zeros(3, 4, dtype=torch.int64), [])
    assert targets.semantic.eq(IGNORE_LABEL).all()
    assert targets.heat.abs().max() == targets.heat_weight.max() == targets.offset.abs().max() == 0


def test_segment_index_of_unsorted_ids():
    info = [dict(id=value) for value in (500, 3, 26001)]
    ids = torch.tensor([[3, 26001, 0, 500, 4]])
    assert segment_index(ids, info).tolist() == [[1, 2, 3, 0, 3]]


def test_a_gaussian_ends_with_its_window():
    heat = gaussians(torch.tensor([[0, 20]]), (30, 41), 2)
    assert heat[7, 20] > 0
    assert heat[8:].max() == 0
    assert heat[:, :13].max() == 0


@pytest.mark.parametrize('options', [dict(rounding='up'), dict(sigma=0)])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=f'{next(iter(options))} must be'):
        PanopticTargets([1], **options)
