"""``mmrednet tool``: scripts of the frameworks and ours, on our configs by name."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.analysis.print_helper import _format_size
from PIL import Image
from running import run_warm
from synthetic import CLASSES, make_scene, scene_generator, write_coco

from mmrednet import cli
from mmrednet.analysis import build_network
from mmrednet.commands import tool

ROOT = Path(__file__).parents[1]
DETECTOR = 'mmrednet::shapes/faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
SEGMENTER = 'mmrednet::streets/segnext_mscan-narrow_streets.py'


def run(folder, *words):
    """Run a tool in a folder, and return what it prints."""
    result = run_warm('mmrednet', 'tool', *words, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with a few shapes where the config has its data."""
    folder = tmp_path_factory.mktemp('tool')
    for split in ('train', 'val'):
        scenes = (make_scene(scene_generator(0, split, index), (128, 128)) for index in range(2))
        write_coco(folder / 'data/shapes', split, scenes, CLASSES)
    return folder


class TestNames:
    def test_all_are_listed(self, capsys):
        assert cli.main(['tool']) == 0
        names = capsys.readouterr().out.split()
        assert 'mmdet/analysis_tools/confusion_matrix' in names
        assert 'mmseg/analysis_tools/browse_dataset' in names
        assert 'mmrednet/synthetic/generate' in names
        # commands of their own, and modules of scripts
        assert not {'mmrednet/train', 'mmrednet/synthetic/shapes'} & set(names)

    @pytest.mark.parametrize(
        ('name', 'config', 'package', 'end'),
        [
            ('browse_dataset', DETECTOR, 'mmdet', 'analysis_tools/browse_dataset.py'),
            ('browse_dataset', SEGMENTER, 'mmseg', 'analysis_tools/browse_dataset.py'),
            ('browse_dataset', None, 'mmdet', 'analysis_tools/browse_dataset.py'),
            ('mmseg/browse_dataset', DETECTOR, 'mmseg', 'analysis_tools/browse_dataset.py'),
            ('mmseg/misc/browse_dataset', None, 'mmseg', 'misc/browse_dataset.py'),
            ('synthetic/generate', None, 'mmrednet', 'tools/synthetic/generate.py'),
            ('learning_rate', SEGMENTER, 'mmrednet', 'analysis_tools/learning_rate.py'),
        ],
    )
    def test_which_script_is_meant(self, name, config, package, end):
        arguments = tool.resolve_names([config] if config else [])
        owner, script = tool.find_script(name, arguments)
        assert owner == package
        assert str(script).endswith(end)

    @pytest.mark.parametrize(
        ('name', 'message'),
        [
            ('browse_datasets', "no tool 'browse_datasets'; did you mean 'browse_dataset'"),
            ('mmseg/eval_metric', "no tool 'mmseg/eval_metric'; did you mean 'eval_metric'"),
            ('xyzzy', 'no tool .*; `mmrednet tool` lists them'),
        ],
    )
    def test_misspelt(self, name, message):
        with pytest.raises(ValueError, match=message):
            tool.find_script(name, [])


def test_browsing_with_augmentations(folder):
    run(folder, 'browse_dataset', DETECTOR, '--output-dir', 'pictures', '--not-show')
    names = sorted(path.name for path in (folder / 'pictures').iterdir())
    assert names == ['000000.png', '000001.png']


def test_learning_rate(folder):
    """Warm-up over 50 iterations, then half a cosine."""
    printed = run(folder, 'learning_rate', DETECTOR, '--out', 'plots/rate.png')
    first, highest, last = (float(part.split()[1]) for part in printed.split(':')[0].split(', '))
    assert first == pytest.approx(0.01 * 0.002)
    assert 0.0019 < highest < 0.002
    assert 0 <= last < 1e-6
    assert Image.open(folder / 'plots/rate.png').width > 500


def test_learning_rate_of_epochs(folder):
    config = 'mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py'
    printed = run(folder, 'learning_rate', config, '--epoch-length', 100)
    # two steps by a tenth; the warm-up begins at a thousandth
    assert printed.startswith('first 2e-05, highest 0.02, last 0.0002: ')


def test_loss_curves(folder):
    entries = [dict(loss=2.0 / step, lr=0.1, time=0.1, step=step, epoch=1) for step in (1, 2, 3)]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))
    # the script's default style is of another package
    words = [
        'plot_curve',
        'scalars.json',
        '--keys',
        'loss',
        '--style',
        'ggplot',
        '--out',
        'curve.png',
    ]
    run(folder, 'analyze_logs', *words)
    assert Image.open(folder / 'curve.png').width > 100


def test_publishing(folder):
    content = dict(state_dict={'weight': torch.ones(2)}, meta=dict(epoch=1), optimizer={'x': 1})
    torch.save(content, folder / 'epoch_1.pth')
    run(folder, 'publish_model', 'epoch_1.pth', 'small.pth')
    (published,) = folder.glob('small-*.pth')
    assert len(published.stem) == len('small-') + 8
    state = torch.load(published)
    assert set(state) == {'state_dict', 'meta'}
    assert torch.equal(state['state_dict']['weight'], torch.ones(2))


@pytest.mark.parametrize(
    ('name', 'config', 'backbone'),
    [('mmdet/print_config', DETECTOR, 'RedNet'), ('mmseg/print_config', SEGMENTER, 'MSCAN')],
)
def test_printing_a_config(folder, name, config, backbone):
    assert f"type='mmrednet.{backbone}'" in run(folder, name, config)


@pytest.mark.parametrize(
    ('name', 'config', 'options'),
    [
        ('mmdet/get_flops', DETECTOR, ['--num-images', 1]),
        ('mmseg/get_flops', SEGMENTER, ['--shape', 64, 64]),
    ],
)
def test_counting_by_a_script_of_the_framework(folder, name, config, options):
    network, _ = build_network(config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    printed = run(folder, name, config, *options)
    assert f'Params: {_format_size(parameters)}' in printed
    flops = re.search(r'Flops: (.*)', printed).group(1)
    if name.startswith('mmseg'):
        model = network.model
        counts = get_model_complexity_info(model, (3, 64, 64), show_table=False, show_arch=False)
        assert flops == _format_size(counts['flops'])
    else:
        # those of the second stage depend on the proposals
        assert float(flops[:-1]) > 0
        assert flops[-1] in 'MG'
