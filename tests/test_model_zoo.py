"""The page of published figures is complete, up to date, and explains where ours differ."""

import functools
import importlib.util
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_zoo.families import family_files, read_families
from model_zoo.page import page
from model_zoo.plots import draw, pictures
from model_zoo.rows import FIGURES, Convention, Difference, Row, check_options, read_rows
from model_zoo.times import measure

from mmrednet.analysis.counting import Complexity
from mmrednet.backbones import MSCAN, SAN, VAN, AxialResNet, LRNet, SASAResNet, SpatialResNet
from mmrednet.backbones.san import OPERATORS
from mmrednet.layers.axial import AxialAttention1d

ROOT = Path(__file__).parents[1]
ROWS = {row.key: row for row in read_rows(ROOT / 'docs/model_zoo.yml')}
KNOWN = json.loads((ROOT / 'docs/model_zoo.json').read_text())


def test_the_page_is_up_to_date():
    """If this fails: python tools/model_zoo/generate.py --only '^$', or without --only if
    networks changed.
    """
    expected = page(list(ROWS.values()), KNOWN['counts'], pictures(KNOWN['times']))
    assert (ROOT / 'docs/model_zoo.md').read_text() == expected
    for picture in re.findall(r'\]\((images/.*)\)', expected):
        assert (ROOT / 'docs' / picture).read_bytes().startswith(b'\x89PNG')


def test_files_of_the_families_are_up_to_date():
    families = read_families(ROOT / 'docs/families.yml')
    files = family_files(families, list(ROWS.values()), KNOWN['counts'])
    assert len(files) == 2 * len(families) + 1
    for name, content in files.items():
        assert (ROOT / name).read_text() == content, name


def test_the_index_names_configs_and_published_figures():
    import yaml

    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert 'configs/rednet/metafile.yml' in index['Import']
    metafile = yaml.safe_load((ROOT / 'configs/rednet/metafile.yml').read_text())
    by_name = {model['Name']: model for model in metafile['Models']}
    model = by_name['mask-rcnn_rednet50_fpn_1x_coco']
    assert [result['Metrics'] for result in model['Results']] == [
        {'box AP': 39.9},
        {'mask AP': 35.7},
    ]
    assert round(model['Metadata']['Parameters'] / 1e6, 1) == 34.2


@pytest.mark.parametrize(
    'key',
    [
        'VAN-B0',
        'RedNet-26',
        'SAN10 pairwise',
        'SASA-26',
        'CBAM-ResNet-50',
        'shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes',
        'camvid/segnext_mscan-narrow_camvid-180x240',
    ],
)
def test_a_sample_is_counted_again(key):
    assert ROWS[key].count(ROOT) == KNOWN['counts'][key]


def test_every_config_has_a_row():
    shipped = {
        str(path.relative_to(ROOT / 'configs').with_suffix(''))
        for path in (ROOT / 'configs').rglob('*.py')
        if '_base_' not in path.parts
    }
    assert {row.config for row in ROWS.values()} - {''} == shipped


def parts(model):
    """Return the types of the operators and plugins in a backbone's config."""
    operators = [cfg['type'] for cfg in model.get('spatial_cfg', []) if cfg]
    return frozenset(
        [
            *operators,
            *(
                plugin['cfg']['type'].removeprefix('mmrednet.')
                for plugin in model.get('plugins', [])
            ),
        ]
    )


def test_every_variant_has_a_row():
    rows = {
        (
            row.model['type'].removeprefix('mmrednet.'),
            *(row.model.get(name) for name in ('arch', 'depth', 'stem', 'relation')),
            parts(row.model),
        )
        for row in ROWS.values()
        if row.model
    }

    def variant(type_name, arch=None, depth=None, stem=None, relation=None, *operators):
        return type_name, arch, depth, stem, relation, frozenset(operators)

    assert {variant('VAN', arch) for arch in VAN.archs} <= rows
    assert {variant('MSCAN', arch) for arch in MSCAN.archs} <= rows
    assert {variant('RedNet', None, depth) for depth in SpatialResNet.block_counts} <= rows
    assert {
        variant('SASAResNet', None, depth, stem)
        for depth in (26, 38, 50)
        for stem in (None, 'attention')
    } <= rows
    assert {variant('LRNet', None, depth) for depth in LRNet.block_counts} <= rows
    # the first of the relations is the one that a config need not name
    assert list(OPERATORS) == ['pairwise', 'patchwise']
    assert {
        variant('SAN', None, depth, None, relation)
        for depth in SAN.block_counts
        for relation in (None, 'patchwise')
    } <= rows
    assert {
        variant('AxialResNet', arch, depth if depth != 50 else None, stem)
        for arch in ('s', 'm', 'l', 'xl')
        for depth in AxialResNet.block_counts
        for stem in (None, 'axial')
    } <= rows
    assert {
        variant('SpatialResNet', None, depth, None, None, name)
        for name, depth in (('SE', 50), ('SE', 101), ('CBAM', 50), ('DCN', 50), ('DCNv2', 50))
    } <= rows


def test_differences_are_explained_or_called_open():
    """Each figure that differs has a note of its own, and no other has one."""
    differing = {
        (row.key, figure)
        for row in ROWS.values()
        for figure, difference in row.differences(KNOWN['counts'][row.key]).items()
        if difference.exists
    }
    notes = {
        (row.key, figure): text
        for row in ROWS.values()
        for figure, text in (*row.why.items(), *row.unexplained.items())
    }
    assert set(notes) == differing
    assert min(map(len, notes.values())) > 15
    for row in ROWS.values():
        both = [notes[row.key, figure] for figure in FIGURES if (row.key, figure) in notes]
        assert len(set(both)) == len(both)
        assert not any(text.startswith(('not explained', 'supposed')) for text in row.why.values())


@pytest.mark.parametrize(
    'text', ["why: {macs: ' '}", 'why: {speed: slow}', 'why: {macs: a}, unexplained: {macs: b}']
)
def test_bad_notes(tmp_path, text):
    path = tmp_path / 'rows.yml'
    path.write_text(
        'sources: {}\nconventions: {c: {text: x, count: [op]}}\n'
        f'groups: [{{title: t, convention: c, rows: [{{name: a, {text}}}]}}]\n'
    )
    with pytest.raises(ValueError, match='a: why and unexplained must have texts for some of'):
        read_rows(path)


def pairs_of_a_span(length, span):
    """Return how many pairs of positions on a line are at most half a span apart."""
    return sum(abs(i - j) <= span // 2 for i in range(length) for j in range(length))


@pytest.mark.parametrize('arch', ['s', 'm', 'l'])
def test_what_axial_stem_networks_would_be_otherwise(arch):
    """The notes have: products of all pairs of whole axes, everywhere and outside of the stem, and
    longer tables.
    """
    counts = KNOWN['counts'][f'Axial-ResNet-50-{arch.upper()}, axial stem']
    added = dict.fromkeys(['everywhere', 'outside of the stem'], 0)

    def look(layer, inputs, _, stem):
        _, _, *size = inputs[0].shape
        length = size[layer.axis == 'width']
        products = (
            size[0]
            * size[1]
            // length
            * layer.num_heads
            * layer.depth
            * (len(layer.terms) / 2 + 1 + 1)
        )
        beyond = products * (length**2 - pairs_of_a_span(length, layer.span))
        added['everywhere'] += beyond
        added['outside of the stem'] += (not stem) * beyond

    with torch.device('meta'):
        network = AxialResNet(arch, stem='axial', span=15)
        layers = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, AxialAttention1d)
        }
        for name, layer in layers.items():
            layer.register_forward_hook(functools.partial(look, stem='stem' in name))
        network.eval()(torch.zeros(1, 3, 224, 224))
    products = Convention('', ['op']).giga(counts['operators'])
    row = ROWS[f'Axial-ResNet-50-{arch.upper()}, axial stem']
    for name in added:
        assert f' {products + added[name] / 1e9:.2f}' in row.unexplained['macs'], name
    longer = sum(2 * layer.depth * (509 - layer.relative.shape[1]) for layer in layers.values())
    assert f' would have {(counts["all"] + longer) / 1e6:.2f}' in row.why['parameters']


@pytest.mark.parametrize('arch', ['s', 'm', 'l'])
def test_what_axial_networks_would_be_otherwise(arch):
    """The notes have: a stem of 64 channels and longer tables."""
    with torch.device('meta'):
        network = AxialResNet(arch)
    narrow = network.conv1.out_channels
    readers = [
        module
        for module in network.layer1[0].modules()
        if getattr(module, 'in_channels', None) == narrow
    ]
    assert len(readers) >= 2
    wider = (64 - narrow) * (3 * 49 + 2 + sum(module.weight[:, 0].numel() for module in readers))
    longer = sum(
        2 * layer.depth * (509 - layer.relative.shape[1])
        for layer in network.modules()
        if isinstance(layer, AxialAttention1d)
    )
    row = ROWS[f'Axial-ResNet-50-{arch.upper()}']
    would = KNOWN['counts'][row.key]['all'] + wider + longer
    assert f' would have {would / 1e6:.2f}' in row.unexplained['parameters']


@pytest.mark.parametrize(('arch', 'without'), [('m', '5.53'), ('l', '9.47')])
def test_what_strides_by_slicing_would_save(arch, without):
    """The width axis of a block with a stride would see half of the rows."""
    saved = []

    def look(layer, inputs, _):
        _, channels, height, width = inputs[0].shape
        outputs = layer.num_heads * layer.depth
        attention = width * (len(layer.terms) / 2 + 1 + 1)
        saved.append(height * width * outputs * (2 * channels + attention) / 2)

    with torch.device('meta'):
        network = AxialResNet(arch)
        for layer in (network.layer2, network.layer3, network.layer4):
            layer[0].width_block.register_forward_hook(look)
        network.eval()(torch.zeros(1, 3, 224, 224))
    row = ROWS[f'Axial-ResNet-50-{arch.upper()}']
    products = row.convention.giga(KNOWN['counts'][row.key]['operators'])
    assert len(saved) == 3
    assert products - sum(saved) / 1e9 == pytest.approx(float(without), abs=0.006)
    assert f'would make {without}' in row.unexplained['macs']


def without_norms(network):
    """Return how many of the parameters of a backbone and ImageNet's classifier are no norm's."""
    norms = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    parameters = [p for p in network.parameters() if id(p) not in norms]
    return (sum(parameter.numel() for parameter in parameters) + 1000 * 2049) / 1e6


@pytest.mark.parametrize('stem', ['conv', 'attention'])
def test_sasa_without_the_parameters_of_norms(stem):
    with torch.device('meta'):
        millions = {d: without_norms(SASAResNet(d, stem=stem)) for d in (26, 38, 50)}
    assert {depth: f'{value:.1f}' for depth, value in millions.items()} == {
        26: '10.3',
        38: '14.1',
        50: '18.0',
    }
    row = ROWS['SASA-38' if stem == 'conv' else 'SASA-38, attention stem']
    assert f'it is {millions[38]:.3f}' in row.unexplained['parameters']


@pytest.mark.parametrize(
    ('depth', 'channels', 'millions', 'published'),
    [(26, 101, '14.69', '14.7'), (50, 100, '23.30', '23.3'), (101, 103, '41.95', '42.0')],
)
def test_lrnet_without_the_parameters_of_norms(depth, channels, millions, published):
    with torch.device('meta'):
        network = LRNet(depth, operator_channels=channels)
    number = without_norms(network)
    assert (f'{number:.2f}', f'{number:.1f}') == (millions, published)
    row = ROWS[f'LR-Net-{depth}']
    assert row.params == published
    assert f'with {channels} channels in the op' in row.unexplained['parameters']
    assert f'it is {millions}' in row.unexplained['parameters']


@pytest.mark.parametrize(
    ('depth', 'channels', 'total'), [(26, 101, '2.62'), (50, 100, '4.25'), (101, 103, '7.97')]
)
def test_lrnet_with_three_relation_layers_in_the_stem(depth, channels, total):
    row = ROWS[f'LR-Net-{depth}']
    counted = row
    if channels != 100:
        counted = replace(row, model=dict(row.model, operator_channels=channels))
    counts = KNOWN['counts'][row.key] if counted is row else counted.count(ROOT)
    # projection, queries and keys, logits and sums, of 8 groups of 8 channels at half the size
    relation = 112**2 * (64**2 + 2 * 64 * 8 + 49 * 8 + 49 * 64)
    products = row.convention.giga(counts['operators']) + 2 * relation / 1e9
    assert products == pytest.approx(float(total), abs=0.006)
    assert f'{products:.1f}' == row.macs
    assert f'here to {total}' in row.unexplained['macs']


# multiply-adds in 10^9 as the sources count, with more digits than they print
EXACT = {
    'RedNet-26': 1.7334,
    'RedNet-38': 2.2233,
    'RedNet-50': 2.7132,
    'RedNet-101': 4.7423,
    'RedNet-152': 6.7856,
    'rednet/faster-rcnn_rednet50_inv-fpn_1x_coco': 135.0071,
    'rednet/faster-rcnn_rednet50_inv-fpn-rpn_1x_coco': 91.5245,
    'rednet/fpn_rednet50_4xb2-80k_cityscapes-512x1024': 293.9277,
    'rednet/fpn_rednet50_inv-fpn_4xb2-80k_cityscapes-512x1024': 205.1469,
    'segnext/segnext_mscan-t_1xb16-160k_ade20k-512x512': 6.593,
    'segnext/segnext_mscan-s_1xb16-160k_ade20k-512x512': 15.85,
    'segnext/segnext_mscan-b_1xb16-160k_ade20k-512x512': 34.90,
    'segnext/segnext_mscan-l_1xb16-160k_ade20k-512x512': 69.96,
    'segnext/segnext_mscan-t_4xb2-160k_cityscapes-1024x1024': 50.538,
    'segnext/segnext_mscan-s_4xb2-160k_cityscapes-1024x1024': 124.62,
    'segnext/segnext_mscan-b_4xb2-160k_cityscapes-1024x1024': 275.647,
    'segnext/segnext_mscan-l_4xb2-160k_cityscapes-1024x1024': 553.70,
    'sasa/retinanet_r50_fpn_150e_coco-640': 182.33,
    'sasa/retinanet_sasa50-conv-stem_fpn_150e_coco-640': 172.43,
    'sasa/retinanet_sasa50_fpn_150e_coco-640': 173.65,
    'van/upernet_van-b5_in22k_8xb2-160k_ade20k-512x512': 1205.3,
    'van/upernet_van-b6_in22k_8xb2-160k_ade20k-512x512': 1656.7,
}


def test_cascades_of_nat_with_a_hundred_proposals():
    """The note has what three mask heads take for the other 900 proposals."""
    convolutions, upsampling = 4 * 256 * 256 * 9 * 14**2, 256 * 256 * 4 * 14**2
    logits = 256 * 80 * 28**2
    fewer = 3 * 900 * (convolutions + upsampling + logits) / 1e9
    rows = [row for row in ROWS.values() if row.key.startswith('nat/cascade')]
    assert len(rows) == 9
    for row in rows:
        assert f' {fewer:.2f} less' in row.why['macs']
        difference = row.differences(KNOWN['counts'][row.key])['macs']
        assert replace(difference, computed=difference.computed - fewer).text == '=', row.key


@pytest.mark.parametrize('key', EXACT)
def test_exact_figures(key):
    """The official code, or a count by hand, gives these; the rows have our networks' counts."""
    computed = ROWS[key].differences(KNOWN['counts'][key])['macs'].computed
    digits = len(str(EXACT[key]).partition('.')[2])
    assert round(computed, digits) == EXACT[key]


def test_what_a_tool_sees():
    convention = Convention(
        'by hand',
        ['op', 'relu', 'norm'],
        modules=dict(all='^(?!classifier)', relu='^(?!head$)', norm=r'\.stem\.'),
    )
    counts = {
        '': Counter(conv=9, relu=9, linear=2),
        'head': Counter(conv=4, relu=6),
        'head.conv': Counter(conv=3),
        'head.stem': Counter(),
        'head.stem.0': Counter(batch_norm=5),
        'classifier': Counter(linear=2),
    }
    counts['head.stem'] = counts['head.stem.0']
    counts['head'] += counts['head.stem']
    counts[''] += counts['head.stem']
    counts['head'] += Counter(batch_norm=8)
    counts[''] += Counter(batch_norm=8)
    complexity = Complexity(torch.nn.Identity(), counts, Counter())
    # of relu 3 are outside of the head; of the norms 5 are in its stem
    assert convention.visible(complexity) == Counter(conv=9, relu=3, batch_norm=5)


def test_logits_in_the_size_of_the_image():
    key = 'camvid/segnext_mscan-narrow_camvid-180x240'
    row = ROWS[key]
    convention = replace(row.convention, resize=True)
    before, after = (r.count(ROOT)['operators'] for r in (row, replace(row, convention=convention)))
    added = after['upsample_bilinear2d'] - before['upsample_bilinear2d']
    assert added == 4 * 11 * 180 * 240


def test_a_network_that_the_source_changed():
    row = replace(
        ROWS['shapes/rednet26-narrow_single-shapes'],
        params='1.80',
        options={'model.backbone.stem_kernel_size': 3},
        options_why='by hand',
    )
    counts = row.count(ROOT)
    assert counts['published']['all'] < counts['all']
    assert {**counts, 'published': None} == {**KNOWN['counts'][row.key], 'published': None}
    difference = row.differences(counts)['parameters']
    assert difference.computed == counts['published']['all'] / 1e6
    text = page([row], {row.key: counts}, [])
    settings = f'`model.backbone.stem_kernel_size=3` | {counts["all"] / 1e6:.2f} |'
    assert f'| {row.key} | {settings}' in text
    assert f'| {row.key} ([other settings](#counted-with-other-settings)) |' in text
    with pytest.raises(ValueError, match='options and options_why must be given together'):
        check_options(replace(row, options_why=''))


@pytest.mark.parametrize(
    ('computed', 'published', 'result'),
    [
        (9.2346, '9.23', '='),
        (9.2349, '9.2', '='),
        (9.25, '9.2', '='),
        (9.26, '9.2', '+0.7 %'),
        (6.45, '7', '-7.9 %'),
        (6.51, '7', '='),
        (199.83, '200', '='),
        (1.0, '', ''),
    ],
)
def test_a_difference(computed, published, result):
    assert Difference('MACs', computed, published).text == result


@pytest.mark.parametrize(
    ('computed', 'published', 'result'),
    [(205.1469, '205.2', '='), (205.1449, '205.2', '-0.0 %'), (1.7349, '1.73', '=')],
)
def test_a_difference_of_rounded_figures(computed, published, result):
    assert Difference('MACs', computed, published, decimals=2).text == result


def test_a_row_by_hand():
    convention = Convention(
        'by hand', ['op', 'norm'], flops=True, weights=dict(einsum=7, group_norm=0.5)
    )
    row = Row(
        'title',
        convention,
        'name',
        parameters='trainable',
        params='1.5',
        macs='5.0',
        score='70.0',
        why=dict(macs='because'),
    )
    counts = dict(
        shape=[2, 3],
        all=9_000_000,
        trainable=1_540_000,
        operators=dict(conv=10**9, einsum=2 * 10**8, group_norm=2 * 10**8, relu=10**12),
    )
    differences = row.differences(counts)
    assert differences == {
        'parameters': Difference('parameters', 1.54, '1.5'),
        'macs': Difference('FLOPs', 4.9, '5.0'),
    }
    assert [difference.text for difference in differences.values()] == ['=', '-2.0 %']
    text = page([row], dict(name=counts), [])
    assert '| name | FLOPs | 4.90 | 5.0 | -2.0 % | because |' in text
    link = '[-2.0 %](#where-ours-differ-beyond-the-printed-digit)'
    assert text.index('| name | FLOPs |') < text.index('## Open differences')
    assert f'| name | 2 x 3 | 1.54 | 1.5 | = | 4.90 | 5.0 | {link} | 70.0 | no |' in text
    assert 'None of the accuracies on this page was reproduced' in text


def test_names_are_unique(tmp_path):
    path = tmp_path / 'rows.yml'
    path.write_text(
        'sources: {}\nconventions: {c: {text: x, count: [op]}}\n'
        'groups: [{title: t, convention: c, rows: [{name: a}, {name: a}]}]\n'
    )
    with pytest.raises(ValueError, match=r"rows must have names of their own, got \['a'\]"):
        read_rows(path)
    path.write_text(
        'sources: {}\nconventions: {c: {text: x, count: [ops]}}\n'
        'groups: [{title: t, convention: c, rows: [{name: a}]}]\n'
    )
    with pytest.raises(ValueError, match='count must be categories'):
        read_rows(path)


def test_times_and_plots(tmp_path):
    times = measure([ROWS['VAN-B0'], ROWS['MSCAN-T']], ROOT, 'cpu')
    assert list(times['milliseconds']) == ['VAN-B0']
    assert times['milliseconds']['VAN-B0'] > 0
    merged = measure([], ROOT, 'cpu', dict(times, load=1000.0))
    assert merged == dict(times, load=1000.0)
    # nothing is left of the busy machine
    repeated = measure([ROWS['VAN-B0']], ROOT, 'cpu', merged)
    assert repeated['load'] < 1000
    assert 'must not be compared' in '\n'.join(pictures(dict(cpu=merged)))
    assert 'must not be compared' not in '\n'.join(pictures(dict(cpu=dict(times, load=0.1))))
    elsewhere = dict(times, machine=dict(times['machine'], chip='another'))
    assert measure([], ROOT, 'cpu', elsewhere)['milliseconds'] == {}
    draw(
        [ROWS['VAN-B0'], ROWS['VAN-B1'], ROWS['MSCAN-T']],
        dict(KNOWN, times=dict(cpu=times)),
        tmp_path,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'accuracy_cpu.png',
        'accuracy_macs.png',
    ]


def test_the_command_finds_what_is_stale(monkeypatch, capsys, tmp_path):
    spec = importlib.util.spec_from_file_location('model_zoo', ROOT / 'tools/model_zoo/generate.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr('sys.argv', ['model_zoo.py', '--check', '--only', '^VAN-B0$'])
    assert tool.main() == 0
    for name in ('yml', 'md', 'json'):
        text = (ROOT / f'docs/model_zoo.{name}').read_text().replace('4105800', '4105801', 1)
        (tmp_path / f'model_zoo.{name}').write_text(text.replace('| 0.88 |', '| 0.89 |'))
    (tmp_path / 'families.yml').write_text((ROOT / 'docs/families.yml').read_text())
    monkeypatch.setattr(tool, 'DOCS', tmp_path)
    assert tool.main() == 1
    assert 'Stale: VAN-B0, docs/model_zoo.md' in capsys.readouterr().out
    # and cures it
    monkeypatch.setattr('sys.argv', ['model_zoo.py', '--only', '^VAN-B0$'])
    assert tool.main() == 0
    assert (tmp_path / 'model_zoo.md').read_text() == (ROOT / 'docs/model_zoo.md').read_text()
    assert json.loads((tmp_path / 'model_zoo.json').read_text()) == KNOWN
