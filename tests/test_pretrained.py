"""``init_cfg`` of the backbones and the converter's command: published files as they are, and what
is said of them.
"""

import hashlib
import logging
import os
import re
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import golden
import published
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from mmengine.runner.checkpoint import load_checkpoint

from mmrednet.backbones import (
    MSCAN,
    SAN,
    VAN,
    AxialResNet,
    RedNet,
    SASAResNet,
    SpatialResNet,
    load_pretrained,
)
from mmrednet.checkpoints import CheckpointError, read_checkpoint, sha256_of, write_checkpoint
from mmrednet.engine import load_config
from mmrednet.pretraining import ImageClassifier

ROOT = Path(__file__).parents[1]
NARROW = dict(embed_dims=(8, 16), depths=(1, 1), mlp_ratios=(2, 2))


@pytest.fixture
def lines(monkeypatch):
    """Return the level and the text of what is said about weights, without mmengine's list of all
    parameters.
    """
    logged = []

    def keep(message, logger=None, level=logging.INFO):
        if level >= logging.INFO:
            logged.append((level, message))

    monkeypatch.setattr('mmrednet.backbones.pretrained_init.print_log', keep)
    monkeypatch.setattr(MMLogger.get_current_instance(), 'level', logging.ERROR)
    return logged


def initialised(backbone, checkpoint, **kwargs):
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), **kwargs)
    backbone.init_weights()
    return backbone.eval()


@pytest.mark.parametrize(
    ('name', 'backbone', 'wrap'),
    [
        ('van_b0', lambda: VAN('b0'), lambda state: state),
        ('van_b0', lambda: VAN('b0'), published.mmpretrain_van),
        ('segnext_t', lambda: MSCAN('tiny'), lambda state: state),
        # mmseg's names
        (
            'segnext_t',
            lambda: MSCAN('tiny'),
            lambda state: published.replaced(state, ('dwconv.dwconv', 'dwconv')),
        ),
        (
            'axial26s',
            lambda: AxialResNet(depth=26),
            lambda state: published.wrapped(state, 'module.'),
        ),
        ('san10_pairwise', lambda: SAN(10), lambda state: published.wrapped(state, 'module.')),
        # a detector's backbone, whose stem is larger than the classifier's
        ('rednet26_cls', lambda: RedNet(26), lambda state: state),
        # in the order of the network, under other names
        (
            'rednet26_cls',
            lambda: RedNet(26),
            lambda state: dict(zip(map(str, range(999)), state.values(), strict=False)),
        ),
    ],
)
def test_published_files_give_the_official_outputs(name, backbone, wrap, tmp_path, lines):
    case, state = published.official(name)
    torch.save(dict(state_dict=wrap(state), epoch=7), tmp_path / 'official.pth.tar')
    model = initialised(backbone().double(), tmp_path / 'official.pth.tar')
    with torch.no_grad():
        maps = model(golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape']))
    names = [
        output['name'] for output in case['outputs'] if output['name'][:-1] in ('layer', 'stage')
    ][-len(maps) :]
    golden.assert_outputs(case, dict(zip(names, maps, strict=True)))
    ((level, line),) = lines
    total = len(model.state_dict())
    assert level == 20
    assert line.startswith(
        f'{type(model).__name__} from {tmp_path}/official.pth.tar: {total} of {total} tensors'
    )
    assert '; 0 missing, 0 unexpected, 0 shape mismatches, ' in line


@pytest.mark.parametrize('name', ['w.safetensors', 'w.npz', 'w.pth.tar'])
def test_every_kind_of_file(name, tmp_path, lines):
    source = VAN(NARROW, out_indices=(0, 1))
    write_checkpoint(tmp_path / name, published.wrapped(source.state_dict(), 'backbone.'))
    model = initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / name)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_a_prefix_and_a_place_as_mmengine_takes_them(tmp_path, lines):
    first, second = (VAN(NARROW, out_indices=(0, 1)) for _ in range(2))
    torch.save(
        published.wrapped(first.state_dict(), 'student.net.')
        | published.wrapped(second.state_dict(), 'teacher.net.'),
        tmp_path / 'w.pth',
    )
    for prefix in ('teacher.net', 'teacher.net.'):
        model = initialised(
            VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth', prefix=prefix, map_location='cpu'
        )
        assert torch.equal(model.block1[0].mlp.fc1.weight, second.block1[0].mlp.fc1.weight)
    with pytest.raises(
        CheckpointError, match="prefix must be that of some names in .*, got 'pupil.'"
    ):
        initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth', prefix='pupil')


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize(
    'kind',
    [
        'Pretrained',
        'mmengine.Pretrained',
        'mmdet.Pretrained',
        PretrainedInit,
        'mmengine.model.weight_init.PretrainedInit',
    ],
)
@pytest.mark.parametrize(
    'build',
    [
        lambda **kwargs: VAN(NARROW, out_indices=(0, 1), **kwargs),
        lambda **kwargs: ImageClassifier(
            dict(type='mmrednet.VAN', arch=NARROW, out_indices=(1,)), 3, channels=16, **kwargs
        ),
    ],
    ids=['backbone', 'classifier'],
)
def test_every_spelling_is_read_safely(kind, build, tmp_path, lines):
    source = build()
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    model = build(init_cfg=[dict(type=kind, checkpoint=str(tmp_path / 'w.pth'))])
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    torch.save(
        dict(state_dict=source.state_dict(), meta=Touch(tmp_path / 'executed')), tmp_path / 'w.pth'
    )
    with pytest.raises(CheckpointError, match='cannot be read as plain tensors'):
        build(init_cfg=dict(type=kind, checkpoint=str(tmp_path / 'w.pth'))).init_weights()
    assert not (tmp_path / 'executed').exists()


def test_a_published_classifier_starts_a_classifier(tmp_path, lines):
    state = {key: value.float() for key, value in published.official('van_b0')[1].items()}
    torch.save(dict(state_dict=state), tmp_path / 'van.pth')
    model = ImageClassifier(
        dict(type='mmrednet.VAN', arch='b0', out_indices=(3,)),
        1000,
        channels=256,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'van.pth')),
    )
    model.init_weights()
    assert torch.equal(model.head['fc'].weight, state['head.weight'])
    assert torch.equal(
        model.backbone.block1[0].mlp.dwconv.weight, state['block1.0.mlp.dwconv.dwconv.weight']
    )
    ((level, line),) = lines
    assert level == 20
    assert '; 0 missing, 0 unexpected, 0 shape mismatches, 0 of other parts' in line


def test_nothing_that_fits_is_an_error(tmp_path, lines):
    write_checkpoint(tmp_path / 'van.pth', VAN(NARROW, out_indices=(0, 1)).state_dict())
    for model in (SAN(10), SpatialResNet(26, base_channels=16)):
        with pytest.raises(
            CheckpointError, match=f'van.pth fits nothing of this {type(model).__name__}: 0 of'
        ):
            initialised(model, tmp_path / 'van.pth')
    with pytest.raises(FileNotFoundError):
        initialised(SAN(10), tmp_path / 'other.pth')


def test_what_does_not_fit_is_a_warning(tmp_path, lines):
    write_checkpoint(tmp_path / 'w.pth', RedNet(26, base_channels=32).state_dict())
    initialised(RedNet(26, base_channels=32, stem_kernel_size=3), tmp_path / 'w.pth')
    (level, line), (_, details) = lines
    assert level == 30
    assert '2 shape mismatches' in line
    assert (
        'shape mismatch: stem.1.conv2.conv.weight is (49, 4, 1, 1) in the file and (9, 4, 1, 1)'
        in details
    )
    assert 'stem_kernel_size=7 takes them' in details


GATED = [dict(cfg=dict(type='mmrednet.SE'), position='after_conv3')]


@pytest.mark.parametrize(
    ('model', 'state', 'said'),
    [
        # another depth
        (
            lambda: SpatialResNet(26, base_channels=16),
            lambda: SpatialResNet(38, base_channels=16).state_dict(),
            'unexpected: layer1.1.conv1.weight, ',
        ),
        # another network, which shares its 1x1 convolutions
        (
            lambda: RedNet(26, base_channels=32),
            lambda: SpatialResNet(26, base_channels=32).state_dict(),
            'missing: stem.0.conv.weight, ',
        ),
        (
            lambda: SpatialResNet(26, base_channels=32),
            lambda: RedNet(26, base_channels=32).state_dict(),
            "files of format 'rednet' are those of RedNet, the network is SpatialResNet",
        ),
        # gates that the network, or the file, does not have
        (
            lambda: SpatialResNet(26, base_channels=16),
            lambda: published.resnet('SE', ('.se_layer.', '.se.')),
            'unexpected: layer1.0.se_layer.fc1.weight, ',
        ),
        (
            lambda: SpatialResNet(26, base_channels=16, plugins=GATED),
            published.resnet,
            'missing: layer1.0.se_layer.fc1.weight, ',
        ),
    ],
)
def test_what_is_of_another_network_is_a_warning(model, state, said, tmp_path, lines):
    torch.save(state(), tmp_path / 'w.pth')
    initialised(model(), tmp_path / 'w.pth')
    (level, line), (_, details) = lines
    assert level == 30
    assert line.startswith(type(model()).__name__)
    assert said in details


def test_other_parts_and_counters_are_none(tmp_path, lines):
    state = published.wrapped(VAN(NARROW, out_indices=(0, 1)).state_dict(), 'backbone.')
    others = {'decode_head.conv.weight': torch.ones(2, 2, 1, 1), 'neck.weight': torch.ones(3)}
    torch.save(state | others, tmp_path / 'w.pth')
    initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth')
    inside = {key.removeprefix('backbone.'): value for key, value in (state | others).items()}
    torch.save(inside | {'bn.num_batches_tracked': torch.tensor(3)}, tmp_path / 'w.pth')
    initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth')
    assert [level for level, _ in lines] == [20, 20]
    assert '0 unexpected, 0 shape mismatches, 2 of other parts' in lines[0][1]
    assert '3 unexpected' in lines[1][1]


@pytest.mark.parametrize(
    'value',
    [
        torch.full((2, 2), float('-inf')),
        torch.arange(6).reshape(2, 3),
        torch.ones(3, dtype=torch.bool),
    ],
)
def test_values_of_what_is_not_used_do_not_matter(value, tmp_path, lines):
    state = published.wrapped(VAN(NARROW, out_indices=(0, 1)).state_dict(), 'backbone.')
    torch.save(state | {'decode_head.mask': value}, tmp_path / 'w.pth')
    model = initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth')
    assert torch.equal(model.block1[0].mlp.fc1.weight, state['backbone.block1.0.mlp.fc1.weight'])
    assert [level for level, _ in lines] == [30, 30]
    assert lines[1][1] == 'not used, and not finite or not floating point: decode_head.mask'
    state['backbone.block1.0.mlp.fc1.weight'][0] = float('nan')
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(
        CheckpointError, match=r"NaN or infinity in 1 of \d+ tensors: \['block1.0.mlp.fc1.weight'\]"
    ):
        initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth')


@pytest.mark.parametrize(
    'model',
    [
        lambda: SpatialResNet(
            26,
            [None, None, dict(type='Involution'), dict(type='StandAloneSelfAttention')],
            base_channels=16,
        ),
        lambda: SASAResNet(26, base_channels=16),
    ],
)
def test_warm_started_hybrids(model, tmp_path, lines):
    state = published.resnet()
    torch.save(state, tmp_path / 'resnet.pth')
    warm = initialised(model(), tmp_path / 'resnet.pth').state_dict()
    own = {name for name in warm if name not in state}
    assert own
    assert all('.conv2.' in name for name in own)
    for name in set(warm) - own:
        assert torch.equal(warm[name], state[name]), name
    assert f'; {len([name for name in own if "num_batches" not in name])} missing, ' in lines[0][1]
    # by design: every missing name is of an operator, and replaces one of the file
    assert lines[0][0] == 20
    assert len(lines) == 1
    counts = re.search(
        r'; (\d+) missing, (\d+) unexpected, .*, (\d+) of replaced operators', lines[0][1]
    )
    assert int(counts[1]) + int(counts[2]) == int(counts[3])


def test_the_whole_detector_initialises_its_backbone(tmp_path, lines):
    from mmengine.registry import MODELS

    write_checkpoint(tmp_path / 'w.pth', published.resnet())
    cfg = load_config(str(ROOT / 'configs/shapes/faster-rcnn_r26_fpn_shapes.py'))
    cfg.model.backbone = dict(
        type='mmrednet.SpatialResNet',
        depth=26,
        base_channels=16,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth')),
    )
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    with MODELS.switch_scope_and_registry('mmdet') as registry:
        model = registry.build(cfg.model)
    model.init_weights()
    assert torch.equal(
        model.backbone.layer2[0].conv2.weight, published.resnet()['layer2.0.conv2.weight']
    )


def file_of(folder, model, ending='.pth'):
    """Return the bytes of a file of a network's weights."""
    write_checkpoint(folder / f'file{ending}', model.state_dict(), force=True)
    return (folder / f'file{ending}').read_bytes()


class TestDownloads:
    @pytest.fixture
    def served(self, tmp_path, monkeypatch):
        """Let torch write what this dict has for a URL instead of fetching it, and keep downloads
        in a folder.
        """
        content = {}

        def write(url, target, progress):
            asked.append(url)
            Path(f'{target}.partial').write_bytes(b'half')
            Path(target).write_bytes(content.get(url, b'another file'))

        asked = content['asked'] = []
        monkeypatch.setattr(torch.hub, 'download_url_to_file', write)
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
        return content

    @staticmethod
    def kept(tmp_path):
        return [path.name for path in tmp_path.glob('hub/**/*') if path.is_file()]

    def test_files_with_a_hash_are_fetched_once(self, served, tmp_path, lines):
        content = file_of(tmp_path, VAN(NARROW, out_indices=(0, 1)))
        url = f'https://example.org/a/van-{hashlib.sha256(content).hexdigest()[:8]}.pth?dl=1'
        served[url] = content
        for _ in range(2):
            initialised(VAN(NARROW, out_indices=(0, 1)), url)
        assert served['asked'] == [url]
        (path,) = tmp_path.glob('hub/checkpoints/van-*.pth')
        # another program has put something there
        path.write_bytes(file_of(tmp_path, VAN(NARROW, out_indices=(0, 1))))
        with pytest.raises(CheckpointError, match='must have the SHA-256 that its name states, '):
            initialised(VAN(NARROW, out_indices=(0, 1)), url)

    def test_one_name_at_two_places_is_two_files(self, served, tmp_path, lines):
        models = {
            f'https://example.org/{owner}/model.safetensors': VAN(NARROW, out_indices=(0, 1))
            for owner in 'ab'
        }
        served.update(
            {url: file_of(tmp_path, model, '.safetensors') for url, model in models.items()}
        )
        for url, model in [*models.items()] * 2:
            loaded = initialised(VAN(NARROW, out_indices=(0, 1)), url)
            assert torch.equal(loaded.block1[0].mlp.fc1.weight, model.block1[0].mlp.fc1.weight)
        assert served['asked'] == list(models)

    @pytest.mark.parametrize(
        ('name', 'message'),
        [
            ('van.pth', 'is not kept: .* got a web page'),
            ('van-0123abcd.pth', 'is not kept: .* states, 0123abcd'),
        ],
    )
    def test_what_is_not_the_file_is_not_kept(self, name, message, served, tmp_path, lines):
        url = f'https://example.org/{name}'
        served[url] = b'<html>'
        with pytest.raises(CheckpointError, match=f'what {url} gives {message}'):
            initialised(VAN(NARROW, out_indices=(0, 1)), url)
        assert self.kept(tmp_path) == []

    @pytest.mark.parametrize(
        'url', ['https://example.org/', 'https://example.org/a/?dl=1', 'https://example.org']
    )
    def test_a_url_needs_a_name(self, url, served, tmp_path):
        with pytest.raises(
            ValueError, match=r'the path of a URL must end in the name of a file, got .*example'
        ):
            load_pretrained(VAN(NARROW, out_indices=(0, 1)), url)
        assert self.kept(tmp_path) == served['asked'] == []

    def test_names_of_mmengine(self, served):
        with pytest.raises(CheckpointError, match='states, 5891d200'):
            load_pretrained(SAN(10), 'open-mmlab://detectron2/resnet50_caffe')
        assert served['asked'][0].endswith('pretrain/third_party/resnet50_msra-5891d200.pth')
        with pytest.raises(
            ValueError,
            match=r"open-mmlab:// must name one of mmengine's \d+ models, got 'resnet51'",
        ):
            load_pretrained(SAN(10), 'open-mmlab://resnet51')

    def test_other_storage_is_mmengines(self, tmp_path, monkeypatch, lines):
        write_checkpoint(tmp_path / 'w.pth', VAN(NARROW, out_indices=(0, 1)).state_dict())
        monkeypatch.setattr(
            'mmrednet.backbones.downloads.get_local_path',
            lambda path: nullcontext(
                str(tmp_path / 'w.pth') if path == 's3://bucket/w.pth' else ''
            ),
        )
        initialised(VAN(NARROW, out_indices=(0, 1)), 's3://bucket/w.pth')
        assert len(lines) == 1


def test_mmengines_own_loader_renames_as_well(tmp_path):
    state = published.mmpretrain_van(published.official('van_b0')[1])
    torch.save(dict(state_dict=state), tmp_path / 'w.pth')
    model = VAN('b0')
    load_checkpoint(model, str(tmp_path / 'w.pth'), map_location='cpu', logger='silent')
    torch.testing.assert_close(
        model.block1[0].mlp.dwconv.weight.double(),
        state['backbone.blocks1.0.mlp.dwconv.weight'],
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.fixture
def convert(monkeypatch, capsys):
    """Return what calls the command, and returns what it prints, or its error."""

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['convert.py', *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / 'tools/model_converters/convert.py'), run_name='__main__')
        except SystemExit as stop:
            return str(stop.code)
        return capsys.readouterr().out

    return call


def test_the_command(convert, tmp_path):
    state = published.official('segnext_t')[1]
    write_checkpoint(tmp_path / 'official.pth', state)
    config = ROOT / 'configs/segnext/segnext_mscan-t_1xb16-160k_ade20k-512x512.py'
    output = convert(
        tmp_path / 'official.pth', tmp_path / 'ours.pth', '--to', 'segmentor', '--model', config
    )
    assert "official.pth: format 'mscan' (Visual-Attention-Network/SegNeXt" in output
    assert f'SHA-256: {sha256_of(tmp_path / "official.pth")}' in output
    assert '\n550 of 551 tensors matched' in output
    assert (
        '26 renamed and 0 changed; 0 missing, 0 unexpected, 0 shape mismatches, 0 of other parts'
        in output
    )
    assert read_checkpoint(tmp_path / 'ours.pth').container == ('state_dict',)
    assert convert(tmp_path / 'official.pth', tmp_path / 'ours.pth').startswith(
        f'FileExistsError: {tmp_path}/ours.pth exists; --force'
    )
    output = convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', '--reverse')
    assert output == f"written: {tmp_path}/back.pth, format 'mscan'\n"
    reversed_state = read_checkpoint(tmp_path / 'back.pth').state
    assert list(reversed_state) == list(state)
    assert all(torch.equal(reversed_state[key], value) for key, value in state.items())


def test_the_command_names_the_network_and_what_is_left_out(convert, tmp_path):
    write_checkpoint(
        tmp_path / 'r.pth', published.resnet() | {'neck.mask': torch.ones(2, dtype=torch.bool)}
    )
    output = convert(tmp_path / 'r.pth', tmp_path / 'ours.safetensors')
    assert "network: {'type': 'mmrednet.SpatialResNet', 'depth': 26, 'base_channels': 16}" in output
    assert '\n  other parts: head.fc.weight, head.fc.bias\n' in output
    assert '\n  unexpected: neck.mask\n' in output
    assert '\n  not used, and not finite or not floating point: neck.mask\n' in output
    output = convert(tmp_path / 'ours.safetensors', tmp_path / 'back.pth', '--reverse')
    assert output.endswith(
        'not as in the published file: 3 left out (neck.mask, head.fc.weight, head.fc.bias)\n'
    )
    detector = ROOT / 'configs/shapes/faster-rcnn_r26_fpn_shapes.py'
    output = convert(
        tmp_path / 'r.pth', tmp_path / 'd.pth', '--to', 'detector', '--model', detector
    )
    assert output.startswith('CheckpointError: ')
    assert 'too little fits' in output
    assert 'shape mismatch: backbone.conv1.weight is (16, 3, 7, 7) in the file and (' in output
    assert not (tmp_path / 'd.pth').exists()
