"""Models of mmdet and mmseg run for an image alone, wholly or with a word on what is missing."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.analysis import build_network, count_network
from mmrednet.analysis.counting import whole_attention
from mmrednet.analysis.image_network import ImageNetwork, UnrunnableError
from mmrednet.analysis.reports import as_text, describe, missing
from mmrednet.analysis.usage import is_for_training


@pytest.fixture
def built(tmp_path):
    """Return a function that builds a network of a config of mmdet or mmseg."""

    def build(base, **options):
        path = tmp_path / 'config.py'
        path.write_text(f"_base_ = '{base}.py'\n")
        return build_network(str(path), **options)[0]

    return build


def products(function):
    """Return the multiply-adds that torch's own counter finds."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() // 2


QUERIES = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic',
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco',
    'mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512',
]


@pytest.mark.parametrize('base', QUERIES)
def test_queries(base, built):
    """Detectors and segmenters with queries or learned proposals count as torch's own counter
    says."""
    network, image = built(base), torch.zeros(1, 3, 64, 64)
    complexity = count_network(network, image)
    assert missing(describe(complexity, network, name=base, shape=(64, 64))) == []
    assert not network.two_stage
    with whole_attention():
        assert complexity.total(['op']) == products(lambda: network(image))


def test_masks_of_learned_proposals(built):
    """QueryInst draws them with the head of its last stage, those of the others are for
    training."""
    network, image = built('mmdet::queryinst/queryinst_r50_fpn_1x_coco'), torch.zeros(1, 3, 64, 64)
    complexity = count_network(network, image)
    assert complexity.never_ran == [f'model.roi_head.mask_head.{stage}' for stage in range(5)]
    masks = complexity.total(['op'], module='model.roi_head.mask_head.5')
    # a hundred proposals, 14 x 14 positions, four convolutions and, at twice the size, logits of 80
    # classes
    assert masks > 100 * 196 * (4 * 9 * 256**2 + 4 * 256 * 80)
    with whole_attention():
        assert complexity.total(['op']) == products(lambda: network(image))


def test_a_second_stage_alone(built):
    """Fast R-CNN gets proposals from elsewhere."""
    network = built('mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco', proposals=3)
    complexity = count_network(network, torch.zeros(1, 3, 32, 32))
    layers = 7 * 7 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 320)
    assert complexity.total(['op'], module='model.roi_head') == 3 * layers


def test_the_semantic_head_of_a_panoptic_detector(built):
    network, image = (
        built('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', proposals=2),
        torch.zeros(1, 3, 64, 64),
    )
    complexity = count_network(network, image)
    head, maps = network.model.semantic_head, network.model.extract_feat(image)
    count = complexity.total(['op'], module='model.semantic_head')
    # two convolutions 3 x 3 on the first map, seven on the others, of 64 x 64 / 16 positions and
    # fewer, and the logits
    positions, inner = (256, 64, 16, 4), 128
    by_hand = sum(
        inner * 9 * size * (256 + inner * (index > 1)) for index, size in enumerate(positions[:3])
    )
    assert count == products(lambda: head(maps)) > by_hand > 0
    assert complexity.never_ran == []


def test_parts_that_never_ran(built):
    """The second network of PointRend looks at points that depend on weights."""
    network, shape = (
        built('mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco', proposals=2),
        (64, 64),
    )
    report = describe(
        count_network(network, torch.zeros(1, 3, *shape)), network, name='PointRend', shape=shape
    )
    assert report['never_ran'] == ['roi_head.point_head']
    assert missing(report) == [
        'Not counted, because they never ran for an image alone: roi_head.point_head.'
    ]


class Scale(torch.autograd.Function):
    """An operator whose inside torch does not see, as mmcv has them; this one's is empty."""

    @staticmethod
    def forward(ctx, x, scale):
        return x.clone()


class Scaled(nn.Module):
    """A layer of such an operator."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return Scale.apply(x, self.scale)


class Parts(nn.Module):
    """A network that runs some of its parts."""

    def __init__(self):
        super().__init__()
        self.called, self.taken, self.asked = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.heads = nn.ModuleDict(
            dict(auxiliary_head=nn.Linear(3, 3), used=nn.Linear(3, 3), lost=nn.Linear(3, 3))
        )
        self.tables, self.forgotten = (nn.ParameterList([torch.zeros(3)]) for _ in range(2))
        self.empty, self.scaled = nn.ReLU(), Scaled()

    def forward(self, x):
        x = torch.nn.functional.linear(self.scaled(self.called(x)), self.taken.weight.T)
        assert self.asked.weight.shape == self.asked.weight.size()
        return torch.stack([self.heads['used'](x)[0], self.tables[0]])


def test_what_ran_is_known_by_its_parameters():
    network = Parts()
    never = count_network(network, torch.zeros(1, 2)).never_ran
    assert never == ['taken.bias', 'asked', 'heads.auxiliary_head', 'heads.lost', 'forgotten']
    assert [name for name in never if is_for_training(name)] == ['heads.auxiliary_head']


def test_heads_for_training_are_excused(built):
    network = built('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024')
    report = describe(
        count_network(network, torch.zeros(1, 3, 32, 32)), network, name='FCN', shape=(32, 32)
    )
    assert missing(report) == []
    assert 'auxiliary_head did not run: for training alone' in as_text(report)
    assert report['by_stage']['auxiliary_head']['macs'] == 0


def test_what_cannot_be_run_says_why(built):
    """YOLACT's forward computes losses."""
    network = built('mmdet::yolact/yolact_r50_1xb8-55e_coco')
    with pytest.raises(
        UnrunnableError, match='YOLACT cannot be run for an image of 64 x 64 alone: Attribute.*gt'
    ):
        count_network(network, torch.zeros(1, 3, 64, 64))
    with pytest.raises(UnrunnableError, match='mmrednet.VAN cannot be built: .*depth'):
        build_network('mmrednet.VAN', options={'model.depth': 3})


def test_every_proposal_of_a_cascade_has_masks(built):
    """Mask R-CNN's mask head sees the first hundred, each of a cascade's sees all, as in mmdet."""
    network = built('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', proposals=101).eval()
    batches = []
    for head in network.model.roi_head.mask_head:
        head.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
        head.forward = lambda features: features.new_zeros(len(features), 80, 2, 2)
    network(torch.zeros(1, 3, 32, 32))
    assert batches == [101] * 3


def test_boxes_are_the_same_at_every_call():
    network = ImageNetwork(nn.Identity(), proposals=5)
    (first,), (second,) = (network.boxes(torch.zeros(1, 3, 20, 40)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (5, 4)
    assert (first[:, 2:] >= first[:, :2]).all()
    assert (first <= torch.tensor([40, 20, 40, 20])).all()
