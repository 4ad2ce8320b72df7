"""Losses of Panoptic-DeepLab and their gradients agree with the published implementations."""

import golden
import pytest
import torch

from mmrednet.panoptic.losses import PanopticLoss, Predictions
from mmrednet.panoptic.resizing import Upsampling
from mmrednet.panoptic.targets import Targets
from mmrednet.panoptic.variants import arguments

CASES = {
    'detectron2': ('full_topk1', 'mostly_void', 'no_things', 'stride4', 'void_crowd'),
    'bowenc0221': ('full', 'no_things', 'stride4'),
    'deeplab2': ('full', 'mostly_void', 'no_things'),
}
FILES = dict(detectron2='pdl_loss_d2_', bowenc0221='pdl_loss_bowen_', deeplab2='pdl_dl2_loss_')
NAMES = dict(loss_semantic='loss_semantic', loss_heat='loss_center', loss_offset='loss_offset')


def read_targets(arrays):
    names = ('sem_seg', 'center', 'offset', 'sem_seg_weights', 'center_weights', 'offset_weights')
    fields = [arrays[f'target.{name}'] for name in names]
    heat = fields[1]
    # the PyTorch codes have an axis for the channel of the heat map
    fields[1] = heat[:, 0] if heat.dim() == 4 else heat
    return Targets(fields[0].long(), *(field.double() for field in fields[1:]))


@pytest.mark.parametrize(
    ('variant', 'name'), [(variant, name) for variant, names in CASES.items() for name in names]
)
def test_losses(variant, name):
    case, arrays = golden.load(f'panoptic/{FILES[variant]}{name}')
    settings = case['settings']
    predictions = Predictions(
        *(
            (golden.signed(entry['key'], entry['shape']) * entry['scale']).requires_grad_()
            for entry in case['inputs']
        )
    )
    parts = arguments(variant, losses=dict(hardest=settings['top_k_percent']))
    large = Upsampling(**parts['upsampling'])(predictions, settings['image_size'])
    losses = PanopticLoss(**parts['losses'])(large, read_targets(arrays))
    assert set(losses) == set(NAMES)
    for key, published in NAMES.items():
        expected = case['losses'][published]
        assert float(losses[key].detach()) == pytest.approx(expected, rel=1e-6, abs=1e-12), key
    gradients = torch.autograd.grad(sum(losses.values()), predictions)
    for key, gradient in zip(('semantic', 'center', 'offset'), gradients, strict=True):
        assert gradient.isfinite().all()
        if f'grad.{key}' in arrays:
            # stored in single precision
            expected = arrays[f'grad.{key}'].double()
            assert (gradient - expected).norm() <= 1e-6 * expected.norm(), key


def example(offset=2.0):
    shape = (2, 4, 4)
    predictions = Predictions(
        torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4), torch.full((2, 2, 4, 4), offset)
    )
    weight = torch.zeros(shape)
    weight[0, 0] = 1
    targets = Targets(
        torch.zeros(shape, dtype=torch.int64),
        torch.full(shape, 0.5),
        torch.zeros(2, 2, 4, 4),
        torch.ones(shape),
        torch.ones(shape),
        weight,
    )
    return predictions, targets


def test_by_hand():
    losses = PanopticLoss(hardest=1, per_image=False, mean='weights')(*example())
    assert float(losses['loss_semantic']) == pytest.approx(torch.tensor(3.0).log().item())
    assert float(losses['loss_heat']) == pytest.approx(200 * 0.25)
    assert float(losses['loss_offset']) == pytest.approx(0.01 * 2)
    # an image without things counts as one without loss
    losses = PanopticLoss()(*example())
    assert float(losses['loss_offset']) == pytest.approx(0.01 * 2 / 2)
    losses = PanopticLoss(per_image=False, offset_mean='pixels', mean='weights')(*example())
    assert float(losses['loss_offset']) == pytest.approx(0.01 * 4)


@pytest.mark.parametrize(('per_image', 'count'), [(True, 3), (False, 5)])
def test_the_number_of_the_hardest_pixels(per_image, count):
    """0.17 of 16 pixels of an image are 3, as they are rounded; of 32 in the batch 5, as cut."""
    predictions, targets = example()
    weight = torch.arange(1.0, 17).view(1, 4, 4).expand(2, 4, 4)
    targets = targets._replace(semantic_weight=weight)
    loss = PanopticLoss(hardest=0.17, per_image=per_image)(predictions, targets)['loss_semantic']
    hardest = torch.cat([weight[0].flatten()] * (1 if per_image else 2)).topk(count).values
    assert float(loss) == pytest.approx(float(hardest.mean() * torch.tensor(3.0).log()))


def test_upsampled_offsets():
    offset = torch.ones(1, 2, 3, 5)
    small = Predictions(offset[:, :1], offset[:, :1], offset)
    large = Upsampling()(small, (10, 17)).offset
    assert large.shape == (1, 2, 10, 17)
    assert large[0, 0].numpy() == pytest.approx(4.5, rel=1e-6)
    assert large[0, 1].numpy() == pytest.approx(4.0, rel=1e-6)
    large = Upsampling(factor='integer')(small, (10, 17)).offset
    assert large.numpy() == pytest.approx(4.0, rel=1e-6)
    large = Upsampling(factor='stride', align_corners=False)(small, (10, 17)).offset
    assert large.shape == (1, 2, 10, 17)
    assert large.numpy() == pytest.approx(4.0, rel=1e-6)
    # a single row
    assert Upsampling()(Predictions(*(x[:, :, :1] for x in small)), (4, 17)).offset[0, 0, 0, 0] == 3


def test_half_precision_ends_before_the_losses():
    small = Predictions(*(torch.ones(1, c, 3, 5, dtype=torch.bfloat16) for c in (4, 1, 2)))
    assert {x.dtype for x in Upsampling()(small, (9, 17))} == {torch.float32}


@pytest.mark.parametrize(
    'options', [dict(hardest=0), dict(hardest=1.5), dict(mean='sum'), dict(offset_mean='both')]
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=f'{next(iter(options))} must be'):
        PanopticLoss(**options)


def test_a_bad_factor():
    with pytest.raises(ValueError, match="factor must be one of .*, got 'half'"):
        Upsampling(factor='half')
