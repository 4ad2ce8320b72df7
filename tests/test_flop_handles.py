"""What mmengine's counter is told of operators, against counts by hand."""

import copy
import math
from fractions import Fraction

import counting
import pytest
import torch
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from torch import nn
from torch.nn import functional as F

from mmrednet.analysis.categories import CATEGORIES
from mmrednet.analysis.counting import count_network
from mmrednet.analysis.operator_handles import HANDLES, einsum_macs
from mmrednet.backbones import MSCAN, SAN, VAN, AxialResNet, LRNet, RedNet, SASAResNet
from mmrednet.ops import (
    Window,
    attention,
    axial,
    axial_attention,
    involution,
    local_aggregate,
    local_attention,
    local_correlate,
    local_scatter,
)
from mmrednet.ops import local_involution as fused_involution


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def counted(function, *shapes):
    """Return what mmengine counts by our handles for a function of random tensors, by operator."""
    inputs = tuple(torch.randn(shape) for shape in shapes)
    analyzer = FlopAnalyzer(Call(function), inputs).unsupported_ops_warnings(False)
    analyzer.set_op_handle(**HANDLES)
    return {name: count for name, count in analyzer.by_operator().items() if count}


@pytest.mark.parametrize(
    ('value', 'window', 'by_hand'),
    [
        ((1, 1, 1, 5, 6), Window(3), 9 * 30),
        ((2, 3, 4, 5, 7), Window((5, 3)), 2 * 12 * 15 * 35),
        ((1, 2, 8, 7, 9), Window(7, 2, padding=3), 16 * 49 * (4 * 5)),
    ],
)
def test_primitives(value, window, by_hand):
    batch, groups, channels, *size = value
    outputs = window.output_size(*size)
    weight, query = (batch, groups, window.taps, *outputs), (batch, groups, channels, *outputs)
    assert counted(
        lambda value, weight: local_aggregate(value, weight, window), value, weight
    ) == dict(aggregate=by_hand)
    assert counted(lambda query, key: local_correlate(query, key, window), query, value) == dict(
        correlate=by_hand
    )
    assert counted(
        lambda grad, weight: local_scatter(grad, weight, size, window), query, weight
    ) == dict(scatter=by_hand)


def involution_shapes(value, hidden, window, bias):
    batch, groups, _, *size = value
    shapes = [value, (batch, hidden, *window.output_size(*size)), (groups * window.taps, hidden)]
    return [*shapes, (groups * window.taps,)] if bias else shapes


def involve(function, window):
    return lambda value, hidden, weight, bias=None: function(value, hidden, weight, bias, window)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize(
    ('value', 'hidden', 'window', 'by_hand'),
    [
        ((1, 1, 16, 6, 7), 4, Window(7), (49 * 4 * 42, 49 * 16 * 42)),
        ((2, 3, 4, 5, 8), 5, Window(3, 2), (2 * 27 * 5 * 12, 2 * 3 * 9 * 4 * 12)),
        ((1, 2, 1, 3, 2), 3, Window((1, 5)), (10 * 3 * 6, 10 * 6)),
    ],
)
def test_involution(value, hidden, window, bias, by_hand):
    shapes = involution_shapes(value, hidden, window, bias)
    fused = counted(involve(fused_involution, window), *shapes)
    assert fused == dict(conv=by_hand[0], aggregate=by_hand[1])
    composed = counted(involve(involution.definition, list(window)), *shapes)
    # the definition generates kernels by a linear layer over positions
    assert composed == dict(linear=by_hand[0], aggregate=by_hand[1])


def attention_inputs(query, value_channels, window, tables):
    batch, heads, channels, *size = query
    outputs = window.output_size(*size)
    shapes = dict(
        rows=(heads, channels // 2, window.kernel[0]),
        columns=(heads, channels // 2, window.kernel[1]),
        bias=(heads, window.taps),
    )
    return [
        (batch, heads, channels, *outputs),
        query,
        (batch, heads, value_channels, *size),
        *(shapes[table] for table in tables),
    ]


def attend(window, tables, composed=False):
    def function(query, key, value, *embeddings):
        embeddings = dict(zip(tables, embeddings, strict=True))
        if composed:
            return attention.definition(
                query,
                key,
                value,
                embeddings.get('rows'),
                embeddings.get('columns'),
                embeddings.get('bias'),
                list(window),
            )[0]
        return local_attention(query, key, value, window, **embeddings)

    return function


@pytest.mark.parametrize(
    ('query', 'value_channels', 'window', 'tables', 'by_hand'),
    [
        ((1, 2, 4, 5, 6), 3, Window(3), (), dict(correlate=8 * 9 * 30, aggregate=6 * 9 * 30)),
        (
            (2, 1, 6, 4, 7),
            6,
            Window((5, 3)),
            ('rows', 'columns'),
            dict(correlate=12 * 15 * 28, einsum=2 * 28 * 3 * (5 + 3), aggregate=12 * 15 * 28),
        ),
        (
            (1, 3, 2, 7, 5),
            1,
            Window(7, 2),
            ('rows', 'columns', 'bias'),
            dict(correlate=6 * 49 * 12, einsum=12 * 3 * (7 + 7), aggregate=3 * 49 * 12),
        ),
    ],
)
def test_attention(query, value_channels, window, tables, by_hand):
    shapes = attention_inputs(query, value_channels, window, tables)
    assert counted(attend(window, tables), *shapes) == by_hand
    assert counted(attend(window, tables, composed=True), *shapes) == by_hand


def axial_shapes(lines, heads, keys, values, length, terms):
    line = (lines, heads, keys, length)
    return [
        line,
        line,
        (lines, heads, values, length),
        (2 * keys + values, 2 * length - 1),
        (terms, heads),
        (terms, heads),
    ]


@pytest.mark.parametrize(
    ('sizes', 'terms', 'value_position', 'pairs', 'products'),
    [
        ((1, 1, 2, 4, 5), axial.TERMS, True, 25, 25 * (2 + 2 + 2 + 4 + 4)),
        ((3, 2, 1, 3, 4), axial.TERMS[:1], False, 6 * 16, 6 * 16 * (1 + 3)),
        ((2, 4, 3, 1, 7), axial.TERMS[1:], True, 8 * 49, 8 * 49 * (3 + 3 + 1 + 1)),
        ((1, 2, 3, 5, 2), axial.TERMS[::2], False, 8, 8 * (3 + 3 + 5)),
    ],
)
def test_axial_attention(sizes, terms, value_position, pairs, products):
    """Products, and what else is counted: the softmax, and each term of the logits scaled, shifted
    and summed.
    """
    shapes, length = axial_shapes(*sizes, len(terms)), sizes[-1]
    for span in (None, 3):

        def attend(*inputs, span=span):
            return axial_attention(*inputs, terms=terms, span=span, value_position=value_position)

        # of length^2 pairs, those of a span of 3 are the diagonal and its neighbours
        share = Fraction(3 * length - 2, length**2) if span else 1
        assert counted(attend, *shapes) == dict(einsum=products * share)
        counts = count_network(Call(attend), *map(torch.randn, shapes)).operators(CATEGORIES)
        every_term = pairs * share * len(terms)
        assert counts == dict(
            einsum=products * share,
            softmax=pairs * share,
            mul=every_term,
            add=every_term,
            sum=every_term,
        )


@pytest.mark.parametrize(
    'tables', [(), ('bias',), ('rows', 'columns'), ('rows', 'columns', 'bias')]
)
def test_fused_functions_count_the_rest_like_their_parts(tables):
    """Biases, additions and softmax, which the tool counts where it is asked to."""
    window, names = Window(3), ('softmax', 'add', 'bias')
    inputs = [torch.randn(shape) for shape in attention_inputs((1, 2, 4, 5, 6), 4, window, tables)]
    fused, parts = (
        count_network(Call(attend(window, tables, composed)), *inputs) for composed in (False, True)
    )
    assert fused.operators(names) == parts.operators(names)
    inputs = [
        torch.randn(shape) for shape in involution_shapes((1, 2, 4, 5, 6), 3, window, bias=True)
    ]
    fused, parts = (
        count_network(Call(involve(function, argument)), *inputs)
        for function, argument in (
            (fused_involution, window),
            (involution.definition, list(window)),
        )
    )
    assert fused.operators(names) == parts.operators(names) == dict(bias=18 * 30)


@pytest.mark.parametrize(
    ('query', 'key', 'value', 'by_hand'),
    [
        ((2, 3, 4), (2, 5, 4), (2, 5, 6), 2 * 3 * 5 * (4 + 6)),
        ((1, 8, 16, 8), (1, 8, 16, 8), (1, 8, 16, 8), 2**15),
        ((2, 3, 7, 2), (1, 3, 4, 2), (1, 3, 4, 1), 6 * 7 * 4 * 3),
    ],
)
def test_scaled_dot_product_attention(query, key, value, by_hand):
    assert counted(F.scaled_dot_product_attention, query, key, value) == dict(
        scaled_dot_product_attention=by_hand
    )


@pytest.mark.parametrize('need_weights', [False, True])
def test_attention_layers_of_torch(need_weights, registered_flop_handles):
    """Eval mode without gradients would run them as one operator: projections, logits, values,
    projection.
    """
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    inputs, mask = torch.zeros(2, 6, 16), torch.zeros(6, 6)
    by_hand = 2 * 6 * 16 * (3 * 16 + 2 * 6 + 16)
    for attn_mask in (None, mask):
        module = Call(
            lambda x, attn_mask=attn_mask: layer(
                x, x, x, attn_mask=attn_mask, need_weights=need_weights
            )[0]
        )
        module.layer = layer
        assert count_network(module, inputs).total(['op']) == by_hand
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    complexity = count_network(encoder, inputs)
    assert (complexity.total(['op']), complexity.uncounted) == (by_hand + 2 * 6 * 2 * 16 * 32, {})
    assert (
        complexity.total()
        == get_model_complexity_info(
            encoder.eval(), inputs=(inputs,), show_table=False, show_arch=False
        )['flops']
    )
    enabled = []
    count_network(
        Call(lambda x: enabled.append(torch.backends.mha.get_fastpath_enabled()) or x), inputs
    )
    assert (enabled, torch.backends.mha.get_fastpath_enabled()) == ([False], True)


@pytest.mark.parametrize(
    ('added', 'first', 'second', 'by_hand'),
    [
        ((2, 3, 5), (2, 3, 4), (2, 4, 5), 2 * 3 * 4 * 5),
        ((1, 1), (3, 2, 7), (3, 7, 6), 3 * 2 * 7 * 6),
        ((4,), (1, 5, 1), (1, 1, 4), 20),
    ],
)
def test_products_that_are_added(added, first, second, by_hand):
    assert counted(torch.baddbmm, added, first, second) == dict(baddbmm=by_hand)
    values = first[0] * first[1] * second[2]
    tensors = [torch.zeros(shape) for shape in (added, first, second)]
    assert count_network(Call(torch.baddbmm), *tensors).operators(['bias']) == dict(bias=values)


@pytest.mark.parametrize(
    ('equation', 'shapes', 'by_hand'),
    [
        ('bik,bjk->bij', [(2, 3, 5), (2, 4, 5)], 2 * 3 * 4 * 5),
        ('...ij,jk', [(7, 2, 3, 4), (4, 5)], 14 * 3 * 4 * 5),
        # the first two give (i, k), of which the third is the last factor
        ('ij,jk,kl->il', [(2, 3), (3, 4), (4, 5)], 2 * 3 * 4 + 2 * 4 * 5),
        # what the first operand alone has is summed before
        ('ijm,jk->ik', [(2, 3, 6), (3, 4)], 2 * 3 * 4),
        ('bndhw,ndu->bnuhw', [(1, 2, 3, 4, 5), (2, 3, 7)], 2 * 3 * 20 * 7),
    ],
)
def test_einsum(equation, shapes, by_hand):
    assert einsum_macs(equation, shapes) == by_hand
    assert counted(lambda *operands: torch.einsum(equation, *operands), *shapes) == dict(
        einsum=by_hand
    )


@pytest.mark.parametrize(
    ('channels', 'kernel', 'options', 'size', 'by_hand'),
    [
        ((4, 6), 3, dict(padding='same'), (5, 7), 4 * 6 * 9 * 35),
        ((8, 4), (1, 5), dict(padding='same', groups=4, dilation=2), (6, 4), 2 * 4 * 5 * 24),
        ((3, 2), 3, dict(padding='valid', stride=2), (7, 9), 3 * 2 * 9 * 3 * 4),
    ],
)
def test_convolutions_whose_padding_is_a_word(channels, kernel, options, size, by_hand):
    for bias in (False, True):
        layer, image = (
            nn.Conv2d(*channels, kernel, bias=bias, **options),
            torch.zeros(2, channels[0], *size),
        )
        counts = count_network(layer, image)
        assert counts.operators(['op', 'bias']) == dict(conv=2 * by_hand) | (
            dict(bias=layer(image).numel()) if bias else {}
        )
        assert counted(layer, image.shape) == dict(conv=2 * by_hand)


@pytest.mark.parametrize(('rows', 'inner', 'columns'), [(2, 3, 4), (1, 7, 5), (6, 1, 2)])
def test_the_bias_of_linear_layers(rows, inner, columns):
    """It is the first input of addmm and the third of linear, where it may be none."""
    added = count_network(
        Call(torch.addmm),
        torch.zeros(columns),
        torch.zeros(rows, inner),
        torch.zeros(inner, columns),
    )
    assert added.operators(['op', 'bias']) == dict(
        addmm=rows * inner * columns, bias=rows * columns
    )
    for bias in (False, True):
        layer = count_network(nn.Linear(inner, columns, bias=bias), torch.zeros(rows, inner))
        assert layer.operators(['op', 'bias']) == dict(linear=rows * inner * columns) | (
            dict(bias=rows * columns) if bias else {}
        )
    product = count_network(Call(torch.mm), torch.zeros(rows, inner), torch.zeros(inner, columns))
    assert product.operators(['op', 'bias']) == dict(mm=rows * inner * columns)


@pytest.mark.parametrize(
    ('shape', 'size'), [((1, 2, 3, 4), (6, 8)), ((2, 1, 5, 5), (3, 7)), ((1, 3, 8, 2), (8, 9))]
)
def test_bicubic_upsampling(shape, size):
    """Sixteen neighbours of each value, for mmengine's function as well as for the tool."""

    def resize(x):
        return F.interpolate(x, size=size, mode='bicubic', align_corners=False)

    by_hand = dict(upsample_bicubic2d=16 * shape[0] * shape[1] * size[0] * size[1])
    assert (
        counted(resize, shape)
        == by_hand
        == count_network(Call(resize), torch.zeros(shape)).operators(['resize'])
    )


@pytest.mark.parametrize(
    ('size', 'by_hand'),
    [((1, 3, 4, 5), 20 * 2 * 3), ((2, 1, 3, 3), 18 * 2 * 3), ((2, 1, 2, 3, 4), 48 * 3 * 4)],
)
def test_affine_grids(size, by_hand):
    axes = len(size) - 2
    matrix = size[0], axes, axes + 1
    assert counted(lambda matrix: F.affine_grid(matrix, size, align_corners=False), matrix) == dict(
        affine_grid_generator=by_hand
    )


@pytest.mark.parametrize(
    ('left', 'right', 'by_hand'),
    [
        ((3, 4), (4, 5), 60),
        ((2, 1, 3, 4), (5, 4, 6), 2 * 5 * 3 * 4 * 6),
        ((4,), (7, 4, 2), 7 * 4 * 2),
    ],
)
def test_products_that_broadcast(left, right, by_hand):
    assert counted(torch.matmul, left, right) == dict(matmul=by_hand)


@pytest.mark.parametrize(
    ('size', 'channels', 'groups', 'stride', 'products', 'samples'),
    [
        ((5, 6), 4, 1, 1, 4 * 4 * 9 * 30, 4 * 9 * 30),
        ((7, 9), 6, 2, 2, 6 * 3 * 9 * 20, 6 * 9 * 20),
        ((3, 3), 2, 1, 1, 2 * 2 * 9 * 9, 2 * 9 * 9),
    ],
)
def test_deformable_convolutions(size, channels, groups, stride, products, samples):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    outputs = [-(-length // stride) for length in size]
    x, weight, bias = (1, channels, *size), (channels, channels // groups, 3, 3), (channels,)
    offset, mask = (1, 18, *outputs), (1, 9, *outputs)
    assert counted(
        lambda x, offset, weight: deform_conv2d(x, offset, weight, stride, 1, 1, groups),
        x,
        offset,
        weight,
    ) == dict(deform_conv=products, sampling=4 * samples)
    for shapes in ([x, offset, mask, weight], [x, offset, mask, weight, bias]):

        def convolve(x, offset, mask, weight, bias=None):
            return modulated_deform_conv2d(x, offset, mask, weight, bias, stride, 1, 1, groups)

        assert counted(convolve, *shapes) == dict(deform_conv=products, sampling=5 * samples)
        biases = count_network(Call(convolve), *map(torch.randn, shapes)).operators(['bias'])
        assert biases == (dict(bias=channels * math.prod(outputs)) if len(shapes) == 5 else {})


@pytest.mark.parametrize(
    ('boxes', 'channels', 'size', 'ratio', 'by_hand'),
    [(3, 4, 7, 2, 3 * 4 * 49 * 4 * 4), (1, 2, (3, 5), 1, 2 * 15 * 4), (5, 1, 2, 0, 5 * 4 * 4 * 4)],
)
def test_roi_align(boxes, channels, size, ratio, by_hand):
    from mmcv.ops import roi_align

    size = size if isinstance(size, tuple) else (size, size)
    rois = torch.cat([torch.zeros(boxes, 1), 8 * torch.rand(boxes, 4).sort(1).values], 1)
    assert counted(lambda x: roi_align(x, rois, size, 1.0, ratio), (1, channels, 9, 9)) == dict(
        roi_align=by_hand
    )


BACKBONES = {
    'RedNet': lambda: RedNet(26),
    'SASA': lambda: SASAResNet(26),
    'SASA, attention stem': lambda: SASAResNet(26, stem='attention'),
    'LRNet': lambda: LRNet(26),
    'SAN pairwise': lambda: SAN(10),
    'SAN patchwise': lambda: SAN(10, 'patchwise'),
    'axial': lambda: AxialResNet('s', depth=26),
    'VAN': lambda: VAN('b0'),
    'MSCAN': lambda: MSCAN('tiny'),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_networks(name, request):
    """Products are those that torch's own counter finds, and mmengine's total is the tool's."""
    if name == 'SASA, attention stem':
        # mmengine's own handle rounds the product of its three tensors
        request.getfixturevalue('registered_flop_handles')
    network = BACKBONES[name]().eval()
    complexity = count_network(network, torch.zeros(1, 3, 32, 48))
    # on the CPU dilated convolutions take other shapes
    image = torch.zeros(1, 3, 32, 48, device='meta')
    products = counting.multiply_adds(
        copy.deepcopy(network).to('meta'), lambda network: network(image)
    )[0]
    assert complexity.total(['op']) == round(products * 1e9)
    assert not complexity.uncounted
    counts = get_model_complexity_info(network, (3, 32, 48), show_table=False, show_arch=False)
    assert counts['flops'] == complexity.total()
    assert counts['params'] == complexity.parameters().all
    assert set(complexity.counts['']) <= {name for names in CATEGORIES.values() for name in names}
