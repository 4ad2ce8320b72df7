"""What the model zoo says about Axial-DeepLab: norms, products within the span, sizes of images."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from model_zoo.rows import read_rows
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrednet.engine import load_config, scope_of
from mmrednet.layers import AxialAttention1d

ROOT = Path(__file__).parents[1]
ROWS = {row.key: row for row in read_rows(ROOT / 'docs/model_zoo.yml')}
KEYS = [key for key, row in ROWS.items() if 'deeplab' in key and row.params]


def build(key):
    cfg = load_config(str(ROOT / f'configs/{key}.py'))
    with torch.device('meta'), MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
        return registry.build(cfg.model).eval()


def pairs_of_a_span(length, span):
    """Return how many pairs of positions on a line are at most half a span apart."""
    reach = span // 2
    return sum(
        min(place + reach, length - 1) - max(place - reach, 0) + 1 for place in range(length)
    )


def products(model, shape):
    """Return 10^9 multiply-adds of convolutions, and of attention within the span."""
    total = 0

    def convolve(layer, _, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    def attend(layer, inputs, _):
        nonlocal total
        _, _, *size = inputs[0].shape
        length = size[layer.axis == 'width']
        pairs = size[0] * size[1] // length * pairs_of_a_span(length, layer.span)
        total += pairs * layer.num_heads * layer.depth * (len(layer.terms) / 2 + 2)

    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            module.register_forward_hook(convolve)
        elif isinstance(module, AxialAttention1d):
            module.register_forward_hook(attend)
    with torch.no_grad():
        model(torch.zeros(1, 3, *shape, device='meta'), mode='tensor')
    return total / 1e9


@pytest.mark.parametrize('key', [key for key in KEYS if 'axial-deeplab' in key])
def test_axial_deeplab(key):
    row, model = ROWS[key], build(key)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    of_norms = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    count = sum(parameter.numel() for parameter in model.parameters()) - of_norms
    assert f'without them ours has {count / 1e6:.2f}' in row.unexplained['parameters']
    giga = products(model, row.shape)
    assert f'make {giga:.1f}' in row.unexplained['macs']
    # the input is that of the published count
    assert giga == pytest.approx(float(row.macs), rel=0.025)
    assert count / 1e6 == pytest.approx(float(row.params), rel=0.018)


def test_the_published_counts_of_coco_are_half_of_cityscapes():
    for arch in 'sml':
        halves = [
            float(ROWS[f'axial/axial-deeplab-{arch}_{name}'].macs)
            for name in ('8xb8-200k_coco-641x641', '8xb4-60k_cityscapes-1025x2049')
        ]
        assert halves[0] == pytest.approx(halves[1] / 2, rel=1e-3)


def test_the_stem_of_the_paper_on_resnet50():
    """Three convolutions to 128 channels, which the first block reads, in place of 7 x 7 to 64."""
    row = ROWS['axial/panoptic-deeplab_r50_8xb4-60k_cityscapes-1025x2049']
    model = build(row.key)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    of_norms = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    stem, readers = 9 * (3 * 64 + 64 * 64 + 64 * 128) - 49 * 3 * 64, 64 * (64 + 256)
    count = sum(parameter.numel() for parameter in model.parameters()) - of_norms + stem + readers
    assert f'ours would have {count / 1e6:.2f}' in row.why['parameters']
    assert round(count / 1e6, 1) == float(row.params)
    height, width = row.shape
    half, quarter = (-(-height // 2) * -(-width // 2), -(-height // 4) * -(-width // 4))
    giga = products(model, row.shape) + (half * stem + quarter * readers) / 1e9
    assert re.search(rf'ours would take {giga:.1f}', row.unexplained['macs'])
