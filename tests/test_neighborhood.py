"""Neighbourhood attention: the operator, natten's functions, and the networks NAT, DiNAT and
DiNAT_s.
"""

from pathlib import Path

import golden
import oracles
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from mmrednet.analysis import count_network
from mmrednet.backbones import NAT, DiNAT, DiNATs
from mmrednet.backbones.dinat import PatchEmbed, PatchMerging
from mmrednet.checkpoints.formats import detect
from mmrednet.layers import NeighborhoodAttention
from mmrednet.ops import Window, local_attention, na1d_av, na1d_qk, na2d_av, na2d_qk
from mmrednet.ops.attention import bias_of_taps

ROOT = Path(__file__).parents[1]


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def golden_inputs(case):
    return [golden.signed(entry['key'], entry['shape']) for entry in case['inputs']]


LAYERS = {
    'op_na2d_layer_k3_d1': dict(kernel_size=3, num_heads=1),
    'op_na2d_layer_k5_d2': dict(kernel_size=5, num_heads=3, dilation=2),
    'op_na2d_layer_pad_k3_d3': dict(kernel_size=3, dilation=3),
}


@pytest.mark.parametrize('name', LAYERS)
def test_layer_and_every_gradient_are_the_published_ones(name):
    case, arrays = golden.load(name)
    x = golden_inputs(case)[0].movedim(-1, 1).requires_grad_()
    heads = next(shape[0] for key, shape, _ in case['state_dict'] if key == 'rpb')
    layer = NeighborhoodAttention(x.shape[1], **{**LAYERS[name], 'num_heads': heads}).double()
    layer.load_state_dict(golden.state_dict(case), strict=True)
    output = layer(x).movedim(1, -1)
    assert golden.relative_error(output, arrays['output']) < 1e-12
    (output * golden.signed(case['grad_output_key'], output.shape)).sum().backward()
    assert golden.relative_error(x.grad.movedim(1, -1), arrays['grad_input']) < 1e-12
    for key, parameter in layer.named_parameters():
        # the bias of the keys cancels in the softmax: its gradient is zero up to rounding
        error = (parameter.grad - arrays[f'grad.{key}']).abs().max()
        assert error < 1e-11 * arrays[f'grad.{key}'].abs().max(), key


def test_natten_functions_are_the_published_ones():
    case, arrays = golden.load('op_na2d_qk_k3x5_d2x1')
    query, key = (tensor.requires_grad_() for tensor in golden_inputs(case))
    rpb = golden.state_dict(case)['rpb'].requires_grad_()
    logits = na2d_qk(query, key, (3, 5), (2, 1), rpb)
    assert golden.relative_error(logits, arrays['output']) < 1e-12
    grad = golden.signed(case['grad_output_key'], logits.shape)
    gradients = torch.autograd.grad(logits, (query, key, rpb), grad)
    for name, gradient in zip(
        ('grad_input.query', 'grad_input.key', 'grad.rpb'), gradients, strict=True
    ):
        assert golden.relative_error(gradient, arrays[name]) < 1e-12, name
    case, arrays = golden.load('op_na2d_av_k5_d2')
    weight, value = golden_inputs(case)
    output = na2d_av(weight, value, kernel_size=5, dilation=2)
    assert golden.relative_error(output, arrays['output']) < 1e-12


class PublicModule(nn.Module):
    """A module as it is written against natten 0.17."""

    def __init__(self, dim, num_heads, kernel_size, dilation):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.kernel_size, self.dilation = kernel_size, dilation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.randn(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(batch, height, width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5)
        attn = na2d_qk(
            q * self.scale, k, kernel_size=self.kernel_size, dilation=self.dilation, rpb=self.rpb
        )
        x = na2d_av(attn.softmax(dim=-1), v, kernel_size=self.kernel_size, dilation=self.dilation)
        return self.proj(x.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels))


@pytest.mark.parametrize('dilation', [1, 2])
def test_a_module_written_for_natten_is_our_layer(dilation):
    public = PublicModule(8, 2, 3, dilation).double()
    layer = NeighborhoodAttention(8, kernel_size=3, num_heads=2, dilation=dilation).double()
    layer.load_state_dict(public.state_dict())
    x = drawn(2, 8, 7, 9)
    torch.testing.assert_close(public(x.movedim(1, -1)).movedim(-1, 1), layer(x))


def test_one_dimension_is_a_row():
    query, key, rpb = drawn(2, 3, 9, 4), drawn(2, 3, 9, 4), drawn(3, 5)
    logits = na1d_qk(query, key, 3, 2, rpb)
    for position in range(9):
        neighbours = oracles.shifted_taps(position, 9, 3, 2)
        for tap, neighbour in enumerate(neighbours):
            expected = (query[:, :, position] * key[:, :, neighbour]).sum(-1)
            expected = expected + rpb[:, (neighbour - position) // 2 + 2]
            torch.testing.assert_close(logits[:, :, position, tap], expected)
    value = na1d_av(logits, key, 3, 2)
    neighbours = oracles.shifted_taps(1, 9, 3, 2)
    torch.testing.assert_close(
        value[:, :, 1], (logits[:, :, 1, :, None] * key[:, :, neighbours]).sum(2)
    )


@pytest.mark.parametrize('dilation', [1, 2])
def test_fused_attention_and_gradients_of_both_orders(dilation):
    window, size = Window(3, 1, dilation, border='shift'), (7, 8)
    query, key, value = (drawn(1, 2, channels, *size) for channels in (4, 4, 3))
    bias = drawn(2, window.offsets)
    position = bias_of_taps(bias, window, size).expand(1, -1, -1, -1, -1)
    expected = oracles.local_attention(
        query, key, value.new_zeros(1, 2, 4, *size), position, window
    )
    assert not expected.any()
    expected = oracles.local_attention(query[:, :, :3], key[:, :, :3], value, position, window)
    got = local_attention(query[:, :, :3], key[:, :, :3], value, window, bias=bias)
    torch.testing.assert_close(got, expected)
    tensors = [tensor.requires_grad_() for tensor in (query, key, value, bias)]

    def attention(query, key, value, bias):
        return local_attention(query, key, value, window, bias=bias)

    assert gradcheck(attention, tensors, fast_mode=True)
    assert gradgradcheck(attention, tensors, fast_mode=True)


def test_bad_arguments():
    query, window = drawn(1, 2, 4, 5, 5), Window(3, border='shift')
    with pytest.raises(ValueError, match=r'bias must be \(heads, relative positions\), \(2, 25\)'):
        local_attention(query, query, query, window, bias=drawn(2, 9))
    rows = drawn(2, 2, 3)
    with pytest.raises(ValueError, match="need a window with the border 'zero', got 'shift'"):
        local_attention(query, query, query, window, rows=rows, columns=rows)
    with pytest.raises(ValueError, match='num_heads must divide channels, got channels=8'):
        NeighborhoodAttention(8, num_heads=3)
    with pytest.raises(ValueError, match=r'arch must be one of .* got .giant'):
        NAT('giant')
    with pytest.raises(ValueError, match=r'dilations must be one of .* got .cityscapes'):
        DiNAT(dilations='cityscapes')
    with pytest.raises(ValueError, match='dilations must have one entry per block'):
        NAT(dilations=[[1], [1], [1], [1]])


def test_weights_say_where_their_taps_lie():
    layer = NeighborhoodAttention(8, kernel_size=3, num_heads=2, dilation=2).double()
    x = drawn(1, 8, 5, 7)
    weights = layer.attention(x)
    rows, columns = weights.taps(5, 7)
    # the map is continued to six rows
    assert rows.T.tolist() == [oracles.shifted_taps(row, 6, 3, 2) for row in range(5)]
    assert columns.T.tolist() == [oracles.shifted_taps(column, 7, 3, 2) for column in range(7)]
    value = layer.project(layer.padded(x))[2]
    weight = weights.weight.unflatten(2, (3, 3))
    result = torch.zeros(1, 2, 4, 5, 7, dtype=torch.float64)
    for u in range(3):
        for v in range(3):
            neighbour = value[..., rows[u][:, None], columns[v]]
            result += weight[:, :, u, v, None] * neighbour
    expected = layer.proj(result.flatten(1, 2).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(layer(x), expected)


def with_classifier(backbone, classes=1000):
    backbone.add_module('head', nn.Linear(backbone.width(3), classes))
    return backbone.double().eval()


@pytest.mark.parametrize(('name', 'network'), [('nat_mini', NAT), ('dinat_mini', DiNAT)])
def test_published_classifier(name, network):
    case, _ = golden.load(name)
    model = with_classifier(network('mini', out_indices=(3,)))
    assert sum(parameter.numel() for parameter in model.parameters()) == case['num_parameters']
    model.load_state_dict(golden.state_dict(case), strict=True)
    outputs = {}
    for index, level in enumerate(model.levels):
        level.register_forward_hook(
            lambda module, args, output, name=f'stage{index + 1}': outputs.update({name: output})
        )
    with torch.no_grad():
        outputs['pooled'] = model(golden_inputs(case)[0])[0].mean((2, 3))
        outputs['logits'] = model.head(outputs['pooled'])
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, outputs)


def test_published_detection_backbone_on_maps_smaller_than_the_window():
    case, _ = golden.load('nat_mini_det_small_map')
    model = NAT('mini').double().eval()
    state = golden.state_dict(case)
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        outputs = model(golden_inputs(case)[0])
    golden.assert_outputs(case, {f'stage{i + 1}': out for i, out in enumerate(outputs)})
    # frozen stages, chosen outputs and recomputed blocks give the same numbers
    other = NAT('mini', out_indices=(1, 3), frozen_stages=2, with_cp=True).double().eval()
    other.load_state_dict({key: state[key] for key in other.state_dict()})
    chosen = other(golden_inputs(case)[0])
    for got, expected in zip(chosen, outputs[1::2], strict=True):
        torch.testing.assert_close(got.detach(), expected)
    assert not other.levels[1].blocks[0].attn.rpb.requires_grad
    chosen[1].sum().backward()
    assert other.levels[2].blocks[0].attn.rpb.grad.abs().sum() > 0


# entries of the state dict, parameters with four outputs, and published multiply-adds at 224x224
PUBLISHED = {
    (NAT, 'mini'): (253, 19472070, 2711119872),
    (NAT, 'tiny'): (409, 27389478, 4317554688),
    (NAT, 'small'): (469, 49975641, 7805795328),
    (NAT, 'base'): (469, 88746444, 13721751552),
    (DiNAT, 'mini'): (253, 19472070, 2711119872),
    (DiNAT, 'tiny'): (409, 27389478, None),
    (DiNAT, 'small'): (409, 49952025, 7805795328),
    (DiNAT, 'base'): (469, 88746444, None),
    (DiNAT, 'large'): (409, 199409202, 30524700672),
    (DiNATs, 'tiny'): (173, 27520698, 4509194496),
    (DiNATs, 'small'): (329, 48838602, 8768534784),
    (DiNATs, 'base'): (329, 86745016, 15467826176),
    (DiNATs, 'large'): (329, 194998164, 34531078656),
}


@pytest.mark.parametrize(('network', 'arch'), PUBLISHED)
def test_published_sizes(network, arch):
    entries, parameters, _ = PUBLISHED[network, arch]
    with torch.device('meta'):
        model = network(arch)
    # a classifier has one norm and a head in place of four norms
    assert len(model.state_dict()) - 8 + 4 == entries
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert detect(model.state_dict())[0].name == ('dinat-s' if network is DiNATs else 'nat')


@pytest.mark.parametrize(
    ('network', 'arch'), [(NAT, 'mini'), (NAT, 'small'), (DiNAT, 'small'), (DiNATs, 'tiny')]
)
def test_published_multiply_adds(network, arch):
    model = network(arch, out_indices=(3,))
    total = count_network(model, torch.zeros(1, 3, 224, 224)).total()
    assert total == pytest.approx(PUBLISHED[network, arch][2], rel=0.005)


@pytest.mark.parametrize('size', [(4, 6), (5, 7)])
def test_merging_joins_positions_column_by_column(size):
    x = drawn(1, 3, *size)
    merging = PatchMerging(3).double()
    padded = torch.zeros(1, 3, 6, 8, dtype=torch.float64)
    padded[..., : size[0], : size[1]] = x
    result = merging(x)
    assert result.shape == (1, 6, (size[0] + 1) // 2, (size[1] + 1) // 2)
    for row in range(result.shape[2]):
        for column in range(result.shape[3]):
            places = ((0, 0), (1, 0), (0, 1), (1, 1))
            patch = [padded[0, :, 2 * row + i, 2 * column + j] for i, j in places]
            expected = merging.reduction(merging.norm(torch.cat(patch)))
            torch.testing.assert_close(result[0, :, row, column], expected)


def test_an_image_is_continued_to_whole_patches():
    embedding, x = PatchEmbed(3, 8).double(), drawn(1, 3, 9, 11)
    padded = torch.zeros(1, 3, 12, 12, dtype=torch.float64)
    padded[..., :9, :11] = x
    assert embedding(x).shape == (1, 8, 3, 3)
    torch.testing.assert_close(embedding(x), embedding(padded))


def test_published_dilations_of_the_layout_of_swin():
    network = DiNATs((32, (2, 2, 18, 2), 4, None, 0.0), dilations='coco')
    blocks = [[block.attn.window.dilation[0] for block in level.blocks] for level in network.layers]
    assert blocks == [[1, 28], [1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3]]


def test_drop_path_skips_branches_in_training_alone():
    model = NAT('mini', drop_path_rate=0.9)
    rates = [
        getattr(block.drop_path, 'drop_prob', 0) for level in model.levels for block in level.blocks
    ]
    assert rates == pytest.approx([0.9 * index / 17 for index in range(18)])
    x = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        assert not torch.equal(model.train()(x)[3], model(x)[3])
        assert torch.equal(model.eval()(x)[3], model(x)[3])


def test_a_detector_with_neighbourhoods_in_its_stages_trains():
    config = Config.fromfile(ROOT / 'configs/shapes/faster-rcnn_r26_fpn_shapes.py')
    backbone = dict(config.model.backbone, init_cfg=None)
    backbone['spatial_cfg'] = dict(type='NeighborhoodAttention', kernel_size=7, num_heads=4)
    train_two_steps(dict(config.model, backbone=backbone))


def test_mask_rcnn_with_nat_mini_trains():
    config = Config.fromfile(ROOT / 'configs/nat/mask-rcnn_nat-mini_fpn_amp-ms-crop-3x_coco.py')
    # hundreds of proposals would take most of the time
    config.model.train_cfg.rcnn.sampler.num = 32
    train_two_steps(dict(config.model, backbone=dict(config.model.backbone, init_cfg=None)))


def train_two_steps(model_cfg):
    """Train a detector for two steps on one image, and check that all weights of attention move."""
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(model_cfg).train()
    samples = demo_mm_inputs(
        2, [(3, 64, 80), (3, 64, 80)], num_classes=3, with_mask=True, use_box_type=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items() if 'rpb' in name}
    assert before
    for _ in range(2):
        data = model.data_preprocessor(samples, True)
        losses = model(**data, mode='loss')
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        assert total.isfinite()
    for name, value in model.state_dict().items():
        if 'rpb' in name:
            assert value.isfinite().all(), name
            assert not torch.equal(value, before[name]), name
