"""What operators say they apply is what they apply; views of it, in models and in pictures."""

import copy
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from operators import EXAMPLES
from running import run_warm
from torch import nn

from mmrednet.analysis import (
    attention_layers,
    attention_maps,
    class_activation,
    draw_attention_maps,
    model_image,
)
from mmrednet.analysis.attention_drawing import _panels
from mmrednet.analysis.attention_maps import AttentionMap
from mmrednet.analysis.attention_views import Grid, distance, entropy, query, spread, views_of
from mmrednet.analysis.class_activation import METHODS
from mmrednet.backbones import AxialResNet, RedNet, SASAResNet, SpatialResNet
from mmrednet.layers import AttentionStem, Involution, build_spatial
from mmrednet.layers.attention import AxisWeights, Gate, TapWeights
from mmrednet.ops import Window

CHANNELS = 16
# the function of this name hides the module as an attribute of its package
activation_module = sys.modules['mmrednet.analysis.class_activation']


def drawn(layer):
    """Return a layer in eval mode and float64, with weights and statistics that all matter."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return layer.double().eval()


def of_taps(x, layer, attention, values):
    """y[c, i] = sum over j of w[group of c, j, i] values[c, i + j], neighbour by neighbour"""
    weight = attention.weight.repeat_interleave(values.shape[1] // attention.weight.shape[1], 1)
    result = values.new_zeros(*values.shape[:2], *weight.shape[-2:])
    for row in range(result.shape[2]):
        for column in range(result.shape[3]):
            for tap, y, x in oracles.neighbours(attention.window, values.shape[-2:], (row, column)):
                result[..., row, column] += weight[:, :, tap, row, column] * values[..., y, x]
    return result


def involution(x, layer, attention):
    return of_taps(x, layer, attention, x)


def sasa(x, layer, attention):
    return layer.pool(of_taps(x, layer, attention, layer.value(x)))


def neighborhood(x, layer, attention):
    values = layer.project(layer.padded(x))[2].flatten(1, 2)
    weight = attention.weight.repeat_interleave(values.shape[1] // layer.num_heads, 1)
    rows, columns = (taps.tolist() for taps in attention.taps(*x.shape[-2:]))
    result = torch.zeros_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            for tap in range(weight.shape[2]):
                u, v = divmod(tap, attention.window.kernel[1])
                neighbour = values[..., rows[u][i], columns[v][j]]
                result[..., i, j] += weight[:, :, tap, i, j] * neighbour
    return layer.pool(layer.proj(result.movedim(1, -1)).movedim(-1, 1))


def local_relation(x, layer, attention):
    return layer.project(of_taps(x, layer, attention, x))


def gate(x, layer, attention):
    return layer.pool(x * attention.factor)


def deformable(x, layer, attention):
    """Sample the input at each place between its four neighbours, weigh the sample, convolve."""
    height, width = x.shape[-2:]
    batch, groups, taps, _, rows, columns = attention.place.shape
    weight = layer.weight.flatten(2)
    samples = x.new_zeros(batch, x.shape[1], taps, rows, columns)
    per_group = x.shape[1] // groups
    for b in range(batch):
        for c in range(x.shape[1]):
            for k in range(taps):
                for i in range(rows):
                    for j in range(columns):
                        y, z = attention.place[b, c // per_group, k, :, i, j].tolist()
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(z), math.floor(z) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - abs(y - row)) * (1 - abs(z - column))
                                    samples[b, c, k, i, j] += share * x[b, c, row, column]
                        samples[b, c, k, i, j] *= attention.factor[b, c // per_group, k, i, j]
    return torch.einsum('ock,bckij->boij', weight, samples)


def chain(x, layer, attentions):
    for operator, attention in zip(layer, attentions, strict=True):
        x = APPLIED[type(operator).__name__](x, operator, attention)
    return x


def san(x, layer, attention):
    values, (height, width) = layer.conv3(x), x.shape[-2:]
    groups = attention.weight.shape[1]
    rows, columns = (taps.tolist() for taps in attention.taps(height, width))
    result = values.new_zeros(*values.shape[:2], *attention.weight.shape[-2:])
    for i in range(result.shape[2]):
        for j in range(result.shape[3]):
            for channel in range(values.shape[1]):
                for tap in range(attention.weight.shape[2]):
                    u, v = divmod(tap, attention.window.kernel[1])
                    factor = attention.weight[:, channel % groups, tap, i, j]
                    result[:, channel, i, j] += (
                        factor * values[:, channel, rows[u][i], columns[v][j]]
                    )
    return result


def norm(value, batch_norm, channel):
    scale = batch_norm.weight[channel] / (batch_norm.running_var[channel] + batch_norm.eps).sqrt()
    return (value - batch_norm.running_mean[channel]) * scale + batch_norm.bias[channel]


def along_axis(x, layer, attention):
    """Sum values and their positions along a line, each normed, channel by channel."""
    qkv = layer.bn_qkv(layer.qkv_transform(x.flatten(2))).unflatten(2, x.shape[2:])
    values = qkv.unflatten(1, (layer.num_heads, -1))[:, :, layer.depth :]
    weight, length = attention.weight, attention.weight.shape[-1]
    result = x.new_zeros(len(x), layer.num_heads * layer.depth, *x.shape[2:])
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            place = row if layer.axis == 'height' else column
            for head in range(layer.num_heads):
                shares = weight[:, head, row, column]
                line = values[:, head, :, :, column]
                if layer.axis == 'width':
                    line = values[:, head, :, row]
                content = torch.einsum('bl,bdl->bd', shares, line)
                ends = layer.table_size - 1
                index = [max(-ends, min(ends, place - m)) + ends for m in range(length)]
                positions = layer.relative[layer.depth :, index]
                position = torch.einsum('bl,dl->bd', shares, positions)
                for d in range(layer.depth):
                    channel = head * layer.depth + d
                    result[:, channel, row, column] = norm(
                        content[:, d], layer.bn_output, 2 * channel
                    ) + norm(position[:, d], layer.bn_output, 2 * channel + 1)
    return result


def axial(x, layer, attentions):
    for axis, attention in zip(layer.axes, attentions, strict=True):
        x = along_axis(x, axis, attention)
    return layer.pool(x)


APPLIED = {
    'AxialAttention': axial,
    'Involution': involution,
    'StandAloneSelfAttention': sasa,
    'LocalRelation': local_relation,
    'NeighborhoodAttention': neighborhood,
    'SANPairwise': san,
    'SANPatchwise': san,
    'LargeKernelAttention': gate,
    'MultiScaleConvAttention': gate,
    'SE': gate,
    'CBAM': gate,
    'DCN': deformable,
    'DCNv2': deformable,
    'OperatorChain': chain,
}


class TestContract:
    @pytest.mark.parametrize('stride', [1, 2])
    @pytest.mark.parametrize('dilation', [1, 2])
    @pytest.mark.parametrize('name', EXAMPLES)
    def test_what_is_returned_is_what_is_applied(self, name, dilation, stride):
        layer = drawn(build_spatial(EXAMPLES[name], CHANNELS, stride=stride, dilation=dilation))
        x = torch.randn(2, CHANNELS, 5, 4, dtype=torch.float64)
        expected = layer(x)
        with torch.no_grad():
            attention = layer.attention(x)
            torch.testing.assert_close(APPLIED[name](x, layer, attention), expected)
        # looking changes nothing
        assert torch.equal(layer(x), expected)

    @pytest.mark.parametrize(
        'cfg',
        [
            dict(type='LocalRelation', kernel_size=3, relation=relation, group_channels=6)
            for relation in ('squared_difference', 'absolute_difference', 'key')
        ]
        + [
            dict(type='StandAloneSelfAttention', kernel_size=3, num_heads=2, position='absolute'),
            dict(type='StandAloneSelfAttention', kernel_size=3, num_heads=2, content=False),
            dict(type='SANPairwise', kernel_size=(1, 5)),
            dict(type='SANPatchwise', kernel_size=7),
            dict(type='DCNv2', deform_groups=2),
        ],
    )
    def test_options(self, cfg):
        layer = drawn(build_spatial(cfg, CHANNELS))
        x = torch.randn(2, CHANNELS, 4, 3, dtype=torch.float64)
        if cfg['type'] == 'LocalRelation':
            # the last group has fewer channels
            weight = layer.attention(x).weight.repeat_interleave(6, 1)[:, :CHANNELS]
            attention = layer.attention(x)._replace(weight=weight)
        else:
            attention = layer.attention(x)
        result = APPLIED[cfg['type']](x, layer, attention)
        torch.testing.assert_close(result, layer(x))

    def test_the_stem(self):
        stem = drawn(AttentionStem(3, 8, num_heads=2))
        attention = stem.attention(torch.randn(1, 3, 9, 8, dtype=torch.float64))
        assert attention.weight.shape == (1, 2, 16, 10, 9)
        torch.testing.assert_close(attention.weight.sum(2), torch.ones(1, 2, 10, 9).double())


def random_taps(window, size, groups=2, softmax=True):
    weight = torch.randn(1, groups, window.taps, *window.output_size(*size), dtype=torch.float64)
    return TapWeights(weight.softmax(2) if softmax else weight, window, sums_to_one=softmax)


class TestViews:
    @pytest.mark.parametrize('reflects', [False, True])
    @pytest.mark.parametrize('window', [Window(3), Window((3, 5), 2), Window(3, 1, 2)])
    def test_distance_and_entropy(self, window, reflects):
        size = (6, 7)
        taps = random_taps(window, size, softmax=False)._replace(reflects=reflects)
        grid = Grid(size, pitch=(2.0, 3.0))
        rows, columns = (axis.tolist() for axis in taps.taps(*size))
        for y, x in ((0, 0), (1, 2)):
            share = taps.weight[0, 1, :, y, x].abs()
            share = share / share.sum()
            lengths = [
                math.hypot(
                    2 * (rows[u][y] - y * window.stride[0]),
                    3 * (columns[v][x] - x * window.stride[1]),
                )
                for u in range(window.kernel[0])
                for v in range(window.kernel[1])
            ]
            mean = float(share @ torch.tensor(lengths, dtype=torch.float64))
            assert distance(taps, grid)[0, 1, y, x].item() == pytest.approx(mean)
            expected = float(-(share * share.log()).sum()) / math.log(window.taps)
            assert entropy(taps, grid)[0, 1, y, x].item() == pytest.approx(expected)

    @pytest.mark.parametrize('axis', ['height', 'width'])
    def test_distance_along_an_axis(self, axis):
        length = 4 if axis == 'height' else 5
        weight = torch.randn(1, 2, 4, 5, length, dtype=torch.float64).softmax(4)
        values = distance(AxisWeights(weight, axis), Grid((4, 5), pitch=(2.0, 3.0)))
        position, pitch = (3, 2.0) if axis == 'height' else (1, 3.0)
        mean = sum(weight[0, 1, 3, 1, m].item() * abs(m - position) * pitch for m in range(length))
        assert values[0, 1, 3, 1].item() == pytest.approx(mean)

    def test_a_query_lays_weights_where_taps_fall(self):
        window, size = Window(3, 2, 2), (6, 7)
        taps = random_taps(window, size)
        grid = Grid(size, at=(0.99, 0.5))
        values = query(taps, grid)
        row, column = grid.position(taps.weight.shape[-2:])
        assert (row, column) == (2, 2)
        expected = torch.zeros(1, 2, *size, dtype=torch.float64)
        for tap, y, x in oracles.neighbours(window, size, (row, column)):
            expected[..., y, x] = taps.weight[:, :, tap, row, column]
        torch.testing.assert_close(values, expected)

    def test_spreading_is_the_adjoint_of_applying(self):
        window, size = Window((3, 5), (2, 1)), (6, 7)
        taps = random_taps(window, size, softmax=False)
        mass = torch.randn(1, 2, *window.output_size(*size), dtype=torch.float64)
        expected = oracles.scatter(mass.unsqueeze(2), taps.weight, size, window).squeeze(2)
        torch.testing.assert_close(spread(taps, mass, size), expected)

    @pytest.mark.parametrize('axis', ['height', 'width'])
    def test_a_query_along_an_axis(self, axis):
        length = 4 if axis == 'height' else 5
        weight = torch.randn(1, 2, 4, 5, length, dtype=torch.float64).softmax(4)
        values = query(AxisWeights(weight, axis), Grid((4, 5), at=(0.3, 0.7)))
        expected = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
        if axis == 'width':
            expected[:, :, 1] = weight[:, :, 1, 3]
        else:
            expected[..., 3] = weight[:, :, 1, 3]
        torch.testing.assert_close(values, expected)

    def test_a_query_through_two_axes_reaches_the_whole_map(self):
        shapes = dict(height=(1, 2, 4, 5, 4), width=(1, 2, 4, 5, 5))
        parts = tuple(
            AxisWeights(torch.randn(shape, dtype=torch.float64).softmax(4), axis)
            for axis, shape in shapes.items()
        )
        values = query(parts, Grid((4, 5), at=(0.3, 0.7)))
        column, row = (part.weight.mean(1)[0] for part in parts)
        # first along columns, then along the row of the position
        expected = torch.stack([row[1, 3, x] * column[1, x] for x in range(5)], 1)
        torch.testing.assert_close(values[0, 0], expected)
        assert values.sum().item() == pytest.approx(1)

    def test_names(self):
        softmax = random_taps(Window(3), (4, 4))
        assert views_of(softmax) == ['distance', 'entropy', 'query', 'rollout']
        kernels = random_taps(Window(3), (4, 4), softmax=False)
        assert views_of(kernels) == ['kernel-sum', 'distance', 'entropy', 'query', 'rollout']
        gate = Gate(torch.ones(1, 2, 1, 1))
        assert views_of(gate) == ['gate']
        assert views_of((softmax, kernels)) == ['query', 'rollout']
        assert views_of((softmax, gate)) == []


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return RedNet(26, base_channels=32).train()


class TestMaps:
    def test_kernel_sums_of_a_backbone(self, network):
        x = torch.randn(1, 3, 64, 96)
        before = {name: module.training for name, module in network.named_modules()}
        state = copy.deepcopy(network.state_dict())
        maps = attention_maps(network, x, layers='layer2.*')
        assert [item.layer for item in maps] == ['layer2.0.conv2', 'layer2.1.conv2']
        assert before == {name: module.training for name, module in network.named_modules()}
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
        inputs = []
        layer = network.layer2[1].conv2
        handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        network.eval()(x)
        handle.remove()
        network.train()
        layer.eval()
        expected = layer.conv2(layer.conv1(inputs[0])).unflatten(1, (layer.groups, -1)).sum(2)
        layer.train()
        torch.testing.assert_close(maps[1].values, expected.detach())

    def test_kernel_sums_of_involutions(self):
        first, second = Involution(16), Involution(16, kernel_size=3, stride=2, group_channels=4)
        model = nn.Sequential(first, nn.ReLU(), second).double().eval()
        x = torch.randn(1, 16, 7, 6, dtype=torch.float64)
        maps = {item.layer: item.values for item in attention_maps(model, x)}
        assert list(maps) == ['0', '2']
        torch.testing.assert_close(maps['0'], first.generate(first.conv1(x)).sum(2).detach())
        expected = second.generate(second.conv1(second.pool(first(x).relu()))).sum(2)
        torch.testing.assert_close(maps['2'], expected.detach())
        assert maps['2'].shape == (1, 4, 4, 3)
        assert not first._forward_pre_hooks

    def test_heads(self, network):
        x = torch.randn(1, 3, 64, 64)
        each = attention_maps(network, x, layers='layer3.0.conv2')[0].values
        mean = attention_maps(network, x, layers='layer3.0.conv2', heads='mean')[0].values
        assert each.shape[1] > 1
        torch.testing.assert_close(mean, each.mean(1, keepdim=True))

    def test_memory_is_that_of_one_layer(self, network, monkeypatch):
        import gc
        import weakref

        alive, original = [], Involution.attention

        def attention(self, x):
            gc.collect()
            assert not any(reference() is not None for reference in alive)
            result = original(self, x)
            alive.append(weakref.ref(result.weight))
            return result

        monkeypatch.setattr(Involution, 'attention', attention)
        x = torch.randn(1, 3, 32, 32)
        attention_maps(network, x)
        attention_maps(network, x, view='rollout')
        assert len(alive) == 2 * len(attention_layers(network))

    def test_rollout_is_a_share_around_the_point(self):
        model = SASAResNet(26, base_channels=32)
        x = torch.randn(1, 3, 64, 64)
        item = attention_maps(model, x, view='rollout', at=(50, 10), layers='layer[123]*')[0]
        assert item.values.shape == (1, 1, 16, 16)
        assert item.values.sum().item() == pytest.approx(1, rel=1e-5)
        row, column = divmod(item.values.flatten().argmax().item(), 16)
        assert abs(row - 2) <= 2
        assert abs(column - 12) <= 2

    def test_a_rollout_of_one_layer(self):
        model = SASAResNet(26, base_channels=32)
        x = torch.randn(1, 3, 32, 32)
        options = dict(layers='layer1.0.conv2', at=(9, 20))
        rollout = attention_maps(model, x, view='rollout', **options)[0].values
        mass = attention_maps(model, x, view='query', heads='mean', **options)[0].values
        # half of it stays where it is
        mass[..., 5, 2] += 1
        torch.testing.assert_close(rollout, mass / 2)

    def test_errors(self, network):
        x = torch.randn(1, 3, 32, 48)
        with pytest.raises(ValueError, match=r"layers must match .*stem.1, .*got 'neck.\*'"):
            attention_maps(network, x, layers=['layer1*', 'neck.*'])
        with pytest.raises(ValueError, match=r'at must be a point .* of 48 x 32 .*got \(48, 3\)'):
            attention_maps(network, x, at=(48, 3), view='query')
        with pytest.raises(ValueError, match="Involution has the views kernel-sum, .*'gate'"):
            attention_maps(network, x, view='gate')
        with pytest.raises(ValueError, match="did you mean 'entropy'"):
            attention_maps(network, x, view='entropi')
        with pytest.raises(ValueError, match="heads must be one of .*got 'all'"):
            attention_maps(network, x, heads='all')
        with pytest.raises(ValueError, match='ResNet has no layer with a method attention'):
            attention_maps(SpatialResNet(50, base_channels=16), x)
        with pytest.raises(FileNotFoundError, match="image must be an existing file, got 'no.png'"):
            attention_maps(network, 'no.png')
        with pytest.raises(ValueError, match=r'image must be an array .*float32'):
            attention_maps(network, np.zeros((4, 4, 3), np.float32))
        with pytest.raises(ValueError, match=r'an input must be of shape .*\(2, 3, 8, 8\)'):
            attention_maps(network, torch.zeros(2, 3, 8, 8))

    def test_layers_without_the_view(self):
        """A pattern leaves them out; a name must have the view."""
        cfg = [dict(type='StandAloneSelfAttention', num_heads=2), dict(type='LargeKernelAttention')]
        options = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
        model = SpatialResNet(26, cfg, base_channels=16, **options)
        x = torch.randn(1, 3, 32, 32)
        names = [item.layer for item in attention_maps(model, x, view='entropy')]
        assert names == ['layer1.0.conv2']
        names = [item.layer for item in attention_maps(model, x, view='gate')]
        assert names == ['layer2.0.conv2', 'layer2.1.conv2']
        lists = (
            'StandAloneSelfAttention has the views distance, .*; LargeKernelAttention has .* gate'
        )
        with pytest.raises(ValueError, match=f"{lists}; got view='points'"):
            attention_maps(model, x, view='points')
        for view in ('entropy', 'rollout'):
            layers = ['layer1.*', 'layer2.0.conv2']
            with pytest.raises(ValueError, match=f"LargeKernel.* gate; got view='{view}'"):
                attention_maps(model, x, view=view, layers=layers)

    def test_a_rollout_leaves_out_gates_and_inner_layers(self):
        attention = dict(type='AxialAttention', num_heads=2, table_size=8)
        cfg = [attention, dict(type='LargeKernelAttention')]
        options = dict(num_stages=2, strides=(1, 1), dilations=(1, 1), out_indices=(1,))
        model = SpatialResNet(26, cfg, base_channels=16, **options)
        x = torch.randn(1, 3, 32, 48)
        rollout = attention_maps(model, x, view='rollout')[0]
        assert rollout.layer == 'layer1.0.conv2'
        (expected,) = attention_maps(model, x, view='rollout', layers='layer1.0.conv2')
        torch.testing.assert_close(rollout.values, expected.values)
        with pytest.raises(ValueError, match="LargeKernelAttention has .*; got view='rollout'"):
            attention_maps(model, x, view='rollout', layers='layer2.*')

    @pytest.mark.parametrize(
        'cfg',
        [
            dict(type='AxialAttention', num_heads=2, table_size=8),
            dict(type='StandAloneSelfAttention', num_heads=2, kernel_size=23),
        ],
    )
    def test_global_attention_is_a_map_over_the_whole_image(self, cfg):
        options = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
        model = SpatialResNet(26, cfg, base_channels=16, **options)
        x = torch.randn(1, 3, 32, 48)
        options = dict(layers='layer1.0.conv2', view='query', at=(45, 2), heads='mean')
        values = attention_maps(model, x, **options)[0].values
        assert values.shape == (1, 1, 8, 12)
        assert (values > 0).all()
        assert values.sum().item() == pytest.approx(1, rel=1e-5)

    def test_blocks_of_the_axial_network_are_global(self):
        model = AxialResNet(0.25, depth=26, input_size=32, num_heads=4)
        x = torch.randn(1, 3, 32, 48)
        (item,) = attention_maps(model, x, layers='layer1.0', at=(45, 2), heads='mean')
        assert (item.view, item.values.shape) == ('query', (1, 1, 8, 12))
        assert (item.values > 0).all()
        assert item.values.sum().item() == pytest.approx(1, rel=1e-5)

    def test_gates_and_points(self):
        plugins = [dict(cfg=dict(type='mmrednet.SE'), position='after_conv3')]
        cfg = [None, dict(type='DCNv2'), None, dict(type='LargeKernelAttention')]
        model = SpatialResNet(26, cfg, base_channels=16, plugins=plugins)
        x = torch.randn(1, 3, 64, 64)
        maps = attention_maps(model, x, heads='mean')
        forms = {item.view: item.values.shape for item in maps}
        assert forms['points'] == (1, 1, 9, 3)
        names = [item.layer for item in maps if item.values.shape[-1] == 1]
        assert len(names) == 8
        assert 'layer4.0.conv2' in [item.layer for item in maps if item.view == 'gate']
        # without offsets, taps lie one position around the point
        points = next(item for item in maps if item.view == 'points').values[0, 0]
        rows = points[:, 0].unique()
        assert len(rows) == 3
        assert (rows[1] - rows[0]).item() == pytest.approx(1 / 16)


class LastMean(nn.Module):
    """Scores of classes: the means of the channels of a backbone's last feature map."""

    def forward(self, features):
        return features[-1].mean((2, 3))


class TestClassActivation:
    def test_eigen_cam_of_a_rank_one_map(self):
        class Plane(nn.Module):
            def forward(self, x):
                plane = torch.zeros(1, 1, 4, 5)
                plane[..., 1, 2] = 3
                return plane * torch.tensor([1.0, -2, 0.5])[None, :, None, None]

        model = nn.Sequential(Plane())
        model.register_parameter('unused', nn.Parameter(torch.ones(1)))
        values = class_activation(model, torch.randn(1, 3, 8, 8), layer='0').values[0, 0]
        assert values.argmax().item() == 7
        # the length of the direction (1, -2, 0.5), three times
        assert values[1, 2].item() == pytest.approx(3 * math.sqrt(5.25))

    def test_grad_cam_of_a_linear_classifier(self):
        torch.manual_seed(0)
        head = nn.Linear(4, 3)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        x = torch.randn(1, 3, 8, 8)
        item = class_activation(model, x, layer='0', method='grad-cam', target=1)
        features = model[0](x)[0]
        weight = head.weight[1] / 36
        expected = (weight[:, None, None] * features).sum(0).relu()
        torch.testing.assert_close(item.values[0, 0], expected.detach())
        with pytest.raises(ValueError, match='target must be a class from 0 to 2, got 3'):
            class_activation(model, x, layer='0', method='grad-cam', target=3)

    @pytest.mark.parametrize('method', METHODS)
    def test_the_library_gives_the_same(self, method):
        """Up to the library's scaling, cutting and centring."""
        pytest.importorskip('torchvision')
        pytest.importorskip('pytorch_grad_cam')
        torch.manual_seed(0)
        model = SpatialResNet(26, dict(type='Involution'), base_channels=16).eval()
        network = nn.Sequential(model, LastMean())
        x = torch.randn(1, 3, 64, 96)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        options = dict(layer='0', method=method)
        library = class_activation(network, x, **options, use_library=True).values
        assert library.shape == (1, 1, 64, 96)
        own = class_activation(network, x, **options, use_library=False).values
        resized = nn.functional.interpolate(own, (64, 96), mode='bilinear')
        # the sign of a component is arbitrary
        correlation = torch.corrcoef(torch.stack([library.flatten(), resized.flatten()]))[0, 1]
        assert correlation.abs() > 0.8
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert all(parameter.grad is None for parameter in network.parameters())
        assert not model._forward_hooks

    def test_the_library_is_used_where_it_can_be_imported(self, network, monkeypatch):
        """A library in its place gets a network whose only layer gives the feature map."""

        class Library:
            def __init__(self, model, layers):
                self.model, self.features = model, []
                self.activations_and_grads = SimpleNamespace(release=lambda: None)
                layers[0].register_forward_hook(lambda _, __, output: self.features.append(output))

            def __call__(self, x, targets):
                score = self.model(x)
                (features,) = self.features
                assert targets[0](score[0]).shape == ()
                (gradient,) = torch.autograd.grad(score.sum(), features)
                assert features.shape == gradient.shape == (1, 512, 2, 3)
                return np.full((1, *x.shape[2:]), 0.25, np.float32)

        stub = SimpleNamespace(GradCAM=Library)
        monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', stub)
        monkeypatch.setattr(activation_module, 'has_library', lambda: True)
        model = nn.Sequential(SpatialResNet(26, base_channels=16), LastMean())
        x = torch.randn(1, 3, 64, 96)
        item = class_activation(model, x, layer='0', method='grad-cam')
        assert item.values.shape == (1, 1, 64, 96)
        assert (item.values == 0.25).all()

    def test_errors(self, network):
        x = torch.randn(1, 3, 32, 32)
        with pytest.raises(ValueError, match="got 'layer9'; did you mean 'layer"):
            class_activation(network, x, layer='layer9')
        with pytest.raises(ValueError, match="method must be one of .*got 'cam'"):
            class_activation(network, x, layer='layer4', method='cam')


def test_the_snippet_of_the_documentation_runs():
    text = (Path(__file__).parents[1] / 'docs/attention_maps.md').read_text()
    (snippet,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    names = {}
    exec(snippet, names)
    assert len(names['maps']) == 4
    assert names['picture'].ndim == 3


def test_layers_beside_backbone_and_neck():
    """The decoders of a panoptic detector are run too."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules(init_default_scope=True)
    root = Path(__file__).parents[1]
    cfg = Config.fromfile(root / 'configs/shapes/panoptic-deeplab_r26-narrow_shapes.py')
    for decoder in ('decoder', 'instance_decoder'):
        cfg.model.setdefault(decoder, {})['spatial_cfg'] = dict(type='SE')
    model = MODELS.build(cfg.model)
    maps = attention_maps(model, torch.randn(1, 3, 65, 65))
    layers = set(attention_layers(model))
    assert {item.layer for item in maps} == layers
    assert any('decoder' in layer for layer in layers)


class TestPictures:
    def test_forms(self, network):
        image = model_image(network, np.full((40, 60, 3), 128, np.uint8))
        assert image.inputs.shape == (1, 3, 40, 60)
        maps = attention_maps(network, image, layers='layer3.0.conv2', heads='each')
        picture = draw_attention_maps(image, maps)
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        with pytest.raises(ValueError, match='maps must have at least one map'):
            draw_attention_maps(image, [])

    def test_the_point_is_marked(self, network):
        image = model_image(network, np.full((40, 60, 3), 128, np.uint8))
        maps = attention_maps(network, image, layers='layer2.0.conv2', view='query', heads='mean')
        pictures = [draw_attention_maps(image, maps, at=at) for at in ((10, 30), (50, 5))]
        assert (pictures[0] != pictures[1]).any()

    def test_bars_and_points(self):
        model = SpatialResNet(26, [None, dict(type='DCN'), dict(type='SE'), None], base_channels=16)
        image = model_image(model, np.full((64, 64, 3), 128, np.uint8))
        maps = attention_maps(model, image, heads='mean')
        assert {item.view for item in maps} == {'points', 'gate'}
        assert draw_attention_maps(image, maps).shape[1] > 500

    def test_titles_name_layer_view_and_scale(self, network):
        image = model_image(network, np.full((64, 96, 3), 128, np.uint8))
        maps = attention_maps(network, image, layers='layer3.0.conv2', view='query', heads='each')
        titles = [title for item in maps for _, title, _ in _panels(image, item)]
        assert titles[1] == 'layer3.0.conv2\nquery, 8 x 12, stride 8, 2 of 8'
        bars = AttentionMap('se', 'gate', torch.ones(1, 5, 1, 1))
        assert _panels(image, bars)[0][1] == 'se\ngate, 5 channels'
        points = AttentionMap('dcn', 'points', torch.ones(1, 1, 9, 3))
        assert _panels(image, points)[0][1] == 'dcn\npoints, 9 taps'


def test_the_command_draws_a_classifier(tmp_path):
    """Photographs of one name and a folder, with weights that are random."""
    import cv2

    root = Path(__file__).parents[1]
    for folder, size in (('a', (40, 60)), ('b', (64, 48))):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'photo.png'), np.full((*size, 3), 128, np.uint8))
    (tmp_path / 'b/notes.txt').write_text('no image')
    config = root / 'configs/shapes/rednet26-narrow_single-shapes.py'
    photos = [tmp_path / 'a/photo.png', tmp_path / 'b']
    options = ['--layers', 'backbone.layer4.*', '--columns', 2, '--out', tmp_path / 'out']
    script = root / 'tools/analysis_tools/draw.py'
    result = run_warm(script, config, 'none', *photos, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'weights are random' in result.stdout
    pictures = [cv2.imread(str(path)) for path in sorted((tmp_path / 'out').iterdir())]
    assert [path.name for path in sorted((tmp_path / 'out').iterdir())] == [
        'photo.png',
        'photo_2.png',
    ]
    assert all(picture.shape[1] == 760 for picture in pictures)


class TestHook:
    def train(self, tmp_path, **options):
        """Train a classifier on noise for four iterations."""
        import cv2
        from mmengine.dataset import pseudo_collate
        from mmengine.registry import DefaultScope
        from mmengine.runner import Runner
        from torch.utils.data import DataLoader, Dataset

        class Noise(Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                return dict(inputs=torch.randn(3, 32, 32), data_samples=torch.tensor(index % 2))

        photo = tmp_path / 'photo.png'
        cv2.imwrite(str(photo), np.random.randint(0, 255, (32, 48, 3), np.uint8))
        hook = dict(type='mmrednet.AttentionMapHook', image=str(photo), interval=2)
        backbone = dict(type='mmrednet.RedNet', depth=26, base_channels=32, out_indices=(3,))
        name = f'attention-{tmp_path.name}'
        with DefaultScope.overwrite_default_scope('mmrednet'):
            runner = Runner(
                model=dict(
                    type='mmrednet.ImageClassifier',
                    backbone=backbone,
                    num_classes=2,
                    channels=1024,
                    data_preprocessor=dict(type='ImgDataPreprocessor'),
                ),
                work_dir=str(tmp_path / 'work'),
                train_dataloader=DataLoader(Noise(), batch_size=2, collate_fn=pseudo_collate),
                train_cfg=dict(by_epoch=False, max_iters=4),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
                custom_hooks=[dict(hook, **options)],
                visualizer=dict(
                    type='Visualizer',
                    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
                ),
                experiment_name=name,
                log_level='ERROR',
            )
            runner.train()
        return runner

    def test_tensorboard_gets_pictures(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        views = ('kernel-sum', 'query')
        runner = self.train(tmp_path, layers='backbone.layer3.*', views=views, at=(40, 3))
        assert runner.model.training
        files = list(tmp_path.glob('work/*/vis_data/**/events*'))
        assert len(files) == 1
        events = EventAccumulator(str(files[0]), size_guidance=dict(images=0)).Reload()
        assert set(events.Tags()['images']) == {f'attention_{view}' for view in views}
        pictures = events.Images('attention_query')
        assert [picture.step for picture in pictures] == [0, 2, 4]
        assert pictures[0].width > 500
        # the network has learned
        assert pictures[0].encoded_image_string != pictures[2].encoded_image_string
        assert list(tmp_path.glob('work/*/vis_data/vis_image/attention_query_4.png'))

    def test_what_is_wrong_raises_before_training(self, tmp_path):
        with pytest.raises(ValueError, match='interval must be at least 1, got 0'):
            self.train(tmp_path, interval=0)
        with pytest.raises(ValueError, match="views must be some of .*'kernels'"):
            self.train(tmp_path, views=('kernels',))
        with pytest.raises(ValueError, match=r"layers must match .*got 'layer3.\*'"):
            self.train(tmp_path, layers='layer3.*')
