"""The tables of docs/counting.md hold what is counted."""

import json
import re
from pathlib import Path

import pytest
import torch
from model_zoo.rows import Convention, read_rows

from mmrednet.analysis.categories import DEFAULT_COUNT
from mmrednet.analysis.counting import count_network
from mmrednet.flop_handles import MMENGINE_HANDLES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/counting.md').read_text()
ROWS = {row.key: row for row in read_rows(ROOT / 'docs/model_zoo.yml')}
KNOWN = json.loads((ROOT / 'docs/model_zoo.json').read_text())['counts']
MISSED = re.findall(r'^\| (.+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$', PAGE, re.MULTILINE)


def test_networks_of_every_family_are_in_the_table():
    assert [name for name, *_ in MISSED] == [
        'RedNet-50',
        'SASA-50',
        'LR-Net-50',
        'SAN10 pairwise',
        'SAN10 patchwise',
        'Axial-ResNet-50-S',
        'DCNv2-ResNet-50',
    ]


@pytest.mark.parametrize(('name', 'products', 'missed', 'percent'), MISSED)
def test_what_mmengine_misses(name, products, missed, percent):
    """Against mmengine's own table of handles, without ours."""
    network, shape = ROWS[name].build(ROOT)
    alone = (
        count_network(network, torch.zeros(1, 3, *shape), handles=MMENGINE_HANDLES).total(['op'])
        / 1e9
    )
    total = Convention('', ['op']).giga(KNOWN[name]['operators'])
    assert (products, missed, percent) == (
        f'{total:.3f}',
        f'{total - alone:.3f}',
        f'{100 * (1 - alone / total):.1f}',
    )
    if name == 'RedNet-50':
        assert f'as `mmengine.analysis` without our operators | {alone:.3f} |' in PAGE


@pytest.mark.parametrize(
    ('key', 'text', 'convention'),
    [
        ('RedNet-50', 'all products: MACs', Convention('', ['op'])),
        ('RedNet-50', 'with norms: what `mmengine.analysis` says', Convention('', DEFAULT_COUNT)),
        (
            'RedNet-50',
            'with biases, ReLUs and pools: mmcv',
            ROWS['RedNet-50'].convention,
        ),
        (
            'RedNet-50, stem of 3',
            'the same with a stem of 3, as in the released classification code',
            ROWS['RedNet-50'].convention,
        ),
        ('RedNet-50', 'all products, 2 FLOPs each', Convention('', ['op'], flops=True)),
    ],
)
def test_one_network_in_five_ways(key, text, convention):
    assert f'| {text} | {convention.giga(KNOWN[key]["operators"]):.3f} |' in PAGE


def test_the_published_way():
    counts, convention = KNOWN['RedNet-50'], ROWS['RedNet-50'].convention
    text = "with the stem of 7 and without the classifier: mmcls's tool, the published 2.71"
    assert f'| {text} | {convention.giga(counts["visible"]):.3f} |' in PAGE
