"""The page of published figures is complete, up to date, and explains where ours differ."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from mmrednet.analysis.model_zoo import Convention, Row, difference, page, read_rows
from mmrednet.analysis.zoo_plots import draw, pictures
from mmrednet.analysis.zoo_times import measure
from mmrednet.backbones import MSCAN, SAN, VAN, AxialResNet, LRNet, SpatialResNet

ROOT = Path(__file__).parents[1]
ROWS = {row.key: row for row in read_rows(ROOT / 'docs/model_zoo.yml')}
KNOWN = json.loads((ROOT / 'docs/model_zoo.json').read_text())


def test_the_page_is_up_to_date():
    """If this fails: python tools/analysis_tools/model_zoo.py --only '^$', or without --only if networks changed."""
    expected = page(ROWS.values(), KNOWN['counts'], pictures(KNOWN['times']))
    assert (ROOT / 'docs/model_zoo.md').read_text() == expected
    for picture in re.findall(r'\]\((images/.*)\)', expected):
        assert (ROOT / 'docs' / picture).read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('key', [
    'VAN-B0', 'RedNet-26', 'SAN10 pairwise', 'SASA-26', 'CBAM-ResNet-50',
    'shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes', 'camvid/segnext_mscan-narrow_camvid-180x240'])
def test_a_sample_is_counted_again(key):
    assert ROWS[key].count(ROOT) == KNOWN['counts'][key]


def test_every_config_has_a_row():
    shipped = {str(path.relative_to(ROOT / 'configs').with_suffix('')) for path in (ROOT / 'configs').rglob('*.py')
               if '_base_' not in path.parts}
    assert {row.config for row in ROWS.values()} - {''} == shipped


def test_every_variant_has_a_row():
    rows = {(row.model['type'].removeprefix('mmrednet.'), row.model.get('arch'), row.model.get('depth'),
             row.model.get('stem')) for row in ROWS.values() if row.model}
    assert {('VAN', arch, None, None) for arch in VAN.archs} <= rows
    assert {('MSCAN', arch, None, None) for arch in MSCAN.archs} <= rows
    assert {('RedNet', None, depth, None) for depth in SpatialResNet.block_counts} <= rows
    assert {('SASAResNet', None, depth, stem) for depth in (26, 38, 50) for stem in (None, 'attention')} <= rows
    assert {('LRNet', None, depth, None) for depth in LRNet.block_counts} <= rows
    assert {('SAN', None, depth, None) for depth in SAN.block_counts} <= rows
    assert {('AxialResNet', arch, depth if depth != 50 else None, stem) for arch in ('s', 'm', 'l', 'xl')
            for depth in AxialResNet.block_counts for stem in (None, 'axial')} <= rows


def test_differences_are_explained():
    unexplained = [
        row.key for row in ROWS.values() for _, _, apart in row.differences(KNOWN['counts'][row.key]).values()
        if apart not in ('', '=') and not row.note]
    assert not unexplained


@pytest.mark.parametrize(('ours', 'published', 'result'), [
    (9.2346, '9.23', '='), (9.2349, '9.2', '='), (9.25, '9.2', '='), (9.26, '9.2', '+0.7 %'), (6.45, '7', '-7.9 %'),
    (6.51, '7', '='), (199.83, '200', '='), (1.0, '', '')])
def test_a_difference(ours, published, result):
    assert difference(ours, published) == result


def test_a_row_by_hand():
    convention = Convention('by hand', ['op', 'norm'], flops=True, weights=dict(einsum=7, group_norm=0.5))
    row = Row('title', convention, 'name', parameters='trainable', params='1.5', macs='5.0', score='70.0',
              note='because')
    counts = dict(shape=[2, 3], all=9_000_000, trainable=1_540_000, operators=dict(
        conv=10**9, einsum=2 * 10**8, group_norm=2 * 10**8, relu=10**12))
    assert row.differences(counts) == {'parameters': (1.54, '1.5', '='), 'FLOPs': (4.9, '5.0', '-2.0 %')}
    text = page([row], dict(name=counts), [])
    assert '| name | FLOPs | 4.90 | 5.0 | -2.0 % | because |' in text
    link = '[-2.0 %](#where-ours-differ-beyond-the-printed-digit)'
    assert f'| name | 2 x 3 | 1.54 | 1.5 | = | 4.90 | 5.0 | {link} | 70.0 | no |' in text
    assert 'None of the accuracies on this page was reproduced' in text


def test_names_are_unique(tmp_path):
    path = tmp_path / 'rows.yml'
    path.write_text('sources: {}\nconventions: {c: {text: x, count: [op]}}\n'
                    'groups: [{title: t, convention: c, rows: [{name: a}, {name: a}]}]\n')
    with pytest.raises(ValueError, match=r"rows must have names of their own, got \['a'\]"):
        read_rows(path)
    path.write_text('sources: {}\nconventions: {c: {text: x, count: [ops]}}\n'
                    'groups: [{title: t, convention: c, rows: [{name: a}]}]\n')
    with pytest.raises(ValueError, match='count must be categories'):
        read_rows(path)


def test_times_and_plots(tmp_path):
    times = measure([ROWS['VAN-B0'], ROWS['MSCAN-T']], ROOT, 'cpu')
    assert list(times['milliseconds']) == ['VAN-B0']
    assert times['milliseconds']['VAN-B0'] > 0
    kept = measure([], ROOT, 'cpu', dict(times, load=1000.0))
    assert kept == dict(times, load=1000.0)
    # nothing is left of the busy machine
    again = measure([ROWS['VAN-B0']], ROOT, 'cpu', kept)
    assert again['load'] < 1000
    assert 'must not be compared' in '\n'.join(pictures(dict(cpu=kept)))
    assert 'must not be compared' not in '\n'.join(pictures(dict(cpu=dict(times, load=0.1))))
    elsewhere = dict(times, machine=dict(times['machine'], chip='another'))
    assert measure([], ROOT, 'cpu', elsewhere)['milliseconds'] == {}
    draw([ROWS['VAN-B0'], ROWS['VAN-B1'], ROWS['MSCAN-T']], dict(KNOWN, times=dict(cpu=times)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['accuracy_cpu.png', 'accuracy_macs.png']


def test_the_command_finds_what_is_stale(monkeypatch, capsys, tmp_path):
    spec = importlib.util.spec_from_file_location('model_zoo', ROOT / 'tools/analysis_tools/model_zoo.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr('sys.argv', ['model_zoo.py', '--check', '--only', '^VAN-B0$'])
    assert tool.main() == 0
    for name in ('yml', 'md', 'json'):
        text = (ROOT / f'docs/model_zoo.{name}').read_text().replace('4105800', '4105801', 1)
        (tmp_path / f'model_zoo.{name}').write_text(text.replace('| 0.88 |', '| 0.89 |'))
    monkeypatch.setattr(tool, 'DOCS', tmp_path)
    assert tool.main() == 1
    assert 'Stale: VAN-B0, docs/model_zoo.md.' in capsys.readouterr().out
    # and cures it
    monkeypatch.setattr('sys.argv', ['model_zoo.py', '--only', '^VAN-B0$'])
    assert tool.main() == 0
    assert (tmp_path / 'model_zoo.md').read_text() == (ROOT / 'docs/model_zoo.md').read_text()
    assert json.loads((tmp_path / 'model_zoo.json').read_text()) == KNOWN
