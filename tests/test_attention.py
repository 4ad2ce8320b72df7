"""SASA, local relation, SAN and axial attention against their formulas, and the networks made of
them.
"""

from pathlib import Path

import golden
import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmrednet.backbones import SAN, AxialResNet, SASAResNet
from mmrednet.layers import (
    AttentionStem,
    AxialAttention,
    AxialAttention1d,
    LocalRelation,
    SANPairwise,
    SANPatchwise,
    StandAloneSelfAttention,
    build_spatial,
)
from mmrednet.ops import Window, local_aggregate, local_correlate
from mmrednet.ops.vector_attention import aggregate_rows

ROOT = Path(__file__).parents[1]
SIZES = [(5, 7), (6, 4), (2, 3), (1, 1)]


def shaken(layer):
    """Return the layer in eval mode with norms whose statistics and weights matter."""
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.3, 0.3)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)
    return layer.double().eval()


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class TestSASA:
    @pytest.mark.parametrize('size', SIZES)
    @pytest.mark.parametrize(
        'arguments',
        [
            dict(),
            dict(kernel_size=5, dilation=2),
            dict(position='none'),
            dict(content=False),
            dict(num_heads=4),
        ],
    )
    def test_formula(self, size, arguments):
        layer = shaken(
            StandAloneSelfAttention(8, **{'kernel_size': 3, 'num_heads': 2, **arguments})
        )
        x = random(2, 8, *size)
        torch.testing.assert_close(layer(x), oracles.sasa(x, layer))

    def test_absolute_positions_tell_equal_pixels_apart(self):
        layer = shaken(StandAloneSelfAttention(8, kernel_size=3, num_heads=2, position='absolute'))
        x = random(1, 8, 1, 1).expand(-1, -1, 5, 6)
        # equal values give equal sums whatever the weights are, so queries are looked at
        from mmrednet.layers.position import absolute_embedding

        embedding = absolute_embedding(x)
        assert embedding.shape == (8, 5, 6)
        assert len({tuple(embedding[:, y, z].tolist()) for y in range(5) for z in range(6)}) == 30
        torch.testing.assert_close(
            embedding[0, :, 2], torch.arange(5, dtype=torch.float64).sin(), rtol=1e-5, atol=1e-6
        )
        x = random(1, 8, 5, 6)
        with_position = layer(x)
        layer.absolute = False
        assert not torch.allclose(with_position, layer(x))

    def test_a_stride_averages_what_was_attended(self):
        plain = shaken(StandAloneSelfAttention(8, kernel_size=3, num_heads=2))
        strided = shaken(StandAloneSelfAttention(8, kernel_size=3, num_heads=2, stride=2))
        strided.load_state_dict(plain.state_dict())
        x = random(1, 8, 5, 4)
        torch.testing.assert_close(strided(x), F.avg_pool2d(plain(x), 2, ceil_mode=True))

    @pytest.mark.parametrize('size', [(8, 12), (7, 5)])
    def test_stem(self, size):
        stem = shaken(AttentionStem(3, 8, num_heads=2))
        x = random(2, 3, *size)
        window, mixture = stem.window, stem.mixture()
        torch.testing.assert_close(mixture.sum(0), torch.ones(16, dtype=torch.float64))
        query, key = stem.query(x), stem.key(x)
        projections = stem.values.weight[..., 0, 0].view(4, 8, 3)
        expected = torch.zeros(2, 8, *size, dtype=torch.float64)
        for y in range(size[0]):
            for z in range(size[1]):
                neighbours = list(oracles.neighbours(window, size, (y, z)))
                for head in (slice(0, 4), slice(4, 8)):
                    logits = torch.stack(
                        [
                            (query[:, head, y, z] * key[:, head, row, column]).sum(1)
                            for _, row, column in neighbours
                        ],
                        -1,
                    )
                    for (tap, row, column), weight in zip(
                        neighbours, logits.softmax(-1).unbind(-1), strict=True
                    ):
                        matrix = torch.einsum('m,moi->oi', mixture[:, tap], projections)[head]
                        expected[:, head, y, z] += weight[:, None] * (
                            x[..., row, column] @ matrix.T
                        )
        torch.testing.assert_close(stem(x), F.max_pool2d(stem.norm(expected), 4, ceil_mode=True))

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (dict(num_heads=3), 'num_heads must divide channels, got channels=8, num_heads=3'),
            (dict(num_heads=8), 'channels / num_heads must be even'),
            (dict(position='sine'), "position must be one of .* got 'sine'"),
            (
                dict(content=False, position='none'),
                'content=False leaves the relative positions alone',
            ),
            (dict(kernel_size=4), 'an even kernel has no centre'),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            StandAloneSelfAttention(8, **{'num_heads': 2, **arguments})

    def test_bad_stem(self):
        with pytest.raises(ValueError, match='num_heads must divide out_channels'):
            AttentionStem(3, 10)
        with pytest.raises(ValueError, match="stem must be 'conv' or 'attention', got 'axial'"):
            SASAResNet(26, stem='axial')


class TestLocalRelation:
    @pytest.mark.parametrize('size', SIZES)
    @pytest.mark.parametrize(
        'relation', ['product', 'squared_difference', 'absolute_difference', 'key']
    )
    def test_formula(self, size, relation):
        layer = shaken(LocalRelation(12, kernel_size=3, relation=relation, group_channels=4))
        x = random(2, 12, *size)
        torch.testing.assert_close(layer(x), oracles.local_relation(x, layer))

    @pytest.mark.parametrize(
        'arguments',
        [
            dict(stride=2),
            dict(dilation=2, kernel_size=5),
            dict(group_channels=5),
            dict(prior_channels=0),
        ],
    )
    def test_variants(self, arguments):
        layer = shaken(
            LocalRelation(12, **{'kernel_size': 3, 'relation': 'absolute_difference', **arguments})
        )
        x = random(2, 12, 7, 5)
        torch.testing.assert_close(layer(x), oracles.local_relation(x, layer))

    def test_queries_and_keys_take_one_convolution(self):
        layer, x = shaken(LocalRelation(12, kernel_size=3)), random(2, 12, 7, 5)
        leaves = [x.requires_grad_(), *layer.parameters()]
        at_once = layer(x)
        grads = torch.autograd.grad(at_once.sin().sum(), leaves)
        calls = []
        # whoever looks at a convolution sees its call
        layer.query.register_forward_hook(lambda *arguments: calls.append(arguments))
        result = layer(x)
        assert len(calls) == 1
        torch.testing.assert_close(at_once, result)
        torch.testing.assert_close(grads, torch.autograd.grad(result.sin().sum(), leaves))

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="relation must be one of .* got 'cosine'"):
            LocalRelation(8, relation='cosine')
        with pytest.raises(ValueError, match='group_channels must be at least 1'):
            LocalRelation(8, group_channels=0)


class TestSAN:
    @pytest.mark.parametrize('size', SIZES)
    @pytest.mark.parametrize(
        'relation', ['subtraction', 'summation', 'concatenation', 'hadamard', 'dot_product']
    )
    def test_pairwise(self, size, relation):
        layer = shaken(
            SANPairwise(8, relation_channels=2, kernel_size=3, share_channels=4, relation=relation)
        )
        x = random(2, 8, *size)
        torch.testing.assert_close(layer(x), oracles.san(x, layer, oracles.pairwise))

    @pytest.mark.parametrize('size', SIZES)
    @pytest.mark.parametrize('relation', ['concatenation', 'star_product', 'clique_product'])
    def test_patchwise(self, size, relation):
        layer = shaken(
            SANPatchwise(8, relation_channels=2, kernel_size=3, share_channels=4, relation=relation)
        )
        x = random(2, 8, *size)
        torch.testing.assert_close(layer(x), oracles.san(x, layer, oracles.patchwise))

    @pytest.mark.parametrize(
        'arguments',
        [
            dict(stride=2),
            dict(dilation=2),
            dict(kernel_size=(1, 5)),
            dict(kernel_size=(5, 1), stride=2),
            dict(gamma_depth=3),
            dict(gamma_depth=1),
            dict(act_cfg=dict(type='Tanh')),
            dict(out_channels=4),
        ],
    )
    @pytest.mark.parametrize('attention', ['pairwise', 'patchwise'])
    def test_variants(self, attention, arguments):
        build, oracle = {
            'pairwise': (SANPairwise, oracles.pairwise),
            'patchwise': (SANPatchwise, oracles.patchwise),
        }[attention]
        layer = shaken(
            build(8, **{'relation_channels': 2, 'kernel_size': 3, 'share_channels': 4, **arguments})
        )
        x = random(2, 8, 5, 6)
        torch.testing.assert_close(layer(x), oracles.san(x, layer, oracle))

    def test_sharing_is_a_view(self):
        layer = shaken(SANPatchwise(16, kernel_size=3))
        weight, x = layer.weights(random(1, 16, 4, 4)), random(1, 16, 4, 4)
        value = layer.conv3(x)
        groups = value.unflatten(1, (-1, layer.groups)).transpose(1, 2)
        assert groups.data_ptr() == value.data_ptr()
        result = aggregate_rows(value, weight, layer.window, (0, 4))
        torch.testing.assert_close(result[:, 3::2], result[:, 1::2][:, 1:])

    @pytest.mark.parametrize(
        ('build', 'message'),
        [
            (
                lambda: SANPairwise(12),
                'share_channels must divide out_channels, got out_channels=12',
            ),
            (
                lambda: SANPairwise(16, relation='star_product'),
                "relation must be one of .* got 'star_product'",
            ),
            (lambda: SAN(11), r'depth must be one of \[10, 15, 19\], got 11'),
            (
                lambda: SAN(10, 'both'),
                "relation must be one of .'pairwise', 'patchwise'., got 'both'",
            ),
            (lambda: SAN(10, kernel_sizes=(3, 7)), 'kernel_sizes must have one entry per stage, 5'),
        ],
    )
    def test_bad_arguments(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()


class TestAxial:
    @pytest.mark.parametrize('length', [1, 5, 9])
    @pytest.mark.parametrize(
        'arguments',
        [
            dict(),
            dict(table_size=9),
            dict(span=3),
            dict(terms=('query_key',)),
            dict(terms=('key_position',)),
            dict(terms=('query_key', 'query_position'), value_position=False),
        ],
    )
    def test_formula_at_any_length(self, length, arguments):
        layer = shaken(
            AxialAttention1d(
                6, 8, **{'num_heads': 2, 'axis': 'width', 'table_size': 4, **arguments}
            )
        )
        x = random(2, 6, 2, length)
        torch.testing.assert_close(layer(x), oracles.axial(x, layer))

    def test_the_height_is_the_width_of_the_transpose(self):
        width = shaken(AxialAttention1d(8, 8, num_heads=2, axis='width', table_size=4))
        height = shaken(AxialAttention1d(8, 8, num_heads=2, axis='height', table_size=4))
        height.load_state_dict(width.state_dict())
        x = random(2, 8, 3, 5)
        torch.testing.assert_close(height(x.mT), width(x).mT)

    @pytest.mark.parametrize('training', [True, False])
    @pytest.mark.parametrize('budget', [1, 200])
    def test_chunks_change_nothing(self, training, budget):
        whole, chunked = (
            shaken(
                AxialAttention1d(
                    8, 8, num_heads=2, axis='width', table_size=4, logits_budget=number
                )
            )
            for number in (1 << 28, budget)
        )
        chunked.load_state_dict(whole.state_dict())
        x, results = random(3, 8, 4, 5), []
        for layer in (whole, chunked):
            layer.train(training)
            value = x.clone().requires_grad_()
            output = layer(value)
            output.sin().sum().backward()
            results.append(
                [
                    output,
                    value.grad,
                    *(p.grad for p in layer.parameters()),
                    *(b.double() for b in layer.buffers()),
                ]
            )
        for got, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)

    def test_the_norm_of_the_logits_is_a_batch_norm(self):
        layer = shaken(AxialAttention1d(8, 8, num_heads=2, axis='width', table_size=4)).train()
        reference = nn.BatchNorm2d(6).double()
        reference.load_state_dict(layer.bn_similarity.state_dict())
        query, key = random(4, 2, 2, 5), random(4, 2, 2, 5)
        logits = layer.logits(query, key)
        expected = reference(logits)
        value = random(4, 2, 4, 5)
        scale, shift = layer.similarity_norm(torch.cat([query, key, value], 2).unsqueeze(3))
        scale, shift = (number.flatten()[:, None, None] for number in (scale, shift))
        torch.testing.assert_close(logits * scale + shift, expected, rtol=1e-6, atol=1e-6)
        for got, want in zip(layer.bn_similarity.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (dict(num_heads=3), 'num_heads must divide out_channels'),
            (dict(axis='depth'), "axis must be .* got 'depth'"),
            (dict(terms=()), 'terms must be some of'),
            (dict(terms=('value',)), 'terms must be some of'),
            (dict(span=4), 'span odd or None'),
            (dict(table_size=0), 'table_size must be at least 1'),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            AxialAttention1d(8, 8, **{'num_heads': 2, **arguments})

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (dict(arch='xs'), "arch must be one of .* or a number, got 'xs'"),
            (dict(depth=38), 'depth must be one of'),
            (dict(stem='sasa'), 'stem must be one of'),
            (dict(output_stride=8), 'output_stride must be one of'),
        ],
    )
    def test_bad_networks(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            AxialResNet(**arguments)

    @pytest.mark.parametrize('output_stride', [16, 32])
    @pytest.mark.parametrize('stem', ['conv', 'axial'])
    def test_any_size(self, stem, output_stride):
        model = AxialResNet(0.25, 26, stem=stem, output_stride=output_stride, input_size=64).eval()
        for size in ((64, 64), (45, 70)):
            shapes = [tuple(x.shape) for x in model(torch.randn(1, 3, *size))]
            strides = (4, 8, 16, output_stride)
            assert shapes == [
                (1, 64 << index, *(-(-length // strides[index]) for length in size))
                for index in range(4)
            ]


# what the primitives give where the unofficial references agree with them: zero keys and values
# outside the map
def test_unofficial_local_attention():
    case, arrays = golden.load('op_local_attention_k5x3')
    x = golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape'])
    query, key, value = (
        F.conv2d(x, arrays[f'state.conv{index}.weight']).unsqueeze(1) for index in (1, 2, 3)
    )
    window = Window((5, 3))
    result = local_aggregate(value, local_correlate(query, key, window).softmax(2), window).squeeze(
        1
    )
    assert golden.relative_error(result, arrays['output']) < 1e-12


@pytest.mark.parametrize(('name', 'kernel'), [('op_sasa_conv_k3', 3), ('op_sasa_conv_k7', 7)])
def test_unofficial_sasa(name, kernel):
    case, arrays = golden.load(name)
    x = golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape'])
    # every channel is a head of its own there
    query, key, value = (
        F.conv2d(x, arrays[f'state.{part}_conv.weight']).unsqueeze(2)
        for part in ('query', 'key', 'value')
    )
    rows = arrays['state.rel_h'].view(-1, kernel, 1).expand(-1, -1, kernel)
    columns = arrays['state.rel_w'].view(-1, 1, kernel).expand(-1, kernel, -1)
    relative = torch.cat([rows, columns]).flatten(1)[:, :, None, None]
    window = Window(kernel)
    logits = local_correlate(query, key, window) + query * relative
    result = local_aggregate(value, logits.softmax(2), window).squeeze(2)
    assert golden.relative_error(result, arrays['output']) < 1e-12


def test_chains_are_their_operators_in_order():
    from mmrednet.layers import OperatorChain

    spans = [
        dict(type='SANPatchwise', kernel_size=(1, 3)),
        dict(type='SANPatchwise', kernel_size=(3, 1)),
    ]
    chain = shaken(OperatorChain(16, operators=spans, stride=2))
    x = random(1, 16, 5, 6)
    torch.testing.assert_close(chain(x), chain[1](chain[0](x)))
    assert [layer.stride for layer in chain] == [1, 2]
    with pytest.raises(ValueError, match='operators must have at least one config'):
        OperatorChain(16, operators=[])


def test_axial_pairs_follow_the_contract():
    layer = shaken(AxialAttention(16, num_heads=2, table_size=4, stride=2))
    x = random(1, 16, 5, 7)
    torch.testing.assert_close(
        layer(x), F.avg_pool2d(layer.axes[1](layer.axes[0](x)), 2, ceil_mode=True)
    )
    dilated = build_spatial(dict(type='AxialAttention', num_heads=2, span=3), 16, dilation=2)
    assert [axis.span for axis in dilated.axes] == [5, 5]
