"""What README, CONTRIBUTING and the guides show works, and what they name is there."""

import re
import shlex

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from operators import dynamic_conv
from snippets import ROOT, snippets

from mmrednet import cli
from mmrednet.engine import load_config, scope_of
from mmrednet.layers import Involution

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
# pages whose paths are all of this repository
GUIDES = ['README.md', 'CONTRIBUTING.md', 'docs/overview.md', 'docs/install.md']
GUIDES += [
    'docs/detection.md',
    'docs/segmentation.md',
    'docs/your_data.md',
    'docs/panoptic_data.md',
]
TUTORIALS = [
    f'docs/{name}.md'
    for name in (
        'first_training',
        'photographs',
        'camvid',
        'panoptic',
        'plug_into_your_model',
        'mix_operators',
        'your_operator',
        'pretrain_and_convert',
    )
]
GUIDES += TUTORIALS
# configs of the tutorials: page, number of the block, name of the file that it inherits from, and a
# layer of its backbone with the class
CONFIGS = [
    ('photographs', 0, 'stem.1', 'Involution'),
    ('camvid', 0, 'layer4.0.conv2', 'SANPairwise'),
    ('mix_operators', 0, 'layer4.0.conv2', 'StandAloneSelfAttention'),
    ('mix_operators', 1, 'layer4.0.conv2', 'OperatorChain'),
    ('your_operator', 1, 'layer3.0.conv2', 'DynamicConv'),
    ('pretrain_and_convert', 0, 'layer1.0.conv2', 'Involution'),
]
# scripts of the tutorials, and what holds after them
SCRIPTS = [
    ('mix_operators', 2, 'type(network.block2[0].attn.spatial_gating_unit) is Involution'),
    ('panoptic', 0, 'set(ids.ravel().tolist()) == {0, 1, 2001, 2002}'),
    ('pretrain_and_convert', 1, 'len(conversion.match.state) == conversion.match.total == 249'),
]
# two screens
MAX_TUTORIAL_LINES = 130
MAX_WORDS = 1000


def prose(path):
    """Return a page without its code blocks."""
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
    return '\n'.join(line for line in text.splitlines() if not line.startswith('    '))


def anchors(path):
    """Return the anchors of a page's headings."""
    headings = re.findall(r'^#+ (.*)$', prose(path), re.MULTILINE)
    return {
        re.sub(r'[^\w\- ]', '', heading).strip().lower().replace(' ', '-') for heading in headings
    }


def expand(pattern):
    """Return the names that braces such as ``a_{b,c}.py`` stand for."""
    match = re.search(r'\{(.*?)\}', pattern)
    if match is None:
        return [pattern]
    start, end = pattern[: match.start()], pattern[match.end() :]
    return [name for part in match[1].split(',') for name in expand(f'{start}{part}{end}')]


def build(path):
    """Return the model of a config, without its weights."""
    cfg = load_config(str(path))
    cfg.model.backbone.init_cfg = None
    with MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
        return registry.build(cfg.model)


def test_the_readme_is_short():
    text = prose(ROOT / 'README.md')
    assert len(text.split()) <= MAX_WORDS
    assert re.findall(r'^## (.*)$', text, re.MULTILINE)[0] == 'Installation'


def test_the_python_example_runs():
    names = {}
    exec(snippets('README.md')[0], names)
    assert names['y'].shape == names['x'].shape
    maps = [tuple(names[f'c{level}'].shape) for level in (2, 3, 4, 5)]
    assert maps == [(1, 256, 56, 56), (1, 512, 28, 28), (1, 1024, 14, 14), (1, 2048, 7, 7)]


def test_the_config_example_builds(tmp_path):
    (tmp_path / 'own.py').write_text(snippets('README.md')[1])
    model = build(tmp_path / 'own.py')
    assert (type(model.backbone).__name__, type(model.neck).__name__) == ('RedNet', 'SpatialFPN')


def test_the_mixed_backbone_builds(tmp_path):
    base = "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
    (tmp_path / 'mixed.py').write_text(base + snippets('docs/overview.md')[0])
    backbone = build(tmp_path / 'mixed.py').backbone
    names = [type(getattr(backbone, f'layer{stage}')[0].conv2).__name__ for stage in (1, 2, 3, 4)]
    assert names == ['Conv2d', 'Conv2d', 'Involution', 'Involution']


def test_the_config_for_your_data_is_the_file():
    (block,) = snippets('docs/your_data.md')
    path = ROOT / 'configs/custom/faster-rcnn_rednet26_raccoon.py'
    assert block == path.read_text()
    assert Config.fromfile(path).train_dataloader.dataset.data_root == 'data/raccoon/'


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(path)):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        page = path.parent / name if name else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), target


def test_the_table_of_contents_has_every_page():
    text = (ROOT / 'docs/index.md').read_text()
    for path in (ROOT / 'docs').glob('*.md'):
        assert path.name == 'index.md' or f']({path.name})' in text, path.name


@pytest.mark.parametrize('name', GUIDES)
def test_files_that_are_named_exist(name):
    """Paths below folders of the repository, in code spans and in commands."""
    text = (ROOT / name).read_text()
    folders = 'configs|docs|mmrednet|requirements|tests|tools'
    for pattern in re.findall(rf'(?:`| )((?:{folders})/[\w./{{}},*-]+)', text):
        for path in expand(pattern.rstrip('.,')):
            assert list(ROOT.glob(path)), path


@pytest.mark.parametrize(('page', 'index', 'layer', 'name'), CONFIGS)
def test_configs_of_tutorials_build(page, index, layer, name, tmp_path, monkeypatch):
    dynamic_conv()
    block = snippets(f'docs/{page}.md')[index]
    # the pages are read at the root of a clone
    (tmp_path / 'own.py').write_text(block.replace("'configs/", f"'{ROOT}/configs/"))
    with torch.device('meta'):
        backbone = build(tmp_path / 'own.py').backbone
    assert type(backbone.get_submodule(layer)).__name__ == name


@pytest.mark.parametrize(('page', 'index', 'expectation'), SCRIPTS)
def test_scripts_of_tutorials_run(page, index, expectation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(Involution=Involution)
    exec(snippets(f'docs/{page}.md')[index], names)
    assert eval(expectation, names)


@pytest.mark.parametrize('name', TUTORIALS)
def test_tutorials_begin_with_a_result_and_are_short(name):
    lines = (ROOT / name).read_text().splitlines()
    # a picture, or a sentence in bold with a figure
    assert re.match(r'!\[|\*\*.*\d', lines[2]), lines[2]
    assert len(lines) <= MAX_TUTORIAL_LINES


def commands(name):
    """Return the commands of the package that a page shows, as lists of words."""
    text = (ROOT / name).read_text().replace('\\\n', ' ')
    lines = re.findall(
        r'^    ((?:PYTHONPATH=\S+ )?(?:mmrednet|python tools/\S+) .*)$', text, re.MULTILINE
    )
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope='module')
def sources():
    """Return the text of all Python files that define options."""
    files = [*(ROOT / 'mmrednet').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]
    return '\n'.join(path.read_text() for path in files)


@pytest.mark.parametrize('name', GUIDES)
def test_options_of_commands_exist(name, sources):
    for words in commands(name):
        for word in words:
            if word.startswith('--'):
                assert f"'{word}'" in sources, (words, word)


@pytest.mark.parametrize('name', GUIDES)
def test_commands_are_understood(name):
    """The parsers of the subcommands take what the page shows."""
    for words in commands(name):
        if 'mmrednet' not in words:
            continue
        _, subcommand, *arguments = words[words.index('mmrednet') :]
        module = cli.load(subcommand)
        # an error exits
        module.make_parser().parse_args(arguments)
