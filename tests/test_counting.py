"""What ``mmrednet flops`` says of networks: totals that add up, in both conventions."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn

from mmrednet.analysis import build_network, count_network
from mmrednet.analysis.categories import CATEGORIES, PRODUCTS, check_count
from mmrednet.analysis.networks import stage_of
from mmrednet.commands import flops
from mmrednet.registry import MODELS

ROOT = Path(__file__).parents[1]
DETECTOR = 'configs/shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
SEGMENTER = 'configs/camvid/segnext_mscan-narrow_camvid-180x240.py'


@pytest.fixture(scope='module')
def tool():
    return flops


@pytest.fixture
def report(tool, monkeypatch, tmp_path):
    """Return a function of command-line arguments that gives the JSON of a call that went well."""

    def call(config, *arguments):
        config = str(ROOT / config) if config.endswith('.py') else config
        path = tmp_path / 'new' / 'report.json'
        monkeypatch.setattr(
            'sys.argv', ['get_flops.py', config, *map(str, arguments), '--json', str(path)]
        )
        assert tool.main() == 0
        return json.loads(path.read_text())

    return call


def test_parts_add_up(report):
    result = report(DETECTOR, '--shape', 64, 96, '--count', ','.join(CATEGORIES), '--proposals', 10)
    assert (result['shape'], result['proposals'], result['uncounted']) == ([64, 96], 10, {})
    for unit in ('macs', 'flops'):
        for view in ('operator', 'stage'):
            assert sum(row[unit] for row in result[f'by_{view}'].values()) == result[unit] > 0
        # the detector's own are those of its children, and of nothing else
        children = [row for name, row in result['by_module'].items() if '.' not in name]
        between = result['by_stage'].get('between parts', {unit: 0})
        assert sum(row[unit] for row in children) + between[unit] == result[unit]
    assert (
        sum(row['parameters'] for row in result['by_stage'].values()) == result['parameters']['all']
    )
    assert {
        'backbone.stem',
        *(f'backbone.stage{index}' for index in (1, 2, 3, 4)),
        'neck',
        'rpn_head',
        'roi_head.bbox_head',
    } <= set(result['by_stage'])


def test_conventions(report):
    """A multiply-add is two FLOPs; what is no product is what it is."""
    result = report(
        DETECTOR, '--shape', 64, 64, '--count', ','.join(CATEGORIES), '--convention', 'flops'
    )
    for name, row in result['by_operator'].items():
        assert row['flops'] == row['macs'] * (2 if name in PRODUCTS else 1)
    assert {'conv', 'aggregate', 'batch_norm', 'relu', 'bias', 'roi_align'} <= set(
        result['by_operator']
    )


def test_proposals(report):
    """The second stage takes as much as there are proposals: each samples 7 x 7 bins four times and
    has its layers.
    """
    few, many = (report(DETECTOR, '--shape', 64, 64, '--proposals', number) for number in (3, 13))
    network, _ = build_network(str(ROOT / DETECTOR))
    head = network.model.roi_head.bbox_head
    layers = sum(
        module.weight.numel() for module in head.modules() if isinstance(module, nn.Linear)
    )
    assert many['macs'] - few['macs'] == 10 * (layers + head.in_channels * 49 * 4 * 4)
    assert few['by_operator']['conv'] == many['by_operator']['conv']


def test_frozen_parameters(report):
    result = report(
        'configs/rednet/retinanet_rednet50_fpn_1x_coco.py', '--shape', 64, 64, '--count', 'op'
    )
    # the published detector has 27.8 M to train: stem and first stage are frozen
    assert result['parameters'] == dict(all=27953186, trainable=27814100, frozen=139086)
    assert result['proposals'] is None


@pytest.mark.parametrize(
    'config', [SEGMENTER, DETECTOR, 'configs/rednet/retinanet_rednet50_inv-fpn_1x_coco.py']
)
def test_mmengine_finds_the_same(config, report, registered_flop_handles):
    result = report(config, '--shape', 64, 96)
    network, _ = build_network(str(ROOT / config))
    # a second stage needs proposals, which the model alone would find by its weights
    model = network if network.two_stage else network.model
    counts = get_model_complexity_info(model, (3, 64, 96), show_table=False, show_arch=False)
    assert counts['flops'] == result['macs']
    assert counts['params'] == result['parameters']['all']


def test_backbone_by_name(report, capsys):
    result = report(
        'mmrednet.RedNet',
        '--cfg-options',
        'model.depth=26',
        'model.stem_kernel_size=3',
        '--classes',
        1000,
        '--count',
        'op,bias,norm,relu,pool',
    )
    # README of the involution repository: 9.23 M; its 1.73 G have a stem of kernel size 7 (1.735)
    assert (result['shape'], result['parameters']['all']) == ([224, 224], 9_233_166)
    assert round(result['macs'] / 1e9, 2) == 1.71
    text = capsys.readouterr().out
    assert f'{result["macs"]:,}' in text
    assert f'{result["flops"]:,}' in text
    assert '9.23 M' in text


def test_backbone_by_config(report, tmp_path):
    """A config of a backbone alone, and every backbone that mmdet knows."""
    path = tmp_path / 'backbone.py'
    path.write_text("model = dict(type='mmdet.ResNet', depth=50, init_cfg=None)\n")
    result = report(str(path), '--shape', 224, 224, '--classes', 1000, '--count', 'op')
    # the convolutions and the classifier of ResNet-50
    assert (result['macs'], result['parameters']['all']) == (4_089_184_256, 25_557_032)
    assert list(result['by_stage']) == [
        'stem',
        'layer1',
        'layer2',
        'layer3',
        'layer4',
        'classifier',
    ]


def test_a_table_by_module(tool, monkeypatch, capsys):
    monkeypatch.setattr(
        'sys.argv',
        [
            'get_flops.py',
            'mmrednet.VAN',
            '--shape',
            '32',
            '32',
            '--by',
            'module',
            '--depth',
            '1',
            '--convention',
            'flops',
        ],
    )
    assert tool.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert rows[0] == '| module | parameters | FLOPs (a multiply-add is two) | 10^9 | % |'
    assert [row.split(' | ')[0] for row in rows[2:5]] == ['| patch_embed1', '| block1', '| norm1']


@MODELS.register_module()
class Spectral(nn.Module):
    """A backbone with an operator that nobody counts."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return torch.fft.rfft2(self.conv(x)).abs()


@MODELS.register_module()
class Needy(nn.Module):
    """A backbone that an image alone does not satisfy."""

    def forward(self, image, boxes):
        return image


def test_what_cannot_be_counted_is_named(tool, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['get_flops.py', 'mmrednet.Spectral', '--shape', '8', '8'])
    assert tool.main() == 1
    printed = capsys.readouterr()
    assert 'aten::fft_rfft2 (1 times)' in printed.err
    # the rest is counted
    assert ' 768 ' in printed.out


@MODELS.register_module()
class Idle(nn.Module):
    """A backbone with parts that do not run."""

    def __init__(self):
        super().__init__()
        self.conv, self.auxiliary_head, self.later = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, image):
        return self.conv(image)


def test_the_exit_status(tool, monkeypatch, capsys):
    """1 for parts that never ran, 3 for what cannot be run; one line names model and reason."""
    monkeypatch.setattr('sys.argv', ['get_flops.py', 'mmrednet.Idle', '--shape', '8', '8'])
    assert tool.main() == 1
    printed = capsys.readouterr()
    assert 'never ran for an image alone: later.\nThe totals lack them.' in printed.err
    assert 'auxiliary_head did not run: for training alone' in printed.out
    monkeypatch.setattr('sys.argv', ['get_flops.py', 'mmrednet.Needy', '--shape', '5', '6'])
    assert tool.main() == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert line == (
        'mmrednet flops: error: Needy cannot be run for an image of 5 x 6 alone: TypeError: '
        'Needy.forward() '
        "missing 1 required positional argument: 'boxes'"
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--count', 'op,flops'], "got ['op', 'flops']"),
        (['--shape', '0', '8'], 'must be positive'),
        (['--depth', '0'], '--depth must be at least 1, got 0'),
        (['--classes', '-3'], '--classes must be at least 1, got -3'),
        (['--proposals', '0'], '--proposals must be at least 1, got 0'),
        (['--json', str(ROOT)], f'--json must be a file to write, got the folder {ROOT}'),
        (['--json', str(ROOT / 'README.md' / 'report.json')], 'README.md'),
    ],
)
def test_bad_arguments(tool, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(tool, 'build_network', None)
    monkeypatch.setattr('sys.argv', ['get_flops.py', 'mmrednet.VAN', *arguments])
    with pytest.raises(SystemExit, match='2'):
        tool.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('none.py', "config must be an existing file, got 'none.py'"),
        ('configs', 'ends in .py, or the registered name'),
        ('model.yaml', "such as 'mmrednet.VAN', got 'model.yaml'"),
        ('mmrednet.Van', "mmrednet.VAN, .* are, got 'mmrednet.Van'"),
        ('mmdet.Van', "are, got 'mmdet.Van'"),
        (
            'file.py:from torch.nn import Identity\nmodel = dict(type=Identity)',
            'configs that import classes are not read',
        ),
        (
            'file.py:backbone = dict(type="VAN")',
            'a config must have model.type to be counted, got none in',
        ),
        (
            f'{SEGMENTER} --classes 5',
            'classes is for backbones alone, got classes=5 for EncoderDecoder',
        ),
        (
            'mmrednet.VAN --cfg-options arch=b0',
            "must be below 'model', as in model.depth=26, got arch",
        ),
        (
            'file.py:model = dict(type="VAN") --cfg-options arch=b0',
            "must be below 'model', .*, got arch",
        ),
    ],
)
def test_bad_networks(tool, monkeypatch, capsys, tmp_path, config, message):
    monkeypatch.chdir(ROOT)
    config, *options = config.split(' --')
    if ':' in config:
        name, text = config.split(':', 1)
        config = str(tmp_path / name)
        Path(config).write_text(text)
    monkeypatch.setattr(
        'sys.argv',
        ['get_flops.py', config, *(part for option in options for part in (f'--{option}').split())],
    )
    assert tool.main() == 2
    assert re.search(f'^mmrednet flops: error: .*{message}', capsys.readouterr().err, re.MULTILINE)


def test_bad_calls():
    with pytest.raises(ValueError, match='proposals must be at least 1, got 0'):
        build_network('mmrednet.VAN', proposals=0)
    with pytest.raises(ValueError, match='count must be categories'):
        check_count([])


def test_the_network_is_left_as_it_was():
    network, _ = build_network('mmrednet.VAN')
    network.train()
    network.model.norm1.eval()
    network.model.norm4.requires_grad_(False)
    before = {name: module.training for name, module in network.named_modules()}
    parameters = count_network(network, torch.zeros(1, 3, 32, 32)).parameters()
    assert {name: module.training for name, module in network.named_modules()} == before
    assert parameters.frozen == 2 * 256


def test_stages_of_stock_models():
    model = nn.Module()
    model.backbone = nn.Module()
    names = {
        'backbone.layer3.0.conv1': 'backbone.layer3',
        'backbone.stages.2.blocks.1': 'backbone.stages.2',
        'backbone.conv1': 'backbone.stem',
        'backbone.patch_embed2.proj': 'backbone.patch_embed2',
        'neck.fpn_convs.0': 'neck',
        'roi_head.mask_head.convs.0': 'roi_head.mask_head',
    }
    assert {name: stage_of(name, model) for name in names} == names


def test_what_a_model_does_between_its_parts(report):
    """A head's own operators are the head's; a stage of their own have those of the model
    itself."""
    stages = report(
        'configs/rednet/upernet_rednet50_4xb2-80k_cityscapes-512x1024.py', '--shape', 64, 64
    )['by_stage']
    assert 'between parts' not in stages
    assert stages['auxiliary_head']['macs'] == 0
    classifier = report('mmrednet.VAN', '--shape', 64, 64, '--classes', 5, '--count', 'mean')
    # the mean in front of the classifier, of 256 channels of 2 x 2
    assert classifier['by_stage']['between parts']['macs'] == 256 * 4
